"""The chunked loss equals torch's on whole logits, in value and gradient, and never holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kiban.objectives.linear_cross_entropy import _Work, linear_cross_entropy

N, D, V = 23, 12, 37


def case(
    *, bias: bool = True, ignored: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """hidden, weight, targets, bias; every third target is ignored."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, offset = (torch.randn(*shape, generator=g, dtype=dtype) for shape in ((N, D), (V, D), (V,)))
    targets = torch.randint(V, (N,), generator=g)
    if ignored:
        targets[::3] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets, offset.requires_grad_() if bias else None


def whole(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, z_loss: float) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias).float() if hidden.dtype != torch.float64 else F.linear(hidden, weight, bias)
    z = z_loss * logits.logsumexp(-1)[targets != -100].square().sum()
    return F.cross_entropy(logits, targets, reduction="sum") + z, z


def gradients(total: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(total, [t for t in inputs if t is not None]))


@pytest.mark.parametrize("way", ["cpu", "gpu"])
@pytest.mark.parametrize("chunk", [None, 1, 4, N, 1000])
@pytest.mark.parametrize(("bias", "ignored", "z_loss"), [(True, True, 0.1), (False, False, 0.0), (False, True, 1e-4)])
def test_it_equals_the_loss_of_whole_logits(
    way: str, chunk: int | None, bias: bool, ignored: bool, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "gpu":  # the steps that a GPU takes
        monkeypatch.setattr(_Work, "_in_place", _Work._on_gpu)
    hidden, weight, targets, offset = case(bias=bias, ignored=ignored)
    total, z, _ = linear_cross_entropy(hidden, weight, targets, bias=offset, z_loss=z_loss, chunk=chunk)
    expected, expected_z = whole(hidden, weight, targets, offset, z_loss)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(z, expected_z.detach())
    assert not z.requires_grad
    found = gradients(total / 7, hidden, weight, offset)
    for ours, theirs in zip(found, gradients(expected / 7, hidden, weight, offset), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(z_loss: float) -> None:
    hidden, weight, targets, bias = case(dtype=torch.float64)
    assert bias is not None
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, z_loss=z_loss, chunk=5)[0], (hidden, weight, bias)
    )


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_under_autocast_products_are_bfloat16_and_the_softmax_is_not(z_loss: float) -> None:
    hidden, weight, targets, bias = case()
    exact = gradients(whole(hidden, weight, targets, bias, z_loss)[0], hidden, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        total, z, _ = linear_cross_entropy(hidden, weight, targets, bias=bias, z_loss=z_loss, chunk=6)
        expected, _ = whole(hidden, weight, targets, bias, z_loss)
    assert total.dtype == z.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=4e-3, atol=0.0)
    for ours, theirs, true in zip(
        gradients(total, hidden, weight, bias), gradients(expected, hidden, weight, bias), exact, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - true).norm() < 0.02 * true.norm()
        assert (ours - true).norm() < 1.5 * (theirs - true).norm()


def test_the_weights_of_a_model_in_bfloat16_get_gradients_in_bfloat16() -> None:
    hidden, weight, targets, _ = case(bias=False)
    narrow = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    found = gradients(linear_cross_entropy(*narrow, targets, chunk=5)[0], *narrow)
    for ours, true in zip(found, gradients(whole(hidden, weight, targets, None, 0.0)[0], hidden, weight), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - true).norm() < 0.02 * true.norm()


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    hidden, weight, targets, bias = case()
    assert bias is not None
    expected = gradients(whole(hidden, weight, targets, bias, 0.0)[0], hidden, weight, bias)
    for i, name in enumerate(("hidden", "weight", "bias")):
        inputs = [t.detach().requires_grad_(i == j) for j, t in enumerate((hidden, weight, bias))]
        total, *_ = linear_cross_entropy(inputs[0], inputs[1], targets, bias=inputs[2], chunk=4)
        torch.testing.assert_close(gradients(total, inputs[i]), [expected[i]], msg=name)
    with torch.no_grad():
        total, *_ = linear_cross_entropy(hidden, weight, targets, bias=bias)
    assert not total.requires_grad


def test_backward_may_run_twice() -> None:
    hidden, weight, targets, _ = case(bias=False)
    total, *_ = linear_cross_entropy(hidden, weight, targets)
    first, second = (torch.autograd.grad(scale * total, weight, retain_graph=True)[0] for scale in (1.0, 3.0))
    torch.testing.assert_close(3 * first, second)


def test_rows_without_a_target_cost_nothing_and_change_nothing() -> None:
    hidden, weight, targets, _ = case(bias=False)
    total, *_ = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), z_loss=1.0)
    assert float(total.detach()) == 0.0
    for gradient in gradients(total, hidden, weight):
        assert not gradient.any()
    with torch.no_grad():
        hidden[::3] = float("nan")  # the ignored ones
    total, *_ = linear_cross_entropy(hidden, weight, targets)
    assert total.isfinite()
    assert gradients(total, hidden, weight)[1].isfinite().all()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets, _ = case(bias=False)
    total, *_ = linear_cross_entropy(1e4 * hidden, weight, targets)
    torch.testing.assert_close(total, whole(1e4 * hidden, weight, targets, None, 0.0)[0])
    assert all(g.isfinite().all() for g in gradients(total, hidden, weight))


def test_hits_are_the_rows_whose_target_is_likeliest() -> None:
    hidden, weight, targets, bias = case()
    best = F.linear(hidden, weight, bias).argmax(-1)
    targets[1:10:3] = best[1:10:3]
    _, _, hits = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk=4)
    assert int(hits) == int((best == targets).sum()) >= 3


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            self.numel = max(self.numel, t.numel() if isinstance(t, Tensor) else 0)
        return result


def test_the_logits_of_all_rows_are_never_held() -> None:
    rows, vocab = 4096, 2**13
    hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, torch.arange(rows), bias=torch.zeros(vocab))[0].backward()
    assert largest.numel <= 2**22 < rows * vocab


def test_a_target_outside_the_vocabulary_is_an_error() -> None:
    hidden, weight, targets, _ = case(bias=False)
    for bad in (V, -1):
        targets[1] = bad
        with pytest.raises((IndexError, RuntimeError), match="index"):
            linear_cross_entropy(hidden, weight, targets)
