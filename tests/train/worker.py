"""What processes do in tests: `torchrun worker.py '[["TASK", "FOLDER", {"settings": ...}], ...]'`, one after the other."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from conftest import make
from kiban import zoo
from kiban.data.loader import Loader
from kiban.errors import KibanError
from kiban.inputs.batch import pad_batch
from kiban.objectives.base import Loss
from kiban.objectives.causal_lm import CausalLM
from kiban.train import checkpoint
from kiban.train.parallel import Parallel, parallel_of
from kiban.train.settings import Hooks, TrainConfig
from kiban.train.trainer import Trainer

Job = tuple[str, Path, dict[str, Any]]
BATCHES = {"even": list(range(8)), "uneven": list(range(7)), "one row": [3]}  # the last leaves a process without any


def texts(count: int = 26) -> list[list[int]]:
    """Rows of 2 to 20 tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(2, 21, (count,), generator=generator).tolist()
    return [torch.randint(0, 250, (length,), generator=generator).tolist() for length in lengths]


def collate(some: list[list[int]]) -> dict[str, Tensor]:
    tokens, mask = pad_batch(some, 0)
    return {"tokens": tokens, "mask": mask}


def language_model(family: str, parallel: Parallel, folder: Path | None = None, **changes: Any) -> Trainer:
    """A trainer of a tiny decoder. Every process begins with other weights, which must not matter.

    watch: measure held-out rows on the way, and keep the best. stop_at: a step after which the first process wants to stop.
    """
    found = zoo.families()[family]
    module = found.build(found.presets[f"{family}-tiny"])
    zoo.initialise(module, torch.Generator().manual_seed(parallel.rank))
    watch, stop_at = changes.pop("watch", False), changes.pop("stop_at", None)
    values = {"steps": 6, "batch_size": 8, "micro_batch_size": 3, "lr": 0.01, "precision": "fp32", **changes}
    objective = CausalLM(module, z_loss=1e-3)

    @torch.inference_mode()
    def evaluate() -> dict[str, float]:
        loss = float(objective(collate(texts(30)[26:])).total)
        return {"score": -loss, "rank": parallel.rank}

    def progress(stage: str, done: int, total: int | None) -> None:
        trainer.stop_asked = done == stop_at

    trainer = Trainer(
        objective,
        module,
        Loader(texts(), collate, batch_size=8, seed=1),
        TrainConfig(**values, eval_every=2 if watch else 0),
        folder=folder,
        parallel=parallel,
        hooks=Hooks(evaluate=evaluate, best_metric="score") if watch else None,
        progress=progress,
    )
    return trainer


def complete(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def digest(trainer: Trainer) -> str:
    """A hash of the parameters."""
    total = hashlib.sha256()
    for _, p in sorted(trainer.parameters.items()):
        total.update(complete(p).contiguous().numpy().tobytes())
    return total.hexdigest()


def gradients(trainer: Trainer, ids: list[int]) -> dict[str, Tensor]:
    """Gradients of a batch, their "norm", and the "loss"."""
    trainer.module.train()
    loss = trainer._gradients(ids)[0]
    found = {name: complete(p.grad).clone() for name, p in trainer.parameters.items() if p.grad is not None}
    found["norm"] = torch.tensor(trainer.parallel.clip(list(trainer.parameters.values()), 1e9))
    return {**found, "loss": torch.tensor(loss)}


def all_gradients(folder: Path, settings: dict[str, Any]) -> None:
    """Of each kind, family and batch, by names with slashes."""
    found = {}
    for kind, width in settings["kinds"]:
        for family in ("gpt", "llama"):
            parallel = parallel_of(kind, tensor_parallel=width)
            for name, ids in BATCHES.items():
                for key, tensor in gradients(language_model(family, parallel), ids).items():
                    found[f"{kind}{width}/{family}/{name}/{key}"] = tensor.contiguous()
    if parallel.rank == 0:
        save_file(found, folder / "found.safetensors")


def language_run(folder: Path, settings: dict[str, Any]) -> None:
    """A run of a tiny decoder; the first process leaves its hash and its whole state."""
    parallel = parallel_of(settings.pop("kind"), tensor_parallel=settings.pop("width", 1))
    trainer = language_model(settings.pop("family"), parallel, folder, **settings)
    result = trainer.run()
    hashed, state = digest(trainer), parallel.whole(trainer.module)
    if parallel.rank == 0:
        (folder / "end.json").write_text(json.dumps([result.steps, result.stopped_by, hashed, result.best_step]))
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "state.safetensors")


def classifier_run(folder: Path, settings: dict[str, Any]) -> None:
    """A run of the small classifier, with dropout; every process leaves its id, and the hash that it ends with.

    slow: seconds that a step takes longer.
    """
    parallel = parallel_of(settings.pop("kind"))
    (folder / f"pid-{parallel.rank}").write_text(str(os.getpid()))
    slow = settings.pop("slow", 0.0)

    def progress(stage: str, done: int, total: int | None) -> None:
        (folder / "step").write_text(str(done))
        time.sleep(slow)

    trainer = make(folder, parallel=parallel, progress=progress, **settings)
    result = trainer.run()
    leave(folder, parallel, [result.steps, result.stopped_by, digest(trainer)])


def poisoned(folder: Path, settings: dict[str, Any]) -> None:
    """In the second process the loss is NaN in steps 2, 4, 5 and 6. Leaves hashes after each step, and the error."""
    parallel = parallel_of(settings["kind"])
    trainer = make(folder, parallel=parallel, micro_batch_size=8, schedule="constant", warmup=0.0)
    compute, hashes = trainer.parallel.loss, [digest(trainer)]

    def loss(*args: Any, **names: Any) -> Loss:
        found = compute(*args, **names)
        bad = parallel.rank == 1 and trainer.state.step + 1 in (2, 4, 5, 6)
        return Loss(found.total * float("nan"), found.metrics) if bad else found

    parallel.loss = loss  # type: ignore[method-assign]
    step = trainer._step

    def watched() -> None:
        try:
            step()
        finally:
            hashes.append(digest(trainer))

    trainer._step = watched  # type: ignore[method-assign]
    leave(folder, parallel, [hashes, error_of(trainer)])


def held(folder: Path, settings: dict[str, Any]) -> None:
    """A run where another trainer works."""
    parallel = parallel_of(settings["kind"])
    with checkpoint.alone(folder) if parallel.rank == 0 else nullcontext():
        leave(folder, parallel, error_of(make(folder, parallel=parallel)))


def full(folder: Path, settings: dict[str, Any]) -> None:
    """The disk is full after the first checkpoint, for the second process or, where that does not write, the first."""
    parallel = parallel_of(settings["kind"])
    real = os.fsync

    def fsync(handle: int) -> None:
        if trainer.state.step > 4 and parallel.rank == int(parallel.sharded):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    trainer = make(folder, parallel=parallel)
    os.fsync = fsync  # of a process that ends soon
    try:
        leave(folder, parallel, error_of(trainer))
    finally:
        os.fsync = real


def error_of(trainer: Trainer) -> str:
    """How a run fails."""
    try:
        trainer.run()
    except KibanError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def leave(folder: Path, parallel: Parallel, end: Any) -> None:
    (folder / f"end-{parallel.rank}.json").write_text(json.dumps(end))
    parallel.first(0)  # the next job may change the process


TASKS = {
    "poisoned": poisoned,
    "held": held,
    "full": full,
    "gradients": all_gradients,
    "language": language_run,
    "classifier": classifier_run,
}


def torchrun(jobs: list[Job], *options: str, output: Path, processes: int = 2) -> subprocess.Popen[bytes]:
    """Processes that do the jobs; what they print goes to output."""
    for _, folder, _ in jobs:
        folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = json.dumps([(task, str(folder), settings) for task, folder, settings in jobs])
    with output.open("wb") as file:
        return subprocess.Popen([*command, *options, __file__, words], stdout=file, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], output: Path, *, seconds: float = 200) -> None:
    """Wait until they end well, or fail with what they printed."""
    try:
        assert process.wait(seconds) == 0, output.read_text("utf-8", errors="replace")[-4000:]
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its processes; by force if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task, place, given in json.loads(sys.argv[1]):
        TASKS[task](Path(place), given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
