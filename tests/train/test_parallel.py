"""Two processes compute what one does: gradients, whole runs, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kiban.errors import ConfigError
from kiban.train import checkpoint
from kiban.train.parallel import Parallel, parallel_of
from kiban.train.parallel.processes import BUCKET_BYTES, Processes, _buckets

sys.path.insert(0, str(Path(__file__).parent))
import worker

KINDS = {"ddp": ("ddp", 1), "fsdp": ("fsdp", 1), "tensor parallel": ("fsdp", 2)}
RUN = {"ema": 0.8, "watch": True, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave: gradients of every kind, and a run of every kind for both families and optimisers."""
    folder = tmp_path_factory.mktemp("two")
    jobs: list[worker.Job] = [("gradients", folder, {"kinds": list(KINDS.values())})]
    for name, (kind, width) in KINDS.items():
        for family, optimizer in (("gpt", "adamw"), ("llama", "muon")):
            settings = {"kind": kind, "width": width, "family": family, "optimizer": optimizer, **RUN}
            jobs.append(("language", folder / f"{name} {family}", settings))
    output = folder / "output.txt"
    worker.finish(worker.torchrun(jobs, output=output), output)
    return folder


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("batch", worker.BATCHES)
def test_two_processes_have_the_gradient_of_one(found: Path, name: str, family: str, batch: str) -> None:
    """1 x 8 = 2 x 4 = 8 x 1 = two processes, also where they have unequal numbers of rows, or none."""
    kind, width = KINDS[name]
    same_gradient(load_file(found / "found.safetensors"), f"{kind}{width}/{family}/{batch}/", family, batch)


def same_gradient(theirs: dict[str, Tensor], front: str, family: str, batch: str) -> None:
    two = {key.removeprefix(front): tensor for key, tensor in theirs.items() if key.startswith(front)}
    for size in (8, 4, 1):
        trainer = worker.language_model(family, Parallel(), micro_batch_size=size)
        one = worker.gradients(trainer, worker.BATCHES[batch])
        assert set(one) == set(two)
        for key, gradient in one.items():
            torch.testing.assert_close(two[key], gradient, atol=1e-6, rtol=1e-5)
    assert one["norm"] > 1.0


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_a_run_of_two_processes_is_that_of_one(found: Path, tmp_path: Path, name: str, family: str) -> None:
    """Losses, norms, rows, held-out scores of the averaged parameters, and the best ones that are kept in the end."""
    optimizer = "adamw" if family == "gpt" else "muon"
    trainer = worker.language_model(family, Parallel(), tmp_path, optimizer=optimizer, **RUN)
    result = trainer.run()
    two, one = lines(found / f"{name} {family}"), lines(tmp_path)
    assert len(two) == len(one) == 9
    # Muon's products are in bf16: two runs of one process that cut their batches otherwise end 2e-2 apart. A gradient that
    # is 0, as that of the bias of keys, is all rounding, and AdamW takes a whole step along it.
    near = 1e-5 if optimizer == "adamw" else 1e-3
    for theirs, ours in zip(two, one, strict=True):
        assert theirs.keys() == ours.keys()
        for key, value in ours.items():
            if key != "tokens_per_s":
                tolerance = 100 * near if key == "grad_norm" else near
                assert theirs[key] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value)
    steps, stopped, _, best = json.loads((found / f"{name} {family}" / "end.json").read_text())
    assert (steps, stopped, best) == (6, "steps", result.best_step)
    state = load_file(found / f"{name} {family}" / "state.safetensors")
    assert state.keys() == trainer.module.state_dict().keys()
    for key, tensor in trainer.module.state_dict().items():
        if not key.endswith("attn.k.bias"):
            assert (state[key] - tensor).norm() <= (2e-3 if optimizer == "adamw" else 5e-2) * tensor.norm() + 1e-4


def test_four_processes_in_a_square_share_rows_and_widths(tmp_path: Path) -> None:
    """Two pairs: a matrix is cut by heads and then again by rows. Gradients, their norm, and a checkpoint in parts."""
    output = tmp_path / "output.txt"
    run = {"kind": "fsdp", "width": 2, "family": "gpt", "checkpoint_every": 3, "stop_at": 3}
    jobs: list[worker.Job] = [("gradients", tmp_path, {"kinds": [("fsdp", 2)]}), ("language", tmp_path / "run", run)]
    worker.finish(worker.torchrun(jobs, output=output, processes=4), output)
    for family in ("gpt", "llama"):
        for batch in worker.BATCHES:
            same_gradient(load_file(tmp_path / "found.safetensors"), f"fsdp2/{family}/{batch}/", family, batch)
    _, tensors, _ = checkpoint.load_newest(tmp_path / "run") or (0, {}, {})
    for name, tensor in load_file(tmp_path / "run" / "state.safetensors").items():
        if name != "head.weight":  # the embeddings again
            assert torch.equal(tensors[f"model.{name}"], tensor)
    alone = worker.language_model("gpt", Parallel(), tmp_path / "alone")
    alone.run()
    rest = worker.language_model("gpt", Parallel(), tmp_path / "run")
    rest.run()
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("run", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Fake(Processes):
    """A process that was told where it stands."""

    def __init__(self, place: int, places: int) -> None:
        self.place, self.places, self.world = place, places, places


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_row_has_one_process_and_all_have_as_many_parts(count: int, places: int, size: int) -> None:
    ids = list(range(100, 100 + count))
    shares = [Fake(place, places).share(ids, size) for place in range(places)]
    assert sorted(row for share in shares for rows, weight in share for row in rows if weight) == ids
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(rows) <= size for share in shares for rows, _ in share)


def test_gradients_travel_in_order_and_together_up_to_a_size() -> None:
    many = [torch.zeros(BUCKET_BYTES // 8) for _ in range(5)]  # half a bucket each
    mixed: list[Tensor] = [*many, torch.zeros(3, dtype=torch.float64), torch.zeros(2 * BUCKET_BYTES), torch.zeros(1)]
    buckets = _buckets(mixed)
    assert [len(bucket) for bucket in buckets] == [2, 2, 1, 1, 1, 1]
    flat = [tensor for bucket in buckets for tensor in bucket]
    assert [id(tensor) for tensor in flat] == [id(tensor) for tensor in mixed]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for kind in ("auto", "none", "ddp", "fsdp"):
        parallel = parallel_of(kind)  # type: ignore[arg-type]
        assert (type(parallel), parallel.world) == (Parallel, 1)
    with pytest.raises(ConfigError, match="torchrun"):
        parallel_of("fsdp", tensor_parallel=2)


def test_what_cannot_be_combined_is_refused(monkeypatch: pytest.MonkeyPatch, trainer_of: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ConfigError, match="4 does not divide the 6"):
        parallel_of("fsdp", tensor_parallel=4)
    with pytest.raises(ConfigError, match='use "fsdp"'):
        parallel_of("ddp", tensor_parallel=2)
    with pytest.raises(ConfigError, match="started 6"):
        parallel_of("none")
    trainer = trainer_of()
    trainer.objective.coupled = True
    with pytest.raises(ConfigError, match="interact"):
        type(trainer)(trainer.objective, trainer.module, trainer.loader, trainer.config, parallel=Fake(0, 2))
    trainer.objective.coupled = "gathered"
    type(trainer)(trainer.objective, trainer.module, trainer.loader, trainer.config, parallel=Fake(0, 2))
    with pytest.raises(ConfigError, match="batch of 6 rows for 7"):  # 30 rows in batches of 8
        type(trainer)(trainer.objective, trainer.module, trainer.loader, trainer.config, parallel=Fake(0, 7))
