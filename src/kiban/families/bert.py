"""BERT. Devlin et al. 2019. Post-norm encoder, learned positions, two segments; heads for each use of section 4.

GELU is the exact one (erf), as Hugging Face's weights were converted and tested; Google's first code used the tanh form,
which differs by up to 4.7e-4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Family, Head, Traits
from kiban.errors import ConfigError, FormatError
from kiban.nn import init
from kiban.nn.attention import Attention, Context
from kiban.nn.block import PostNormBlock
from kiban.nn.feedforward import FeedForward
from kiban.nn.norm import LayerNorm
from kiban.nn.stack import Stack
from kiban.weights.names import SKIP, NameTable, Rule, Same, Skip, both, prefixed


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT. dropout is applied in training only."""

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    ffn_dim: int
    max_seq_len: int = 512
    num_segments: int = 2
    norm_eps: float = 1e-12
    dropout: float = 0.1
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not divisible by num_heads={self.num_heads}")


class BertEmbedding(nn.Module):
    """Token, position and segment embeddings, summed and normalised: (B, T) int64 to (B, T, D)."""

    def __init__(self, c: BertConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(c.vocab_size, c.dim)
        self.position = nn.Embedding(c.max_seq_len, c.dim)
        self.segment = nn.Embedding(c.num_segments, c.dim)
        self.norm = LayerNorm(c.dim, eps=c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        segment = self.segment.weight[0] if segments is None else self.segment(segments)
        return torch.as_tensor(self.dropout(self.norm(self.token(tokens) + segment + self.position(places))))


class Bert(nn.Module):
    """tokens (B, T) int64 to the last states (B, T, D)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.embed = BertEmbedding(c)
        self.blocks = Stack(
            PostNormBlock(
                attn=Attention(c.dim, c.num_heads, bias=True, dropout=c.dropout, layer=layer),
                ffn=FeedForward(c.dim, c.ffn_dim, activation=F.gelu),
                norm=partial(LayerNorm, c.dim, eps=c.norm_eps),
                dropout=c.dropout,
            )
            for layer in range(c.num_layers)
        )
        self.pooler = nn.Linear(c.dim, c.dim)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Last states (B, T, D). segments: (B, T) int64, 0 if None. mask: (B, T) bool, True where a token is real."""
        allowed = None if mask is None or bool(mask.all()) else mask[:, None, None, :]
        return torch.as_tensor(self.blocks(self.embed(tokens, segments), Context(allowed=allowed)))

    def pooled(self, hidden: Tensor) -> Tensor:
        """tanh of a layer on the first token's state: (B, T, D) to (B, D)."""
        return torch.tanh(self.pooler(hidden[:, 0]))

    def initialise(self, generator: torch.Generator | None) -> None:
        """Truncated normal of 0.02, biases 0, norms 1 (appendix A.2 and the released code)."""
        _initialise(self, generator)


def mean_pool(hidden: Tensor, mask: Tensor, *, normalise: bool = True) -> Tensor:
    """Mean state of the real tokens, of length 1 if normalise: (B, T, D), (B, T) bool to (B, D).

    Sentence embedding as in Reimers & Gurevych 2019, section 3.
    """
    weights = mask[..., None].to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return F.normalize(mean, dim=-1) if normalise else mean


def _initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    init.constants(module)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            init.truncated_normal(parameter, 0.02, generator)


class _Headed(nn.Module):
    """A body and what stands on it; initialise() draws the head alone."""

    def __init__(self, body: Bert) -> None:
        super().__init__()
        self.body = body

    def initialise(self, generator: torch.Generator | None) -> None:
        for name, child in self.named_children():
            if name != "body":
                _initialise(child, generator)


class BertClassifier(_Headed):
    """Logits (B, C) from the pooled first token (section 4.1)."""

    def __init__(self, body: Bert, num_labels: int) -> None:
        super().__init__(body)
        self.dropout, self.classifier = nn.Dropout(body.config.dropout), nn.Linear(body.config.dim, num_labels)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        pooled = self.body.pooled(self.body(tokens, segments=segments, mask=mask))
        return torch.as_tensor(self.classifier(self.dropout(pooled)))


class BertTagger(_Headed):
    """Logits (B, T, C) for every token (section 5.3)."""

    def __init__(self, body: Bert, num_labels: int) -> None:
        super().__init__(body)
        self.dropout, self.classifier = nn.Dropout(body.config.dropout), nn.Linear(body.config.dim, num_labels)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.classifier(self.dropout(self.body(tokens, segments=segments, mask=mask))))


class BertAnswerer(_Headed):
    """Start and end logits of an answer span, (B, T, 2) (section 4.2)."""

    def __init__(self, body: Bert, num_labels: int = 2) -> None:
        super().__init__(body)
        self.span = nn.Linear(body.config.dim, 2)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.span(self.body(tokens, segments=segments, mask=mask)))


class TokenPredictor(nn.Module):
    """The masked-language-model head: a layer, then the token embeddings as decoder (section 3.1, task 1)."""

    def __init__(self, body: Bert) -> None:
        super().__init__()
        c = body.config
        self.transform, self.norm = nn.Linear(c.dim, c.dim), LayerNorm(c.dim, eps=c.norm_eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))

    def states(self, hidden: Tensor) -> Tensor:
        """What the decoder multiplies: (..., D) to (..., D)."""
        return torch.as_tensor(self.norm(F.gelu(self.transform(hidden))))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden (..., D), embedding (V, D) to logits (..., V)."""
        return F.linear(self.states(hidden), embedding, self.bias)


class BertMaskedLM(_Headed):
    """Logits over the vocabulary for every token, (B, T, V)."""

    def __init__(self, body: Bert, num_labels: int = 0) -> None:
        super().__init__(body)
        self.predictor = TokenPredictor(body)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        hidden = self.body(tokens, segments=segments, mask=mask)
        return torch.as_tensor(self.predictor(hidden, self.body.embed.token.weight))


class BertNextSentence(_Headed):
    """Logits (B, 2): 0 if the second segment follows the first, 1 if it is random (section 3.1, task 2)."""

    def __init__(self, body: Bert, num_labels: int = 2) -> None:
        super().__init__(body)
        self.follows = nn.Linear(body.config.dim, 2)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.follows(self.body.pooled(self.body(tokens, segments=segments, mask=mask))))


class BertPretraining(_Headed):
    """Both pretraining heads: (logits (B, T, V), logits (B, 2))."""

    def __init__(self, body: Bert, num_labels: int = 0) -> None:
        super().__init__(body)
        self.predictor, self.follows = TokenPredictor(body), nn.Linear(body.config.dim, 2)

    def forward(
        self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = self.body(tokens, segments=segments, mask=mask)
        words = self.predictor(hidden, self.body.embed.token.weight)
        return words, self.follows(self.body.pooled(hidden))


def _norm(published: str, ours: str) -> dict[str, Rule]:
    """Files converted from TensorFlow say gamma and beta."""
    return {
        f"{published}.weight": Same(f"{ours}.weight", aliases=(f"{published}.gamma",)),
        f"{published}.bias": Same(f"{ours}.bias", aliases=(f"{published}.beta",)),
    }


def _body_names(c: BertConfig, *, pooler: bool = True) -> dict[str, Rule]:
    """BertModel. Checkpoints for masked language modelling have no pooler."""
    layer, block = "encoder.layer.{}", "blocks.{}"
    return {
        "embeddings.word_embeddings.weight": Same("embed.token.weight"),
        "embeddings.position_embeddings.weight": Same("embed.position.weight"),
        "embeddings.token_type_embeddings.weight": Same("embed.segment.weight"),
        "embeddings.position_ids": SKIP,
        **_norm("embeddings.LayerNorm", "embed.norm"),
        **both(f"{layer}.attention.self.query", f"{block}.attn.q"),
        **both(f"{layer}.attention.self.key", f"{block}.attn.k"),
        **both(f"{layer}.attention.self.value", f"{block}.attn.v"),
        **both(f"{layer}.attention.output.dense", f"{block}.attn.o"),
        **_norm(f"{layer}.attention.output.LayerNorm", f"{block}.norm1"),
        **both(f"{layer}.intermediate.dense", f"{block}.ffn.up"),
        **both(f"{layer}.output.dense", f"{block}.ffn.down"),
        **_norm(f"{layer}.output.LayerNorm", f"{block}.norm2"),
        **both("pooler.dense", "pooler", optional=not pooler),
    }


_PREDICTOR: dict[str, Rule] = {
    **both("cls.predictions.transform.dense", "predictor.transform"),
    **_norm("cls.predictions.transform.LayerNorm", "predictor.norm"),
    "cls.predictions.bias": Same("predictor.bias"),
    "cls.predictions.decoder.weight": SKIP,  # tied to the token embeddings
    "cls.predictions.decoder.bias": SKIP,
}
_FOLLOWS = both("cls.seq_relationship", "follows")
# A checkpoint may carry the head of another task; one that is not asked for is left out.
_OTHER_HEADS: dict[str, Rule] = {
    name: Skip(aliases=rule.aliases)
    for name, rule in {**_PREDICTOR, **_FOLLOWS, **both("classifier", ""), **both("qa_outputs", "")}.items()
}


def _body(c: BertConfig, *, published: str, ours: str, pooler: bool) -> dict[str, Rule]:
    """The body behind a published prefix; files of the other form (with or without `bert.`) are read too."""
    table: dict[str, Rule] = {}
    for name, rule in prefixed(_body_names(c, pooler=pooler), "", ours).items():
        forms = [name, *rule.aliases]
        spellings = [published + form for form in forms] + [("" if published else "bert.") + form for form in forms]
        table[spellings[0]] = dataclasses.replace(rule, aliases=tuple(spellings[1:]))
    return table


def hf_names(c: BertConfig) -> NameTable:
    """BertModel."""
    return {**_body(c, published="", ours="", pooler=False), **_OTHER_HEADS}


def _headed(extra: Mapping[str, Rule], *, pooler: bool) -> Callable[[BertConfig], NameTable]:
    def names(c: BertConfig) -> NameTable:
        others = {name: rule for name, rule in _OTHER_HEADS.items() if name not in extra}
        return {**_body(c, published="bert.", ours="body.", pooler=pooler), **extra, **others}

    return names


def from_hf(values: Mapping[str, Any]) -> BertConfig:
    """config.json of a BertModel."""
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise FormatError("config.json", field="position_embedding_type", why="only absolute positions are known")
    if values.get("hidden_act", "gelu") != "gelu":
        raise FormatError("config.json", field="hidden_act", why=f"{values['hidden_act']!r} is not BERT's gelu")
    return BertConfig(
        vocab_size=int(values["vocab_size"]),
        num_layers=int(values["num_hidden_layers"]),
        dim=int(values["hidden_size"]),
        num_heads=int(values["num_attention_heads"]),
        ffn_dim=int(values["intermediate_size"]),
        max_seq_len=int(values.get("max_position_embeddings", 512)),
        num_segments=int(values.get("type_vocab_size", 2)),
        norm_eps=float(values.get("layer_norm_eps", 1e-12)),
        dropout=float(values.get("hidden_dropout_prob", 0.1)),
        pad_id=int(values.get("pad_token_id") or 0),
    )


def to_hf(c: BertConfig) -> dict[str, Any]:
    """config.json that transformers reads."""
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.dim,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.ffn_dim,
        "max_position_embeddings": c.max_seq_len,
        "type_vocab_size": c.num_segments,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "initializer_range": 0.02,
        "pad_token_id": c.pad_id,
    }


def _preset(vocab_size: int, num_layers: int = 12, dim: int = 768, num_heads: int = 12) -> BertConfig:
    return BertConfig(vocab_size=vocab_size, num_layers=num_layers, dim=dim, num_heads=num_heads, ffn_dim=4 * dim)


PRESETS = {
    "bert-base-uncased": _preset(30522),
    "bert-base-cased": _preset(28996),
    "bert-large-uncased": _preset(30522, 24, 1024, 16),
    "bert-base-japanese": _preset(32000),
    "bert-base-japanese-v3": _preset(32768),
    "bert-base-japanese-char-v3": _preset(7027),
    "bert-large-japanese-v2": _preset(32768, 24, 1024, 16),
    "bert-tiny": _preset(30522, 2, 128, 2),
    "bert-mini": _preset(30522, 4, 256, 4),
    "bert-small": _preset(30522, 4, 512, 8),
    "bert-medium": _preset(30522, 8, 512, 8),
    "minilm-l6": _preset(30522, 6, 384, 12),  # Wang et al. 2020
}

FAMILY = Family(
    name="bert",
    config_class=BertConfig,
    build=Bert,
    traits=Traits(reads=frozenset({"text"}), writes=frozenset({"embedding"}), causal=False),
    presets=PRESETS,
    architecture="BertModel",
    hf_model_types=("bert",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    heads={
        "sequence_classification": Head(
            build=BertClassifier,
            architecture="BertForSequenceClassification",
            names=_headed(both("classifier", "classifier"), pooler=True),
        ),
        "token_classification": Head(
            build=BertTagger,
            architecture="BertForTokenClassification",
            names=_headed(both("classifier", "classifier"), pooler=False),
        ),
        "question_answering": Head(
            build=BertAnswerer,
            architecture="BertForQuestionAnswering",
            names=_headed(both("qa_outputs", "span"), pooler=False),
        ),
        "masked_lm": Head(build=BertMaskedLM, architecture="BertForMaskedLM", names=_headed(_PREDICTOR, pooler=False)),
        "next_sentence": Head(
            build=BertNextSentence,
            architecture="BertForNextSentencePrediction",
            names=_headed(_FOLLOWS, pooler=True),
        ),
        "pretraining": Head(
            build=BertPretraining,
            architecture="BertForPreTraining",
            names=_headed({**_PREDICTOR, **_FOLLOWS}, pooler=True),
        ),
    },
)
