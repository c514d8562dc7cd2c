"""`kiban pretrain` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
Kiban = Callable[..., Any]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 Japanese descriptions, a document a line."""
    path = tmp_path_factory.mktemp("texts") / "説明.jsonl"
    with (
        (EXAMPLES / "debian-ja.csv").open(encoding="utf-8-sig", newline="") as table,
        path.open("w", encoding="utf-8") as file,
    ):
        for row in list(csv.DictReader(table))[:500]:
            file.write(json.dumps({"text": row["本文"]}, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gpr", "--data", "TEXTS", "--steps", "3"], "gpt"),
        (["gpt", "--steps", "3"], "--data"),
        (["gpt", "--data", "TEXTS"], "--time"),
        (["gpt", "--data", "TEXTS", "--steps", "3", "--tokens", "1M"], "one of --time, --tokens and --steps"),
        (["gpt", "--data", "TEXTS", "--tokens", "many"], "--tokens"),
        (["gpt", "--data", "TEXTS", "--steps", "3"], "--size"),
        (["gpt", "--data", "TEXTS", "--steps", "3", "--size", "tiney"], "tiny"),
        (["gpt", "--data", "TEXTS", "--steps", "3", "--size", "tiny", "--set", "recipe.rate=1"], "rate"),
        (["gpt", "--data", "TEXTS", "--steps", "3", "--size", "tiny", "--set", "sead=1"], "seed"),
        (["gpt", "--data", "nowhere", "--steps", "3", "--size", "tiny"], "nowhere"),
        (["--resume", "nowhere"], "run folder"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(
    kiban: Kiban, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = kiban("pretrain", *(str(texts) if a == "TEXTS" else a for a in arguments), "--lang", "en")
    assert said.code == 1 and told in said.err and said.err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/final"))


def test_sizes_are_listed(kiban: Kiban) -> None:
    said = kiban("pretrain", "gpt", "--sizes", "--lang", "ja")
    assert "gpt3-175b" in said.out and "174,604,259,328" in said.out and "パラメータ" in said.out


@pytest.fixture(scope="module")
def run_folder(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was ended by SIGTERM and then resumed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = ["--set", "recipe.batch_tokens=1024", "--set", "recipe.micro_tokens=1024", "--vocab-size", "600"]
    command = [sys.executable, "-m", "kiban", "pretrain", "gpt", "--data", str(texts), "--size", "tiny"]
    command += ["--steps", "40", "--out", str(folder), "--lang", "en", *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        log, deadline = folder / "checkpoints" / "metrics.jsonl", time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 6):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and f"--resume {folder}" in said
    assert not (folder / "final").exists()
    again = [sys.executable, "-m", "kiban", "pretrain", "--resume", str(folder), "--json"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=200, check=True)
    result = json.loads(done.stdout)
    assert result["steps"] == 40 and result["metrics"]["bits_per_character"] > 0
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_ended_run_goes_on_and_leaves_all_that_a_run_folder_holds(run_folder: Path, kiban: Kiban) -> None:
    steps = [
        line["step"]
        for line in map(json.loads, (run_folder / "checkpoints" / "metrics.jsonl").read_text("utf-8").splitlines())
        if "loss" in line
    ]
    assert steps == list(range(1, 41))
    for name in ("config.yaml", "environment.json", "result.json", "plots/loss.svg", "final/model.safetensors"):
        assert (run_folder / name).is_file()
    said = kiban("run", str(run_folder), "画像を", "--max-new-tokens", "5")
    assert said.code == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_finished_run_is_not_written_over(run_folder: Path, texts: Path, kiban: Kiban) -> None:
    before = (run_folder / "result.json").read_bytes()
    arguments = ("pretrain", "gpt", "--data", str(texts), "--size", "tiny", "--steps", "2", "--out", str(run_folder))
    said = kiban(*arguments, "--lang", "en")
    assert said.code == 1 and "exists" in said.err and (run_folder / "result.json").read_bytes() == before


@pytest.mark.slow
def test_a_time_budget_chooses_a_size_and_ends_where_the_text_is_used_up(
    kiban: Kiban, texts: Path, tmp_path: Path
) -> None:
    start = time.monotonic()
    said = kiban("pretrain", "gpt", "--data", str(texts), "--time", "2m", "--out", str(tmp_path / "run"), "--json")
    assert said.code == 0 and time.monotonic() - start < 150
    found = json.loads(said.out)
    assert found["size"] in ("0.8m", "1.8m", "3m", "11m", "25m", "50m")
    assert 5.9 < found["epochs"] < 6.3 and "6" in said.err


@pytest.mark.skipif(os.name == "nt", reason="gloo over loopback")
def test_two_processes_train_one_model(texts: Path, tmp_path: Path) -> None:
    """The same steps as one process, to rounding, and one model left."""
    found = {}
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command += ["-m", "kiban", "pretrain", "gpt", "--data", str(texts), "--size", "tiny", "--steps", "8"]
        command += ["--out", str(tmp_path / str(count)), "--vocab-size", "600", "--json"]
        command += ["--set", "precision=fp32", "--set", "recipe.micro_tokens=512"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        found[count] = json.loads(done.stdout)
        assert (tmp_path / str(count) / "final" / "model.safetensors").is_file()
    bits = [result["metrics"]["bits_per_character"] for result in found.values()]
    assert bits[0] == pytest.approx(bits[1], abs=1e-3)
    assert [result["tokens"] for result in found.values()] == [8 * 1024] * 2
