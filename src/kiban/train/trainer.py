"""The one training loop: precision, clipping, schedule, evaluation, checkpoints, resume. The loss is the objective's."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.errors import ConfigError, NonFiniteError
from kiban.objectives.base import Objective
from kiban.train import checkpoint, schedule
from kiban.train.optim import adamw
from kiban.train.precision import Precision, choose

MAX_BAD_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Batches are counted in rows; micro_batch_size bounds memory and changes nothing else.

    warmup: share of the steps. eval_every, checkpoint_every: steps, 0 for never. patience: evaluations without a better
    best_metric before it stops, 0 for no early stop.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    lr: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.1
    schedule: str = "linear"
    clip_norm: float = 1.0
    precision: Precision = "auto"
    eval_every: int = 0
    patience: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError("training", field=name, why="must be at least 1")
        if not self.lr > 0 or not self.clip_norm > 0:
            raise ConfigError("training", field="lr", why="lr and clip_norm must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How training ended. best_step and best_metrics are of the parameters that the module now holds."""

    steps: int
    best_step: int
    best_metrics: dict[str, float]
    seconds: float
    stopped_by: Literal["steps", "patience", "sigterm"]


@dataclass
class _State:
    step: int = 0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    bad_steps: int = 0
    waited: int = 0


class Trainer:
    """Trains the parameters of module that require gradients.

    folder: where metrics.jsonl and checkpoints go; a run that was interrupted there is continued exactly. evaluate gives
    metrics; with best_metric (larger is better) the best parameters are put back at the end.
    """

    def __init__(
        self,
        objective: Objective,
        module: nn.Module,
        loader: Loader[Any],
        config: TrainConfig,
        *,
        folder: Path | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        best_metric: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.objective, self.module, self.loader, self.config = objective, module, loader, config
        self.folder, self.evaluate, self.best_metric, self.progress = folder, evaluate, best_metric, progress
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = adamw(module, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
        self.precision = choose(config.precision, module)
        self.device = next(iter(self.parameters.values())).device
        self.state = _State()
        self.best: dict[str, Tensor] = {}
        self.stop_asked = False

    def run(self) -> TrainResult:
        """Train to the end, or to the point where an early stop or SIGTERM ends it.

        Raises NonFiniteError after three steps in a row without a finite gradient, CheckpointError on a full disk.
        """
        start, stopped = time.perf_counter(), "steps"
        lock = checkpoint.alone(self.folder) if self.folder else nullcontext()
        # The caller's random numbers are left as they were.
        with lock, torch.random.fork_rng(devices=[]), self._sigterm():
            torch.manual_seed(self.config.seed)
            self._resume()
            while self.state.step < self.config.steps:
                self._step()
                every = self.config.eval_every
                last = self.state.step == self.config.steps
                if self.evaluate and every and (self.state.step % every == 0 or last) and self._evaluate():
                    stopped = "patience"
                    break
                if self.stop_asked:  # after the evaluation, which a resumed run would not make up for
                    self._checkpoint()
                    stopped = "sigterm"
                    break
                if self.config.checkpoint_every and self.state.step % self.config.checkpoint_every == 0:
                    self._checkpoint()
            if stopped != "sigterm":
                self._restore_best()
        self.module.eval()
        return TrainResult(
            steps=self.state.step,
            best_step=self.state.best_step or self.state.step,
            best_metrics=self.state.best_metrics,
            seconds=time.perf_counter() - start,
            stopped_by=stopped,  # type: ignore[arg-type]
        )

    # One step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        config, started = self.config, time.perf_counter()
        self.module.train()
        rate = config.lr * schedule.factor(config.schedule, self.state.step, steps=config.steps, warmup=config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids = self.loader.next_ids()
        loss, metrics = self._gradients(ids)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.clip_norm)
        self.state.step += 1
        if not bool(torch.isfinite(norm)) or loss != loss or abs(loss) == float("inf"):
            self._bad_step(ids, loss)
        else:
            self.optimizer.step()
            self.state.bad_steps = 0
            seconds = time.perf_counter() - started
            self._log({"loss": loss, **metrics, "lr": rate, "grad_norm": float(norm), "rows_per_s": len(ids) / seconds})
        self.optimizer.zero_grad(set_to_none=True)
        self.progress("train", self.state.step, config.steps)

    def _gradients(self, ids: list[int]) -> tuple[float, dict[str, float]]:
        """Add up the gradient of the mean loss over a batch, part by part; returns the mean loss and metrics."""
        size = len(ids) if self.objective.coupled else self.config.micro_batch_size
        parts = [self._to_device(self.loader.batch(ids[i : i + size])) for i in range(0, len(ids), size)]
        count = float(sum(self.objective.count(part) for part in parts))
        total, sums = 0.0, dict[str, float]()
        for part in parts:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.objective(part)
            (loss.total / max(count, 1.0)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.total.detach())
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return total / max(count, 1.0), {name: value / max(count, 1.0) for name, value in sums.items()}

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _bad_step(self, ids: list[int], loss: float) -> None:
        """Leave the weights alone, tell which rows it was, and give up after three in a row."""
        self.state.bad_steps += 1
        self._log({"loss": None, "non_finite": True, "sample_ids": ids})
        if self.state.bad_steps >= MAX_BAD_STEPS:
            why = f"no finite loss and gradient in {MAX_BAD_STEPS} steps in a row, the last on rows {ids[:8]}"
            raise NonFiniteError(
                f"training step {self.state.step}", why=why, hint="lower the learning rate, look at the rows"
            )

    # Evaluation -----------------------------------------------------------------------------------------------------

    def _evaluate(self) -> bool:
        """Evaluate, remember the best parameters; True if patience has run out."""
        assert self.evaluate is not None
        self.module.eval()
        metrics = self.evaluate()
        self._log({f"eval_{name}": value for name, value in metrics.items()})
        if self.best_metric is None:
            return False
        before = self.state.best_metrics.get(self.best_metric)
        if before is None or metrics[self.best_metric] > before:
            self.state.best_step, self.state.best_metrics, self.state.waited = self.state.step, metrics, 0
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            self.state.waited += 1
        return bool(self.config.patience) and self.state.waited >= self.config.patience

    def _restore_best(self) -> None:
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    # Files ----------------------------------------------------------------------------------------------------------

    def _log(self, values: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.state.step, **values}) + "\n")

    def _checkpoint(self) -> None:
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in self.parameters.items()}
        tensors |= {f"best.{name}": p for name, p in self.best.items()}
        moments = self.optimizer.state_dict()["state"]
        for index, entry in moments.items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
        tensors["rng"] = torch.get_rng_state()
        checkpoint.save(
            self.folder, self.state.step, tensors, {"trainer": self.state.__dict__, "loader": self.loader.state()}
        )

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, to the bit; later lines of metrics.jsonl are dropped."""
        found = checkpoint.load_newest(self.folder) if self.folder else None
        if found is None:
            if self.folder is not None:
                (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return
        step, tensors, state = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
        self.best = {n.removeprefix("best."): t.clone() for n, t in tensors.items() if n.startswith("best.")}
        whole = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                whole["state"].setdefault(int(index), {})[key] = tensor.clone()
        self.optimizer.load_state_dict(whole)
        self.loader.load_state(state["loader"])
        self.state = _State(**state["trainer"])
        torch.set_rng_state(tensors["rng"])
        assert self.folder is not None
        self._cut_log(self.folder / "metrics.jsonl", step)

    @staticmethod
    def _cut_log(path: Path, step: int) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the line that a kill cut
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    @contextmanager
    def _sigterm(self) -> Iterator[None]:
        """Turn SIGTERM into a checkpoint and an orderly end. Only the main thread can listen to signals."""
        if threading.current_thread() is not threading.main_thread() or self.folder is None:
            yield
            return

        def ask(signum: int, frame: Any) -> None:
            self.stop_asked = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
