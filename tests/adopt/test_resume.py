"""A run that is killed, again and again, ends as one that never was; nobody else may work on its folder meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiban.adopt.job import resume
from kiban.adopt.result import Result
from kiban.errors import ConfigError

# Tells its process of every stage it reaches, and goes on with a run if there is one.
CHILD = """
import json, sys
from pathlib import Path
import torch
from kiban.adopt.job import adopt, resume
torch.set_num_threads(1)
table, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
tell = lambda stage, done, total: print(stage.partition(" | ")[0], flush=True)
if (folder / "config.yaml").exists():
    resume(folder, progress=tell)
else:
    adopt(table, out=folder, progress=tell, **settings)
"""
TIMINGS = ("p50_ms", "p95_ms", "rows_per_second", "peak_memory_bytes", "train_seconds")
COSTS = ("cost_per_1k_yen", "cost_per_1k_usd", "model_bytes")


def essence(result: Result) -> dict[str, Any]:
    """All that must not depend on when and how fast a run went."""
    values = dataclasses.asdict(result)
    for key in ("created", "command", "environment", "total_seconds", "pareto"):
        del values[key]
    for candidate in values["candidates"]:
        for key in (*TIMINGS, *COSTS):
            del candidate[key]
    return values


def stopped_at(arguments: list[str], wanted: Any, number: int) -> int:
    """Start the child, send it a signal at its number-th stage for which wanted(stage) holds; its exit status."""
    command = [sys.executable, "-c", CHILD, *arguments]
    seen, how = 0, signal.SIGTERM if wanted is in_training else signal.SIGKILL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            seen += bool(wanted(line.strip()))
            if seen == number:
                if how == signal.SIGKILL and wanted is in_measuring:
                    refused_while_running(Path(arguments[1]))
                os.kill(child.pid, how)
                seen = -(10**9)
        child.wait()
    assert seen < 0, "the stage was never reached"
    return child.returncode


def anywhere(stage: str) -> bool:
    return True


def in_training(stage: str) -> bool:
    return stage == "finetune_encoder:model · train"


def in_measuring(stage: str) -> bool:
    return stage.endswith("· measure")


def refused_while_running(folder: Path) -> None:
    with pytest.raises(ConfigError, match="another kiban process"):
        resume(folder)


def test_a_run_killed_at_many_moments_ends_as_one_that_was_not(
    reference: Any, small_table: Path, tmp_path: Path
) -> None:
    folder, chance = tmp_path / "run", random.Random(7)
    arguments = [str(small_table), str(folder), json.dumps(reference.settings)]
    race = [i for i, stage in enumerate(reference.stages) if " · " in stage]
    assert stopped_at(arguments, anywhere, chance.randint(race[0] + 1, race[len(race) // 2])) == -signal.SIGKILL
    log = folder / "metrics.jsonl"
    if log.exists():
        log.write_bytes(log.read_bytes()[: -chance.randint(1, 40)])  # as if the kill had come in the middle of a line

    assert stopped_at(arguments, in_training, 2) == -signal.SIGINT  # SIGTERM ends the run as Ctrl-C does
    saved = list(folder.glob("candidates/finetune_encoder--model/work-*/step-*"))
    assert len(saved) == 1 and saved[0].name in ("step-2", "step-3"), "training left no checkpoint"
    assert stopped_at(arguments, in_measuring, 2) == -signal.SIGKILL
    assert not (folder / "result.json").exists()

    run = resume(folder)
    assert essence(run.result) == essence(reference.run.result)
    for measured in reference.run.folder.glob("candidates/*/measured.json"):
        mine = folder / measured.relative_to(reference.run.folder)
        first, second = (json.loads(path.read_text("utf-8"))["probabilities"] for path in (measured, mine))
        assert first == second
    assert (folder / "report.html").exists() and run.model.predict(["ゲームです。"])


def test_a_config_edited_into_nonsense_is_told_before_any_work(reference: Any, tmp_path: Path) -> None:
    shutil.copytree(reference.run.folder, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 3", "seed: often"), encoding="utf-8")
    with pytest.raises(ConfigError, match="'seed': 'often' is of the wrong kind"):
        resume(tmp_path / "run")
