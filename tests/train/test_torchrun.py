"""Runs under torchrun: one process is killed, a restart, SIGTERM, and what is not finite in one process only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kiban.train import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import worker


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


def ends(folder: Path) -> list[list[Any]]:
    """Steps, why they stopped, and the hash of the parameters, of both processes."""
    return [json.loads((folder / f"end-{rank}.json").read_text()) for rank in (0, 1)]


def wait_for_step(folder: Path, process: subprocess.Popen[bytes], step: int) -> list[int]:
    """Wait until two processes have come so far; gives their ids."""
    deadline = time.monotonic() + 120
    while int(((folder / "step").exists() and (folder / "step").read_text()) or 0) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, of each kind: one with dropout, and three that something goes wrong with."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    kinds = ("ddp", "fsdp")
    jobs: list[worker.Job] = [("classifier", folder / kind, {"kind": kind}) for kind in kinds]
    for task in ("poisoned", "held", "full"):
        jobs += [(task, folder / f"{kind} {task}", {"kind": kind}) for kind in kinds]
    worker.finish(worker.torchrun(jobs, output=folder / "output.txt"), folder / "output.txt")
    assert all(ends(folder / kind)[0] == ends(folder / kind)[1] for kind in ("ddp", "fsdp"))
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_in_one_process_stops_the_step_in_both(uninterrupted: Path, kind: str) -> None:
    """The second process has NaN in steps 2 and 4 to 6: no step is taken, and the third in a row ends both."""
    folder = uninterrupted / f"{kind} poisoned"
    log = log_of(folder)
    assert [line["step"] for line in log if line.get("non_finite")] == [2, 4, 5, 6]
    rows = [len(line["sample_ids"]) for line in log if line.get("non_finite")]
    assert rows == [8, 6, 8, 8]  # step 4 ends an epoch of 30 rows
    first, second = ends(folder)
    assert first == second
    hashes, error = first
    assert [a == b for a, b in pairwise(hashes)] == [False, True, False, True, True, True]
    assert "NonFiniteError: training step 6" in error


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_second_run_on_the_folder_is_refused_in_both_processes(uninterrupted: Path, kind: str) -> None:
    first, second = ends(uninterrupted / f"{kind} held")
    assert first == second and "another trainer works here" in first


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_disk_that_is_full_for_one_process_ends_both_and_the_old_checkpoint_stays(
    uninterrupted: Path, kind: str
) -> None:
    folder = uninterrupted / f"{kind} full"
    first, second = ends(folder)
    assert first.startswith("CheckpointError") and second.startswith("CheckpointError")
    assert "No space left" in first
    assert checkpoint.steps(folder) == [4] and not list(folder.glob(".step*"))
    assert checkpoint.load_newest(folder) is not None


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_when_one_of_two_is_killed_the_other_ends_and_a_restart_goes_on_to_the_bit(
    uninterrupted: Path, tmp_path: Path
) -> None:
    output, folder = tmp_path / "output.txt", tmp_path / "run"
    process = worker.torchrun([("classifier", folder, {"kind": "ddp", "slow": 0.1})], output=output)
    try:
        pids = wait_for_step(folder, process, 6)
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(30) != 0
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
    finally:
        worker.stop(process)
    assert "lost the other processes" in output.read_text("utf-8") and checkpoint.steps(folder)[-1] < 23
    worker.finish(worker.torchrun([("classifier", folder, {"kind": "ddp"})], output=output), output)
    assert ends(folder) == ends(uninterrupted / "ddp")
    assert log_of(folder) == log_of(uninterrupted / "ddp")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_torchrun_restarts_processes_and_they_go_on_to_the_bit(uninterrupted: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "output.txt", tmp_path / "run"
    process = worker.torchrun(
        [("classifier", folder, {"kind": "fsdp", "slow": 0.1})], "--max-restarts=1", output=output
    )
    try:
        os.kill(wait_for_step(folder, process, 10)[0], signal.SIGKILL)
        worker.finish(process, output)
    finally:
        worker.stop(process)
    assert ends(folder) == ends(uninterrupted / "fsdp")
    assert log_of(folder) == log_of(uninterrupted / "fsdp")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_to_torchrun_saves_in_both_and_ends_in_order(tmp_path: Path) -> None:
    output, folder = tmp_path / "output.txt", tmp_path / "run"
    settings = {"kind": "fsdp", "slow": 0.05, "steps": 100_000, "checkpoint_every": 1_000_000}
    process = worker.torchrun([("classifier", folder, settings)], output=output)
    try:
        wait_for_step(folder, process, 5)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        worker.stop(process)
    first, second = ends(folder)
    assert first == second and first[1] == "sigterm"
    assert checkpoint.steps(folder) == [first[0]] == [log_of(folder)[-1]["step"]]
