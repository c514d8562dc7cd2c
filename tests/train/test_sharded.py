"""Checkpoints in parts: read by another number of processes, killed while they are written, damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban.errors import CheckpointError, NonFiniteError
from kiban.train import checkpoint, sharded
from kiban.train.parallel import Parallel

sys.path.insert(0, str(Path(__file__).parent))
import worker

KINDS = {"ddp": ("ddp", 1), "fsdp": ("fsdp", 1), "tensor parallel": ("fsdp", 2)}


def settings(name: str, **changes: Any) -> dict[str, Any]:
    kind, width = KINDS[name]
    common = {"family": "gpt", "ema": 0.8, "checkpoint_every": 2, "watch": True, "steps": 9}
    return {"kind": kind, "width": width, **common, **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted runs of two processes, and runs of 2 -> 1 -> 2 processes that stop after steps 3 and 6."""
    folder = tmp_path_factory.mktemp("resumed")
    output = folder / "output.txt"
    jobs: list[worker.Job] = [("language", folder / f"{name} whole", settings(name)) for name in KINDS]
    jobs += [("language", folder / name, settings(name, stop_at=3)) for name in KINDS]
    worker.finish(worker.torchrun(jobs, output=output), output)
    for name in KINDS:
        one = {**settings(name, stop_at=6), "kind": "none", "width": 1}
        worker.language_run(folder / name, one)
        assert json.loads((folder / name / "end.json").read_text())[:2] == [6, "sigterm"]
        assert list((folder / name / "step-6").glob("model.safetensors")), "one process writes whole tensors"
    worker.finish(
        worker.torchrun([("language", folder / name, settings(name)) for name in KINDS], output=output), output
    )
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", KINDS)
def test_two_then_one_then_two_processes_go_on_as_two_would_have(folders: Path, name: str) -> None:
    """The same rows in the same order, the same losses and scores to rounding, the same step that was best."""
    whole, changed = lines(folders / f"{name} whole"), lines(folders / name)
    assert [line.get("rows") for line in whole] == [line.get("rows") for line in changed]
    assert len({line["rows"] for line in whole if "rows" in line}) == 9
    for theirs, ours in zip(whole, changed, strict=True):
        for key in ("loss", "eval_score"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-4)
        assert ours.get("tokens") == theirs.get("tokens")
    ends = [json.loads((folders / place / "end.json").read_text()) for place in (f"{name} whole", name)]
    assert ends[0][:2] == ends[1][:2] == [9, "steps"] and ends[0][3] == ends[1][3]


@pytest.mark.parametrize("name", ["fsdp", "tensor parallel"])
def test_parts_hold_every_number_once_and_make_the_whole(folders: Path, name: str) -> None:
    """The newest checkpoint of two processes is near that of an uninterrupted run, and its files are small."""
    newest = folders / f"{name} whole" / "step-8"
    parts = sorted(newest.glob("*.safetensors"))
    assert len(parts) == 2 and not (newest / "model.safetensors").exists()
    tensors, replicated = sharded.read_whole(newest), sharded.read_whole(folders / "ddp whole" / "step-8")
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {n: (t.shape, t.dtype) for n, t in replicated.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert total < sum(path.stat().st_size for path in parts) < 1.2 * total + 100_000
    for key, tensor in tensors.items():
        if key.startswith("model.") and not key.endswith("attn.k.bias"):
            torch.testing.assert_close(tensor, replicated[key], atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "another"])
def test_a_damaged_part_is_noticed_and_the_older_one_taken(folders: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(folders / "fsdp whole", run)
    part = sorted((run / "step-8").glob("*.safetensors"))[1]
    data = bytearray(part.read_bytes())
    if damage == "missing":
        part.unlink()
    elif damage == "another":
        shutil.copy(part, part.with_name("shard-00003-model-00001-of-00001.safetensors"))
    else:
        data[-1] ^= 1
        part.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-4]))
    assert (checkpoint.load_newest(run) or (0,))[0] == 6


def test_a_run_with_other_settings_is_refused(folders: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders / "fsdp whole", tmp_path / "run")
    other = worker.language_model("gpt", Parallel(), tmp_path / "run", steps=9)  # without the averages
    with pytest.raises(CheckpointError, match=r"average\.blocks.*None.*new folder"):
        other.run()
    other = worker.language_model("llama", Parallel(), tmp_path / "run", steps=9, ema=0.8)
    with pytest.raises(CheckpointError, match="shape"):
        other.run()


class Elsewhere(Parallel):
    """Says what another process found."""

    def any(self, value: bool) -> bool:
        return True


def test_what_is_not_finite_in_another_process_stops_this_one_too(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="another process"):
        checkpoint.save(tmp_path, 1, {"w": torch.ones(2)}, {}, Elsewhere())
    assert not checkpoint.steps(tmp_path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def killed_saves(folder: Path, kind: str, rounds: int) -> None:
    """Two processes save at every step, and one of them is killed again and again; torchrun starts both anew."""
    folder.mkdir(exist_ok=True)
    output, chance = folder / "output.txt", random.Random(0)
    job: worker.Job = ("classifier", folder, {"kind": kind, "steps": 100_000, "checkpoint_every": 1})
    process = worker.torchrun([job], f"--max-restarts={rounds}", output=output)
    killed, reached = set[int](), 0
    try:
        for _ in range(rounds):
            victim = chance.randrange(2)
            deadline = time.monotonic() + 120
            while True:  # until the processes of this round have saved at least one step more
                assert time.monotonic() < deadline and process.poll() is None, output.read_text(
                    "utf-8", errors="replace"
                )[-9000:]
                pids = [
                    int((folder / f"pid-{rank}").read_text() or 0)
                    for rank in (0, 1)
                    if (folder / f"pid-{rank}").exists()
                ]
                if len(pids) == 2 and not killed & set(pids) and max(checkpoint.steps(folder), default=0) > reached:
                    break
                time.sleep(0.01)
            time.sleep(chance.random() * 0.1)
            os.kill(pids[victim], signal.SIGKILL)
            killed |= set(pids)
            fell = time.monotonic()
            while any(alive(pid) for pid in pids):
                assert time.monotonic() < fell + 30, "a process outlived the other by 30 s"
                time.sleep(0.01)
            found = checkpoint.load_newest(folder)
            assert found is not None and found[0] > reached
            logged = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert found[0] >= logged[-1] - 1, "more than one save interval was lost"
            reached = found[0]
    finally:
        worker.stop(process)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_kill_while_parts_are_written_never_costs_more_than_one_interval(tmp_path: Path) -> None:
    killed_saves(tmp_path, "fsdp", 2)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_hundred_kills_of_one_process_leave_a_hundred_loadable_checkpoints(tmp_path: Path, kind: str) -> None:
    killed_saves(tmp_path, kind, 100)
