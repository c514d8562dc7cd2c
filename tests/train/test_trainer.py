"""The loop: the same gradient however a batch is cut, exact resume, early stop, and what happens to NaN."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban.errors import CheckpointError, ConfigError, NonFiniteError
from kiban.objectives.causal_lm import CausalLM
from kiban.train import checkpoint
from kiban.train.settings import Hooks, TrainConfig
from kiban.train.trainer import Trainer

Make = Callable[..., Trainer]


def gradients(trainer: Trainer, ids: list[int]) -> dict[str, Tensor]:
    trainer.module.train()
    trainer._gradients(ids)
    return {name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None}


class Bigram(nn.Module):
    """Next-token logits from the token alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)

    def hidden(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return torch.as_tensor(self.embed(tokens))


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_a_batch_has_the_same_gradient_however_it_is_cut(trainer_of: Make, kind: str) -> None:
    """Rows have unequal numbers of tokens, so averaging the means of parts would be wrong."""
    found = []
    for size in (8, 4, 1):
        trainer = trainer_of(micro_batch_size=size)
        trainer.module.get_submodule("dropout").p = 0.0  # type: ignore[assignment]
        if kind == "causal_lm":
            trainer = trainer_of(micro_batch_size=size, module=Bigram())
            trainer.objective = CausalLM(trainer.module)
            collate = trainer.loader.collate
            trainer.loader.collate = lambda some, collate=collate: {  # type: ignore[misc]
                name: tensor for name, tensor in collate(some).items() if name != "labels"
            }
        found.append(gradients(trainer, list(range(8))))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in found[0].values())


def state_of(trainer: Trainer) -> list[Tensor]:
    tensors = [p.detach().clone() for p in trainer.parameters.values()]
    tensors += trainer.average.values.values() if trainer.average else []
    for optimizer in trainer.optimizers:
        moments = optimizer.state_dict()["state"]
        tensors += [torch.as_tensor(moments[i][key]) for i in sorted(moments) for key in sorted(moments[i])]
    return tensors


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


@pytest.mark.parametrize("stop_at", [1, 6, 13, 20])
def test_an_interrupted_run_ends_as_an_uninterrupted_one_to_the_bit(
    trainer_of: Make, tmp_path: Path, stop_at: int
) -> None:
    scores = {"n": 0.0}

    def evaluate() -> dict[str, float]:
        scores["n"] += 1
        return {"score": -abs(scores["n"] - 3)}

    settings = {"evaluate": evaluate, "best_metric": "score", "eval_every": 5}
    whole = trainer_of(tmp_path / "whole", **settings)
    whole.run()
    scores["n"] = 0.0

    class KilledError(Exception):
        pass

    def progress(stage: str, done: int, total: int | None) -> None:
        if done == stop_at and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KilledError

    cut = trainer_of(tmp_path / "cut", progress=progress, **settings)
    with pytest.raises(KilledError):
        cut.run()
    resumed_from = max(checkpoint.steps(tmp_path / "cut"), default=0)
    scores["n"] = float(resumed_from // 5)
    again = trainer_of(tmp_path / "cut", **settings)
    torch.rand(7)  # another process would not stand at the same random numbers
    result = again.run()
    assert result.steps == 23
    assert all(torch.equal(a, b) for a, b in zip(state_of(whole), state_of(again), strict=True))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")
    assert result.best_step == 15


def test_dropout_draws_from_the_runs_own_seed_and_leaves_the_callers_numbers_alone(trainer_of: Make) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = trainer_of()
    torch.manual_seed(9)
    first.run()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    second = trainer_of()
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(state_of(first), state_of(second), strict=True))


def test_the_best_parameters_are_put_back_and_patience_ends_the_run(trainer_of: Make) -> None:
    trainer = trainer_of(steps=40, eval_every=2, patience=3)
    seen: list[Tensor] = []

    def evaluate() -> dict[str, float]:
        seen.append(trainer.module.get_parameter("out.bias").detach().clone())
        return {"score": [0.1, 0.5, 0.9, 0.2, 0.3, 0.9][len(seen) - 1]}

    trainer.hooks = Hooks(evaluate=evaluate, best_metric="score")
    result = trainer.run()
    assert (result.stopped_by, result.best_step, result.steps) == ("patience", 6, 12)
    assert result.best_metrics == {"score": 0.9}
    assert torch.equal(trainer.module.get_parameter("out.bias"), seen[2])
    assert not torch.equal(seen[2], seen[5])


class Poisoned(nn.Module):
    """Gives NaN while poison is on."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.poison = nn.Linear(1, 3), 0

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        logits = self.out(tokens[:, :1].float())
        self.poison -= 1
        return torch.as_tensor(logits * float("nan") if self.poison >= 0 else logits)


def test_one_step_without_a_finite_loss_changes_nothing_and_names_its_rows(trainer_of: Make, tmp_path: Path) -> None:
    module = Poisoned()
    trainer = trainer_of(tmp_path, module=module, steps=5, micro_batch_size=8)
    module.poison = 2  # the first two steps
    before = module.out.weight.detach().clone()
    states = []
    trainer.progress = lambda stage, done, total: states.append(module.out.weight.detach().clone())
    assert trainer.run().steps == 5
    assert torch.equal(states[0], before) and torch.equal(states[1], before)
    assert not torch.equal(states[2], before)
    bad = [line for line in log_of(tmp_path) if line.get("non_finite")]
    assert [line["step"] for line in bad] == [1, 2]
    assert all(len(line["sample_ids"]) == 8 and line["loss"] is None for line in bad)


def test_three_in_a_row_end_the_run_and_no_sick_checkpoint_is_written(trainer_of: Make, tmp_path: Path) -> None:
    module = Poisoned()
    trainer = trainer_of(tmp_path, module=module, steps=20, micro_batch_size=8, checkpoint_every=1)
    trainer.progress = lambda stage, done, total: setattr(module, "poison", 99) if done == 3 else None
    with pytest.raises(NonFiniteError, match="step 6"):
        trainer.run()
    _, tensors, _ = checkpoint.load_newest(tmp_path) or (0, {}, {})
    assert tensors and all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
    with pytest.raises(NonFiniteError, match="weight"):
        checkpoint.save(tmp_path, 99, {"weight": torch.tensor([1.0, float("inf")])}, {})
    assert 99 not in checkpoint.steps(tmp_path)


def test_a_second_trainer_on_the_folder_is_refused(trainer_of: Make, tmp_path: Path) -> None:
    with checkpoint.alone(tmp_path), pytest.raises(CheckpointError, match="another trainer"):
        trainer_of(tmp_path).run()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"clip_norm": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**{"steps": 1, "batch_size": 1, "micro_batch_size": 1, "lr": 0.1, **wrong})


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import make
def slow(stage, done, total):
    import time
    print(done, flush=True)
    time.sleep(0.01)
make(Path({folder!r}), steps=100_000, checkpoint_every={every}, progress=slow).run()
"""


def child(folder: Path, every: int) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(here=str(Path(__file__).parent), folder=str(folder), every=every)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], steps: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= steps:
            return


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_saves_and_ends_in_order(tmp_path: Path) -> None:
    process = child(tmp_path, 1_000_000)
    try:
        wait_for(process, 5)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        last = int((process.stdout.read().split() or ["5"])[-1])
        assert process.wait(30) == 0
    finally:
        process.kill()
    newest = checkpoint.load_newest(tmp_path)
    assert newest is not None and abs(newest[0] - last) <= 1


def killed_saves(tmp_path: Path, make: Make, rounds: int) -> None:
    """Kill a trainer that saves at every step, again and again in one folder; every time it can go on."""
    reached = 0
    for number in range(rounds):
        process = child(tmp_path, 1)
        try:
            wait_for(process, reached + 2)
            time.sleep(0.003 * (number % 7))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        newest = checkpoint.load_newest(tmp_path)
        assert newest is not None
        assert newest[0] >= reached + 1, "more than one save interval was lost"
        reached = newest[0]
    make(tmp_path, steps=reached + 1).run()
    assert not list(tmp_path.glob(".step-*")), "what killed saves left is in nobody's way, and goes"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_kill_during_a_save_never_costs_more_than_one_interval(tmp_path: Path, trainer_of: Make) -> None:
    killed_saves(tmp_path, trainer_of, 4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills_leave_a_hundred_loadable_checkpoints(tmp_path: Path, trainer_of: Make) -> None:
    killed_saves(tmp_path, trainer_of, 100)


def normed(trainer_of: Make) -> nn.Module:
    """The small classifier with batch normalisation."""
    module: Any = trainer_of().module
    module.out = nn.Sequential(nn.BatchNorm1d(8), module.out)
    return module  # type: ignore[no-any-return]


def test_running_means_are_kept_in_checkpoints(tmp_path: Path, trainer_of: Make) -> None:
    whole = trainer_of(tmp_path / "whole", module=normed(trainer_of), micro_batch_size=8)
    whole.run()
    shutil.copytree(tmp_path / "whole" / "step-16", tmp_path / "resumed" / "step-16")
    resumed = trainer_of(tmp_path / "resumed", module=normed(trainer_of), micro_batch_size=8)
    resumed.run()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
