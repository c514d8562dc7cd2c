"""The one training loop: precision, clipping, schedule, evaluation, checkpoints, resume. The loss is the objective's."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.errors import NonFiniteError
from kiban.objectives.base import Objective
from kiban.train import checkpoint, optim, schedule, sharded
from kiban.train.average import Average
from kiban.train.blocks import compile_blocks, recompute
from kiban.train.log import Log, Meter, digest
from kiban.train.moments import make_room, moments, random_state, set_random_state
from kiban.train.parallel import Parallel
from kiban.train.precision import choose, matrix_rate
from kiban.train.settings import Hooks, State, TrainConfig, TrainResult

MAX_BAD_STEPS = 3


class Trainer:
    """Trains the parameters of module that require gradients.

    folder: where metrics.jsonl and checkpoints go; a run that was interrupted there is continued exactly.
    flops_per_token: floating-point operations of a training step per token, to tell how well the machine is used.
    """

    def __init__(
        self,
        objective: Objective,
        module: nn.Module,
        loader: Loader[Any],
        config: TrainConfig,
        *,
        folder: Path | None = None,
        hooks: Hooks | None = None,
        flops_per_token: float = 0.0,
        parallel: Parallel | None = None,
        progress: Progress = silent,
    ) -> None:
        self.objective, self.module, self.loader, self.config = objective, module, loader, config
        self.folder, self.hooks, self.flops_per_token = folder, hooks or Hooks(), flops_per_token
        self.parallel = parallel or Parallel()
        self.progress = progress if self.parallel.rank == 0 else silent
        self.parallel.accept(objective.coupled, len(loader.rows), loader.batch_size)
        if config.recompute:
            recompute(module)
        if config.compile:
            compile_blocks(module)
        self.parallel.apply(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        kept = module.state_dict().keys()  # a running mean is kept, a buffer that can be computed again is not
        self.buffers = {name: b for name, b in module.named_buffers() if name in kept}
        self.optimizers = optim.optimizers(
            config.optimizer, module, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas
        )
        self.average = Average(self.parameters, config.ema) if config.ema else None
        self.precision = choose(config.precision, module)
        self.device = next(iter(self.parameters.values())).device
        self.state = State(steps=config.steps)
        self.best: dict[str, Tensor] = {}
        self.stop_asked = False
        self.meter = Meter()
        self.log = Log(folder / "metrics.jsonl" if folder and self.parallel.rank == 0 else None)

    def run(self) -> TrainResult:
        """Train to the end, or to the point where an early stop or SIGTERM ends it.

        Raises NonFiniteError after three steps in a row without a finite gradient, CheckpointError on a full disk.
        """
        stopped: Literal["steps", "patience", "sigterm"] = "steps"
        lock = checkpoint.alone(self.folder, self.parallel) if self.folder else nullcontext()
        devices = [self.device] if self.device.type == "cuda" else []
        # The caller's random numbers are left as they were.
        with self.parallel.together(), lock, torch.random.fork_rng(devices), self._sigterm():
            torch.manual_seed(self.config.seed + self.parallel.place)
            self._resume()
            self.started = time.perf_counter() - self.state.seconds
            while self.state.step < self.state.steps:
                self._step()
                if self._pause():
                    stopped = "patience"
                    break
                # After the evaluation, which a resumed run would not make up for.
                if self.parallel.any(self.stop_asked):
                    self._checkpoint()
                    stopped = "sigterm"
                    break
                if self._due(self.config.checkpoint_every):
                    self._checkpoint()
                self._replan()
            if stopped != "sigterm":
                self._settle()
        self.module.eval()
        return TrainResult(
            steps=self.state.step,
            tokens=self.state.tokens,
            best_step=self.state.best_step or self.state.step,
            best_metrics=self.state.best_metrics,
            seconds=time.perf_counter() - self.started,
            stopped_by=stopped,
        )

    def _due(self, every: int) -> bool:
        return bool(every) and self.state.step % every == 0

    def _replan(self) -> None:
        """Move the planned end so that the time budget is kept, until the rate begins to fall."""
        config, state = self.config, self.state
        state.seconds = time.perf_counter() - self.started
        if not config.seconds or state.step >= state.steps * (1 - schedule.DECAY):
            return
        if state.step == 1:
            state.first_seconds = state.seconds  # it may have compiled, and tells nothing about the others
            return
        each = (state.seconds - state.first_seconds) / (state.step - 1)
        left = int((config.seconds - state.seconds) / each)
        state.steps = min(self.parallel.first(state.step + max(1, left)), config.most_steps or 2**62)

    # One step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        config, state = self.config, self.state
        self.module.train()
        rate = config.lr * schedule.factor(config.schedule, state.step, steps=state.steps, warmup=config.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        ids = self.loader.next_ids()
        loss, metrics, tokens = self._gradients(ids)
        norm = self.parallel.clip(list(self.parameters.values()), config.clip_norm)
        state.step += 1
        state.tokens += tokens
        if math.isfinite(norm) and math.isfinite(loss):
            for optimizer in self.optimizers:
                optimizer.step()
            state.bad_steps = 0
            if self.average:
                self.average.update(state.step)
            self._tell(ids, loss, {**metrics, "lr": rate, "grad_norm": norm}, tokens)
        else:
            self._bad_step(ids)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _gradients(self, ids: list[int]) -> tuple[float, dict[str, float], int]:
        """Add up the gradient of the mean loss over a batch, part by part; returns mean loss, metrics and tokens.

        Several processes share the batch, and every one of them ends with the gradient of the whole.
        """
        size = len(ids) if self.objective.coupled else self.config.micro_batch_size
        shares = self.parallel.share(ids, size)
        parts = [(self.loader.batch(rows), weight) for rows, weight in shares]
        counts = [
            sum(weight * float(count(part)) for part, weight in parts) for count in (self.objective.count, _tokens)
        ]
        count, tokens = self.parallel.sum(counts)
        sums: dict[str, float] = {"loss": 0.0}
        for number, (part, weight) in enumerate(parts, 1):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                batch = self._to_device(part)
                loss = self.parallel.loss(self.module, self.objective, batch, last=number == len(parts))
            (loss.total * (weight / max(count, 1.0))).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total.detach(), **loss.metrics}.items():
                sums[name] = sums.get(name, 0.0) + weight * float(value)
        self.parallel.reduce(list(self.parameters.values()))
        values = self.parallel.sum([sums[name] for name in sorted(sums)])
        means = {name: value / max(count, 1.0) for name, value in zip(sorted(sums), values, strict=True)}
        return means.pop("loss"), means, int(tokens)

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _tell(self, ids: list[int], loss: float, values: Mapping[str, float], tokens: int) -> None:
        """A line of the log, and what the progress bar says."""
        speed = self.meter.rate(tokens)
        facts = {"loss": loss, **values, "tokens": self.state.tokens, "tokens_per_s": speed, "rows": digest(ids)}
        words = [f"loss {loss:.3f}", f"{speed:,.0f} tokens/s"]
        if self.flops_per_token:
            flops = speed * self.flops_per_token
            share = flops / (self.parallel.world * matrix_rate(self.device.type, self.precision))
            facts |= {"flops_per_s": flops, "matrix_rate_share": share}
            words.append(f"{flops / 1e9:,.0f} GFLOP/s, {share:.0%} of what its matrix products reach")
        self.log.write(self.state.step, facts)
        self.progress(f"train | {', '.join(words)}", self.state.step, self.state.steps)

    def _bad_step(self, ids: list[int]) -> None:
        """Leave the weights alone, tell which rows it was, and give up after three in a row."""
        self.state.bad_steps += 1
        self.log.write(self.state.step, {"loss": None, "non_finite": True, "sample_ids": ids})
        self.progress("train | the loss is not finite", self.state.step, self.state.steps)
        if self.state.bad_steps >= MAX_BAD_STEPS:
            why = f"no finite loss and gradient in {MAX_BAD_STEPS} steps in a row, the last on rows {ids[:8]}"
            raise NonFiniteError(
                f"training step {self.state.step}", why=why, hint="lower the learning rate, look at the rows"
            )

    # Evaluation -----------------------------------------------------------------------------------------------------

    def _pause(self) -> bool:
        """Evaluate and sample where it is due; True if patience has run out."""
        last, out_of_patience = self.state.step == self.state.steps, False
        evaluate = self.hooks.evaluate and self.config.eval_every and (last or self._due(self.config.eval_every))
        sample = self.hooks.sample and self._due(self.config.sample_every)
        if not (evaluate or sample):
            return False
        self.module.eval()
        with self.average.applied() if self.average else nullcontext():
            if evaluate:
                out_of_patience = self._evaluate()
            if sample:
                assert self.hooks.sample is not None
                self.log.write(self.state.step, {"sample": self.parallel.inside(self.module, self.hooks.sample)})
        self.meter.restart()
        return out_of_patience

    def _evaluate(self) -> bool:
        """Evaluate, remember the best parameters; True if patience has run out."""
        assert self.hooks.evaluate is not None
        metrics = self.parallel.inside(self.module, self.hooks.evaluate)
        self.log.write(self.state.step, {f"eval_{name}": value for name, value in metrics.items()})
        name = self.hooks.best_metric
        if name is None:
            return False
        before = self.state.best_metrics.get(name)
        if before is None or metrics[name] > before:
            self.state.best_step, self.state.best_metrics, self.state.waited = self.state.step, metrics, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self._held().items()}
        else:
            self.state.waited += 1
        return bool(self.config.patience) and self.state.waited >= self.config.patience

    @torch.no_grad()
    def _settle(self) -> None:
        """Leave the parameters that the run is for: the best, else the averaged, else the last."""
        if self.average and not self.best:
            self.average.put()
        held = self._held()
        for name, value in self.best.items():
            held[name].copy_(value)

    # Files ----------------------------------------------------------------------------------------------------------

    def _held(self) -> dict[str, Tensor]:
        """What training changes of the module."""
        return {**self.parameters, **self.buffers}

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name; a resumed run reads into it."""
        tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in self._held().items()}
        tensors |= {f"best.{name}": p for name, p in self.best.items()}
        if self.average:
            tensors |= {f"average.{name}": p for name, p in self.average.values.items()}
        return tensors | moments(self.optimizers, self.parameters)

    def _checkpoint(self) -> None:
        if self.folder is None:
            return
        tensors = {**self._tensors(), "random": self.parallel.gather(random_state(self.device))}
        self.state.seconds = time.perf_counter() - self.started
        state = {"trainer": self.state.__dict__, "loader": self.loader.state()}
        checkpoint.save(self.folder, self.state.step, tensors, state, self.parallel)
        self.meter.restart()

    @torch.no_grad()
    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, to the bit; later lines of metrics.jsonl are dropped.

        Another number of processes goes on with the same parameters and the same rows, but other random numbers.
        """
        found = checkpoint.newest(self.folder, self.parallel) if self.folder else None
        self.log.cut(found[1]["trainer"]["step"] if found else 0)
        if found is None:
            return
        path, state = found
        shapes = sharded.shapes(path)
        make_room(self.optimizers, self.parameters, shapes)
        self.best = {n: torch.zeros_like(t) for n, t in self._held().items() if f"best.{n}" in shapes}
        random = torch.zeros(shapes["random"][0], dtype=torch.uint8)
        sharded.read(path, {**self._tensors(), "random": random})
        self.loader.load_state(state["loader"])
        planned = state["trainer"] if self.config.seconds else {**state["trainer"], "steps": self.config.steps}
        self.state = State(**planned)
        if len(random) == self.parallel.world:
            set_random_state(random[self.parallel.rank], self.device)
        else:
            torch.manual_seed(self.config.seed + self.parallel.place + 1000 * self.state.step)

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


def _tokens(batch: Mapping[str, Tensor]) -> int:
    """Tokens that a batch asks the model to read; 0 where it holds none. The last of a packed row is only predicted."""
    if "documents" in batch:
        return batch["documents"][:, 1:].numel()
    return int(batch["mask"].sum()) if "mask" in batch else batch["tokens"].numel() if "tokens" in batch else 0
