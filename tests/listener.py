"""Small models of several families, and one who listens to what an engine tells."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kiban import zoo
from kiban.engine.decoder import DecoderPlan
from kiban.engine.requests import Piece, Request
from kiban.families.gpt import GPT, GPTConfig
from kiban.families.llama import Llama, LlamaConfig
from kiban.generate.sampling import Sampling

LLAMA: dict[str, Any] = {"vocab_size": 258, "num_layers": 3, "dim": 48, "num_heads": 6, "num_kv_heads": 2}
LLAMA |= {"ffn_dim": 96, "max_seq_len": 384}


class Listener:
    """Keeps what a request was told."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ended = threading.Event()

    def __call__(self, piece: Piece) -> None:
        assert not self.ended.is_set(), "a piece came after the last one"
        self.pieces.append(piece)
        if piece.finish:
            self.ended.set()

    def wait(self, seconds: float = 60.0) -> Listener:
        assert self.ended.wait(seconds), "no last piece came"
        return self

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> list[int]:
        return [id for piece in self.pieces for id in piece.ids]

    @property
    def finish(self) -> str | None:
        return self.pieces[-1].finish

    def request(self, prompt: list[int], **settings: Any) -> Request:
        """settings: of Request, the others of Sampling."""
        own = {name: settings.pop(name) for name in ("client", "num_top", "constraint") if name in settings}
        return Request(prompt=prompt, sampling=Sampling(**settings), on_piece=self, **own)


def lively(module: nn.Module) -> Any:
    """Random weights that are large enough for answers to vary with the prompt."""
    zoo.initialise(module, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return module.eval()


def small_llama(**changes: Any) -> Any:
    return lively(Llama(LlamaConfig(**{**LLAMA, **changes})))


def plan_of(model: Any) -> DecoderPlan:
    return DecoderPlan(zoo.Loaded(zoo.families()["llama"], model.config, model, None, None, (), "small", None))


def small_gpt(**changes: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 258, "num_layers": 2, "dim": 48, "num_heads": 4, "max_seq_len": 384}
    return lively(GPT(GPTConfig(**{**sizes, **changes})))


MODELS: dict[str, Callable[[], Any]] = {
    "plan": lambda: plan_of(small_llama()),
    "plan with a window": lambda: plan_of(small_llama(sliding_window=40)),
    "llama": small_llama,
    "llama with a window": lambda: small_llama(sliding_window=40),
    "gpt": small_gpt,
    "gpt with a band": lambda: small_gpt(band=40),
}
