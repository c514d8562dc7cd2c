"""Classes and pictures that a CLIP model was never trained on, told by their names (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.config import did_you_mean
from kiban.errors import ConfigError
from kiban.evaluate.retrieval import found_at
from kiban.families.clip import CLIP, text_batch
from kiban.inputs.japanese import detect_language
from kiban.inputs.tokenizer import Tokenizer

# A class has several prompts, of which the mean stands for it. The paper gains 3.5 points by 80 of them; a small model that
# was trained on captions of one form may lose instead.
TEMPLATES = {
    "en": (
        "{}",
        "a photo of a {}.",
        "a photo of the {}.",
        "a picture of a {}.",
        "a drawing of a {}.",
        "an illustration of a {}.",
        "an icon of a {}.",
        "a close-up of a {}.",
    ),
    "ja": (
        "{}",
        "{}の写真",
        "{}の画像",
        "{}の絵",
        "{}のイラスト",
        "{}のアイコン",
        "{}を写した写真",
        "{}が写っている写真",
    ),
}


def templates(lang: str) -> tuple[str, ...]:
    """Prompts with {} for the name of a class. Raises ConfigError for a language that has none."""
    if lang not in TEMPLATES:
        raise ConfigError("lang", field=lang, why="has no prompt templates", hint=did_you_mean(lang, TEMPLATES))
    return TEMPLATES[lang]


@torch.no_grad()  # tensors of inference mode could not be learned from, as a probe on them does
def embed_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """(N, E) float32 of length 1, on the CPU."""
    device, rows = model.logit_scale.device, []
    for start in range(0, len(texts), batch_size):
        tokens = text_batch(tokenizer, texts[start : start + batch_size], model.config.text)
        rows.append(model.encode_text(tokens.to(device)).float().cpu())
    return torch.cat(rows) if rows else torch.empty(0, model.config.embed_dim)


def class_weights(
    model: CLIP, tokenizer: Tokenizer, names: Sequence[str], prompts: Sequence[str] = TEMPLATES["en"]
) -> Tensor:
    """What stands for each class, (C, E) of length 1: the mean of its prompts' embeddings (section 3.1.4).

    Raises ConfigError if there is no name or prompt, a name stands twice, or a prompt has no place for it.
    """
    _check_names(names)
    if not prompts or any("{}" not in prompt for prompt in prompts):
        raise ConfigError(
            "prompts", why="need {} where the name of the class goes", hint="for example 'a photo of a {}.'"
        )
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    found = embed_texts(model, tokenizer, texts).view(len(names), len(prompts), -1)  # (C, P, E)
    return F.normalize(found.mean(1), dim=-1)


def _check_names(names: Sequence[str]) -> None:
    if not names or len({*names}) < len(names):
        raise ConfigError("classes", why="need names, each another one", hint=f"given: {', '.join(names) or 'none'}")


def weights_of_names(model: CLIP, tokenizer: Tokenizer, names: Sequence[str]) -> Tensor:
    """As `class_weights`, with each name in the prompts of its own language; Japanese, else English."""
    _check_names(names)
    languages = ["ja" if detect_language(name) == "ja" else "en" for name in names]
    rows = [class_weights(model, tokenizer, [name], templates(lang)) for name, lang in zip(names, languages)]
    return torch.cat(rows)


def predict(model: CLIP, images: Tensor, weights: Tensor) -> Tensor:
    """Probabilities (N, C) of the classes for embeddings of images (N, E), all of length 1."""
    scale = float(model.logit_scale.detach().exp())
    return (scale * images @ weights.mT).softmax(-1)


def search(queries: Tensor, items: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """The nearest items of each query, best first: cosines and places, both (Q, K), K the smaller of most and N.

    queries: (Q, E), items: (N, E), of length 1; texts, images or both.
    """
    found = (queries @ items.mT).topk(min(most, len(items)), dim=-1)
    return found.values, found.indices


def retrieval(images: Tensor, texts: Tensor, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """recall@k: how often the own text of an image, and the own image of a text, is among the k nearest; and chance.

    images, texts: (N, E), of length 1, row by row one pair. Ties count against the model.
    """
    ranks = {"image_to_text": found_at(images, texts), "text_to_image": found_at(texts, images)}
    found = {f"{name}@{k}": float((rank <= k).float().mean()) for name, rank in ranks.items() for k in ks}
    return found | {f"chance@{k}": min(1.0, k / len(images)) for k in ks}
