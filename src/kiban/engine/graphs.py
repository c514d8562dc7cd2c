"""Steps of one token for each answer as CUDA graphs: one launch instead of some hundred, each of which takes longer to start
than to run.

A graph has fixed sizes, so answers and lengths go in buckets: there are rows too many, and each row has room for more keys
than it needs.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kiban.engine.decoder import DecoderPlan
from kiban.engine.pages import PAGE, PagedKeys, Part

LOGGER = logging.getLogger("kiban.engine")
Look = Callable[[Tensor, Tensor], Tensor]
"""Queries (B, 1, H, Dh), keys and values of a layer (2 Hkv N, Dh) to attention of the queries' shape."""

LEAST = 8  # pages of the narrowest bucket
# For gathered keys: flash attention takes no mask, and which one is chosen must not hang on the version of torch.
KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    logits: Tensor


class Graphs:
    """Logits (B, V) float32 of steps that take one token of each answer and store its keys; None for any other step.

    Each bucket is captured when it is first needed. Only one thread may call it. On a CPU the same step runs without graph.
    """

    def __init__(self, plan: DecoderPlan, keys: PagedKeys, *, paged: bool | None = None) -> None:
        """paged: read keys where they lie, by a kernel in Triton, instead of copying them; None: where Triton is there."""
        self.plan, self.keys, self.device = plan, keys, keys.both.device
        self.most = plan.config.max_seq_len
        on_gpu = self.device.type == "cuda"
        self.paged = on_gpu and importlib.util.find_spec("triton") is not None if paged is None else paged
        # A table that grew after a capture would leave the graphs with one that is gone.
        plan.turn(torch.zeros(1, 1, dtype=torch.int64, device=self.device), self.most)
        self._held = plan._turns
        self._rows = [layer.view(-1, layer.shape[-1]) for layer in keys.both]  # each (2 Hkv N, Dh)
        # By answers and pages; None where memory does not suffice.
        self._captured: dict[tuple[int, int], _Captured | None] = {}
        self._pool: Any = None  # graphs run one at a time, so they share their memory
        self._stream = _stream(self.device)

    @torch.inference_mode()
    def __call__(self, parts: Sequence[Part]) -> Tensor | None:
        """As the class says."""
        longest = max(part.end for part in parts)
        if longest > self.most or any(len(part.ids) != 1 or part.num_logits != 1 for part in parts):
            return None
        count, width = bucket(len(parts), longest, self.most)
        rows = [_row(part, width) for part in parts]
        # A row too many is an answer of one token in the spare page.
        rows += [[0, 1, *[self.keys.spare] * width]] * (count - len(parts))
        inputs = torch.tensor(rows)
        if self._stream is None:
            return self.step(inputs)[: len(parts)]
        if (count, width) not in self._captured:
            self._captured[count, width] = self._capture(inputs.to(self.device))
        captured = self._captured[count, width]
        if captured is None:
            return None
        captured.inputs.copy_(inputs)
        captured.graph.replay()
        return captured.logits[: len(parts)].clone()  # the next replay writes over them

    def step(self, inputs: Tensor) -> Tensor:
        """Logits (B, V) of what `_row` makes of each answer, (B, 2 + P) int64: no copy to the host, no size that depends on
        a value."""
        positions = inputs[:, 1:2] - 1
        page = inputs[:, 2:].gather(1, positions // PAGE)
        new = (page * PAGE + positions % PAGE)[:, 0]  # (B,)
        look = self._paged(inputs) if self.paged else self._gathered(inputs)

        def mix(q: Tensor, kv: Tensor, layer: int) -> Tensor:
            self.keys.write(layer, new, kv[:, 0].transpose(0, 1))
            return look(q, self._rows[layer])

        states = self.plan.hidden(inputs[:, :1], self.plan.rotation(positions, self.most), mix)
        return self.plan.logits(states[:, -1])

    def _paged(self, inputs: Tensor) -> Look:
        """Reads keys where they lie."""
        from kiban.engine.paged import attend_pages

        c = self.plan.config
        return partial(attend_pages, inputs=inputs, num_kv_heads=c.num_kv_heads, window=c.sliding_window)

    def _gathered(self, inputs: Tensor) -> Look:
        """Copies the keys of all answers into one tensor first, each with as many as the bucket has."""
        c, lengths, pages = self.plan.config, inputs[:, 1:2], inputs[:, 2:]
        counted = torch.arange(pages.shape[1] * PAGE, device=inputs.device)  # (S,)
        written = counted < lengths  # (B, S)
        # What was never written may be NaN, which a mask does not hide from a sum.
        places = torch.where(written, (pages[..., None] * PAGE + counted[:PAGE]).flatten(1), pages[:, :1] * PAGE)
        seen = written if c.sliding_window is None else written & (counted >= lengths - c.sliding_window)
        bias = torch.zeros(seen.shape, dtype=self.plan.keys_dtype, device=inputs.device)
        bias = bias.masked_fill(~seen, -torch.inf)[:, None, None]  # (B, 1, 1, S)
        # Whole rows of numbers are copied faster than what lies apart along another axis.
        heads = self.keys.both.shape[3] * torch.arange(2 * c.num_kv_heads, device=inputs.device).view(2, 1, -1, 1)
        rows = heads + places[:, None]  # (2, B, Hkv, S)

        def look(q: Tensor, held: Tensor) -> Tensor:
            keys, values = held[rows].unbind()  # each (B, Hkv, S, Dh)
            # The heads of a group are more queries of one head, as in `attend`.
            folded = q.view(len(q), c.num_kv_heads, -1, c.head_dim)  # (B, Hkv, H / Hkv, Dh)
            return F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias).reshape(q.shape)

        return look

    @property
    def num_ready(self) -> int:
        """Graphs that are captured."""
        return sum(captured is not None for captured in list(self._captured.values()))  # any thread may ask

    def close(self) -> None:
        """Give back the memory of the graphs."""
        self._captured.clear()
        self._pool = None

    def _capture(self, inputs: Tensor) -> _Captured | None:
        """A graph over these inputs, after a run to warm up, in which libraries prepare what they may not while captured."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with sdpa_kernel(KERNELS):
                with torch.cuda.stream(self._stream):
                    self.step(inputs)
                current.wait_stream(self._stream)
                # Other threads may go on with what they do on the device.
                mode = "thread_local"
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                    logits = self.step(inputs)
        except torch.OutOfMemoryError:
            return None
        except Exception as error:
            if not self.paged:
                raise
            # Triton needs a C compiler, and a card that it knows.
            LOGGER.warning("keys are gathered, since Triton failed: %s", str(error).partition("\n")[0])
            self.paged = False
            return self._capture(inputs)
        finally:
            current.wait_stream(self._stream)
        self._pool = graph.pool()
        return _Captured(graph, inputs, logits)


def bucket(answers: int, longest: int, most: int) -> tuple[int, int]:
    """The next power of two of answers, and pages: the next power of two of them, or three quarters of it, none over most
    tokens."""
    pages = -(-longest // PAGE)
    width = max(LEAST, 1 << (pages - 1).bit_length())
    if width > LEAST and pages <= width * 3 // 4:
        width = width * 3 // 4
    return 1 << (answers - 1).bit_length(), min(width, -(-most // PAGE))


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """One to capture on; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _row(part: Part, width: int) -> list[int]:
    """Its token, the number of all its tokens, and pages; behind its own the first one again."""
    pages = part.pages[: -(-part.end // PAGE)]
    return [part.ids[0], part.end, *pages, *[pages[0]] * (width - len(pages))]
