"""`kiban adopt` as a user types it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiban.adopt.folder import KINDS, Settings
from kiban.config import write_yaml
from kiban.errors import KibanError


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "TABLE"),
        (["TABLE", "--text", "本分"], "did you mean '本文'"),
        (["TABLE", "--require", "p59<3s"], "p95"),
        (["TABLE", "--on-bad-row", "mend"], "stop or skip"),
        (["TABLE", "--time", "soon"], "--time"),
        (["TABLE", "--strategies", "baselin"], "baseline"),
        (["TABLE", "--models", "minilm-16"], "minilm-l6"),
        (["nowhere.csv"], "no such file"),
        (["--resume", "nowhere"], "run folder"),
        (["TABLE", "--set", "sead=1"], "seed"),
        (["TABLE", "--set", "seed=often"], "'seed': 'often'"),
        (["TABLE", "--set", "seed=-1"], "4294967295"),
        (["TABLE", "--set", "seconds=20m"], "'seconds': '20m'"),
        (["TABLE", "--set", "on_bad_row=mend"], "stop or skip"),
        (["TABLE", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["TABLE", "--resume", "run"], "table"),
        (["--resume", "run", "--seed", "1"], "seed"),
        (["--resume", "run", "--dry-run"], "dry_run"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_any_work(
    kiban: Callable,  # type: ignore[type-arg]
    small_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = kiban("adopt", *(str(small_table) if a == "TABLE" else a for a in arguments), "--lang", "en")
    assert said.code == 1 and told in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_shows_data_and_candidates_and_writes_nothing(
    kiban: Callable,  # type: ignore[type-arg]
    small_table: Path,
    tmp_path: Path,
    tiny_bert_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("adopt", str(small_table), "--dry-run", "--models", str(tiny_bert_folder))
    before = sorted(tmp_path.rglob("*"))
    assert "120 rows, 3 classes, language ja" in kiban(*command).out
    assert "120 行、3 クラス、言語 ja" in kiban(*command, "--lang", "ja").out
    told = json.loads(kiban(*command, "--json").out)
    assert told["candidates"] == ["baseline", "linear_head:model", "finetune_encoder:model"]
    assert sum(told["splits"][part] for part in ("train", "validation", "test")) == 120
    assert sorted(tmp_path.rglob("*")) == before


def test_every_setting_of_a_run_can_be_set_and_is_checked() -> None:
    assert set(KINDS) == {field.name for field in dataclasses.fields(Settings)}


def test_a_config_gives_what_no_option_gives(
    kiban: Callable,  # type: ignore[type-arg]
    small_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def note(source: Any, **settings: Any) -> None:
        seen.clear()
        seen.update(settings, source=source)
        raise KibanError("seen")

    monkeypatch.setattr("kiban.adopt.job.adopt", note)
    config = tmp_path / "config.yaml"
    values = {"source": "other.csv", "source_sha256": "0", "text": "本文", "steps": 4, "seed": 7, "models": ["a", "b"]}
    write_yaml(config, values)
    kiban("adopt", "--config", str(config))
    assert (seen["source"], seen["text"], seen["steps"], seen["seed"]) == ("other.csv", "本文", 4, 7)
    assert seen["models"] == ["a", "b"] and seen["label"] is None and seen["yen_per_hour"] == 15.0
    kiban("adopt", str(small_table), "--config", str(config), "--seed", "0", "--set", "yen_per_hour=1e-3")
    assert (seen["source"], seen["seed"], seen["yen_per_hour"], seen["steps"]) == (str(small_table), 0, 1e-3, 4)
    kiban("adopt", "--config", str(config), "--time", "2m")
    assert (seen["seconds"], seen["steps"]) == (120, None)
    write_yaml(config, {"source": "x.csv", "sead": 1})
    assert "did you mean 'seed'" in kiban("adopt", "--config", str(config)).err


def test_a_run_ends_with_a_decision_and_resumes_at_once(
    kiban: Callable,  # type: ignore[type-arg]
    small_table: Path,
    tmp_path: Path,
    tiny_bert_folder: Path,
) -> None:
    first = tmp_path / "first"
    command = [
        "adopt",
        str(small_table),
        "--text",
        "本文",
        "--label",
        "区分",
        "--steps",
        "4",
        "--strategies",
        "linear_head",
    ]
    said = kiban(*command, "--models", str(tiny_bert_folder), "--out", str(first), "--lang", "ja")
    assert said.code == 0, said.err
    assert "★" in said.out and str(first / "report.html") in said.out and "macro-F1" in said.out
    assert (first / "report.html").exists() and (first / "final" / "README.md").exists()
    assert "rung" in said.err
    again = kiban("adopt", "--resume", str(first), "--json")
    assert again.code == 0 and json.loads(again.out)["source"] == "問い合わせ.csv" and "\\u" not in again.out
    refused = kiban(*command, "--out", str(first))
    assert refused.code == 1 and "--resume" in refused.err
    classified = kiban("run", str(first), "画像を表示するプログラム", "--json")
    assert set(json.loads(classified.out)) == {"ゲーム", "画像", "ライブラリ"}


@pytest.mark.slow
def test_a_run_repeats_exactly_from_its_own_config(
    kiban: Callable,  # type: ignore[type-arg]
    small_table: Path,
    tmp_path: Path,
    tiny_bert_folder: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    command = ("adopt", str(small_table), "--steps", "4", "--strategies", "linear_head", "--out", str(first), "--json")
    once = kiban(*command, "--models", str(tiny_bert_folder))
    again = kiban("adopt", "--config", str(first / "config.yaml"), "--out", str(second), "--json")
    assert (once.code, again.code) == (0, 0), again.err
    scores = [
        {c["id"]: (c["macro_f1"]["value"], c["confusion"]) for c in json.loads(text)["candidates"]}
        for text in (once.out, again.out)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 2


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_says_how_to_go_on(small_table: Path, tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = tmp_path / "my run"
    command = [sys.executable, "-m", "kiban", "adopt", str(small_table), "--steps", "20000", "--out", str(folder)]
    command += ["--strategies", "finetune_encoder", "--models", str(tiny_bert_folder), "--lang", "en"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "plan.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert f"kiban adopt --resume '{folder}'" in errors and "Traceback" not in errors


@pytest.fixture
def few_photos(tmp_path: Path) -> Path:
    """40 pictures of two colours."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(20):
        for name, colour in (("赤", (200, 40, 40)), ("青", (40, 60, 200))):
            path = tmp_path / "写真" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(-40, 41, (6, 6, 3)) + np.array(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((40, 40)).save(path)
    return tmp_path / "写真"


def test_a_folder_of_pictures_is_adopted_and_used(
    kiban: Callable,  # type: ignore[type-arg]
    few_photos: Path,
    tmp_path: Path,
) -> None:
    command = ("adopt", str(few_photos), "--strategies", "image_baseline", "--models", "none", "--lang", "ja")
    assert "none" in kiban(*command, "--dry-run").err, "no model has this name"
    command = ("adopt", str(few_photos), "--strategies", "small_cnn", "--steps", "2")
    looked = kiban(*command, "--dry-run", "--lang", "ja")
    assert "画像 40 枚、2 クラス" in looked.out and "small_cnn" in looked.out and "image_baseline" in looked.out
    assert "Data: 40 pictures, 2 classes" in kiban(*command, "--dry-run").out
    said = kiban(*command, "--out", str(tmp_path / "run"), "--lang", "en")
    assert said.code == 0, said.err
    assert "★" in said.out and (tmp_path / "run" / "final" / "kiban.json").exists()
    picture = few_photos / "青" / "3.png"
    told = kiban("run", str(tmp_path / "run"), str(picture), "--json")
    assert told.code == 0 and set(json.loads(told.out)) == {"赤", "青"}
    assert max(json.loads(told.out).items(), key=lambda item: item[1])[0] == "青"
    assert "青" in kiban("run", str(tmp_path / "run"), str(picture)).out.splitlines()[0]
    lost = kiban("run", str(tmp_path / "run"), "nowhere.png")
    assert lost.code == 1 and "no such file" in lost.err and lost.err.count("\n") == 1


def test_help_tells_of_pictures(kiban: Callable) -> None:  # type: ignore[type-arg]
    assert "kiban adopt photos/" in kiban("adopt", "--help").out
