"""Cross-entropy of a linear layer's outputs that never holds all logits: a chunk of rows at a time, gradients at once.

The logits of a chunk become their own gradient in place, in the forward pass, so nothing of size (N, V) is kept. As in
Liger (Hsu et al. 2024, section 3.2) and Cut Cross-Entropy (Wijmans et al. 2025); plain torch here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiban.inputs.batch import IGNORE


class Losses(NamedTuple):
    """total: differentiable. z: its part of z_loss, detached. hits: rows whose target has the largest logit, ties too."""

    total: Tensor
    z: Tensor
    hits: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Losses:
    """Sum over rows of -log softmax(hidden @ weight.T + bias)[target] + z_loss * log(Z)^2, and what goes with it.

    hidden: (N, D); weight: (V, D); bias: (V,); targets: (N,) int64, rows with ignore_index are left out. z_loss keeps
    log(Z) near 0 (Chowdhery et al. 2022, section 5). chunk: rows whose logits are held at once, chosen for speed if None.
    Under autocast products are taken in its dtype, the rest in float32. Differentiable once.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    tensors = (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]
    rows = (targets != ignore_index).nonzero().squeeze(1)
    with torch.autocast(kind, enabled=False):
        size = chunk or _rows(len(weight), kind)
        found: tuple[Tensor, Tensor, Tensor] = _Function.apply(*tensors, targets, rows, z_loss, size, dtype, wanted)  # type: ignore[no-untyped-call]
    return Losses(*found)


def _rows(vocab_size: int, kind: str) -> int:
    """Rows of a chunk: about 2^22 logits, but at least 256 rows, below which products are slow, up to 2^24 logits."""
    usual, most = (22, 24) if kind == "cpu" else (27, 27)
    return max(1, (1 << usual) // vocab_size, min(256, (1 << most) // vocab_size))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: Tensor,
        z_loss: float,
        size: int,
        dtype: torch.dtype,
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        work = _Work(weight, bias, min(size, len(rows)), z_loss, dtype, wanted)
        whole = len(rows) == len(hidden)
        inputs, answers = (hidden, targets) if whole else (hidden[rows], targets[rows])
        grad_hidden = torch.empty_like(inputs) if wanted[0] else None
        sums = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            sums.append(work(inputs[part], answers[part], None if grad_hidden is None else grad_hidden[part]))
        if grad_hidden is not None and not whole:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_hidden)
        ctx.save_for_backward(grad_hidden, *work.gradients())
        losses, z, hits = zip(*sums) if sums else ((work.zero,), (work.zero,), (work.zero,))
        total, z_sum = torch.stack(losses).sum(), torch.stack(z).sum()
        hit = torch.stack(hits).sum().long()
        ctx.mark_non_differentiable(z_sum, hit)
        return total + z_sum, z_sum, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        return *(g if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors), *[None] * 6


class _Work:
    """What the chunks of one call share: the buffer of logits, and the gradients that add up."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, size: int, z_loss: float, dtype: torch.dtype, wanted: list[bool]
    ) -> None:
        self.wide = torch.promote_types(dtype, torch.float32)
        self.dtype, self.z_loss, self.wanted, self.own_dtype = dtype, z_loss, wanted, weight.dtype
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(self.wide)
        self.real = len(weight)
        if weight.is_cuda and self.real % 64:
            # Products of an odd width are three times as slow there; rows of zeros are added, and taken off at the end.
            self.weight = torch.nn.functional.pad(self.weight, (0, 0, 0, -self.real % 64))
            self.bias = None if self.bias is None else torch.nn.functional.pad(self.bias, (0, -self.real % 64))
        if not weight.is_cuda:
            # Rows start at multiples of 64 bytes: with V = 50,257 a product into odd rows takes half as long again.
            pitch = -(-len(weight) // 16) * 16
            self.logits = weight.new_empty((size, pitch), dtype=self.wide)[:, : len(weight)]
        self.grad_weight = torch.zeros_like(self.weight, dtype=self.wide) if wanted[1] else None
        self.grad_bias = torch.zeros_like(self.bias) if self.bias is not None and wanted[2] else None
        self.zero = weight.new_zeros((), dtype=self.wide)

    def __call__(self, hidden: Tensor, targets: Tensor, grad_hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of losses, sum of z terms, hits) of a chunk; its gradients are added, or written to grad_hidden."""
        hidden, answers = hidden.to(self.dtype), targets[:, None]
        p, mass, log_z, own, top = (self._on_gpu if hidden.is_cuda else self._in_place)(hidden, answers)
        if any(self.wanted):
            # d/dlogits = p (1 + 2 z_loss log Z) - one at the target
            if mass is not None or self.z_loss:
                p.mul_((1 + 2 * self.z_loss * log_z) / (1.0 if mass is None else mass))
            p.scatter_add_(1, answers, torch.full_like(own, -1.0))
            self._add_gradients(p, hidden, grad_hidden)
        return (log_z - own).sum(), self.z_loss * log_z.square().sum(), (own >= top).sum().to(own.dtype)

    def _in_place(self, hidden: Tensor, answers: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """exp(logits) over a factor (n, V), its sums, log Z, the targets' logits and the largest, each (n, 1)."""
        logits = self.logits[: len(hidden)]
        if self.dtype == self.wide:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            logits.copy_(hidden @ self.weight.T)
        if self.bias is not None:
            logits += self.bias
        own = logits.gather(1, answers)
        top = logits.amax(1, keepdim=True)
        logits.sub_(top).exp_()
        mass = logits.sum(1, keepdim=True)
        return logits, mass, mass.log() + top, own, top

    def _on_gpu(self, hidden: Tensor, answers: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """The same, the sums being 1 (None): there memory is what takes time, and one kernel does what six do above."""
        logits = hidden @ self.weight.T
        if self.bias is not None:
            logits = logits + self.bias
        logits[:, self.real :] = -torch.inf
        own, top = (x.to(self.wide) for x in (logits.gather(1, answers), logits.amax(1, keepdim=True)))
        log_p = logits.log_softmax(1, dtype=self.wide)
        log_z = own - log_p.gather(1, answers)
        return log_p.exp_(), None, log_z, own, top

    def _add_gradients(self, grad: Tensor, hidden: Tensor, grad_hidden: Tensor | None) -> None:
        if self.grad_bias is not None:
            self.grad_bias += grad.sum(0)
        narrow = grad.to(self.dtype)
        if grad_hidden is not None:
            grad_hidden.copy_(narrow @ self.weight)
        if self.grad_weight is not None and self.dtype == self.wide:
            self.grad_weight.addmm_(narrow.T, hidden)
        elif self.grad_weight is not None:
            self.grad_weight += narrow.T @ hidden

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, in their dtype."""
        weight, bias = (
            g if g is None else g[: self.real].to(self.own_dtype) for g in (self.grad_weight, self.grad_bias)
        )
        return weight, bias
