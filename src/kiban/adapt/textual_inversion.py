"""Textual inversion. Gal et al. 2023. A new word for a thing or a style: its embedding learns, all else stays as it is.

For models with one text tower. A file holds one word, as diffusers has it: the word, and its vectors (n, D). A word of
several vectors stands in a prompt as several tokens, `<word> <word>_1 ...`, which `spell` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.adapt.pictures import Row, TokenUNet, objective_of, prompt_tokens, rows_of
from kiban.errors import ConfigError, FormatError
from kiban.families.clip import TextTower
from kiban.families.stable_diffusion import StableDiffusion
from kiban.files import staged_folder, write_manifest
from kiban.inputs.backends import Fast
from kiban.inputs.tokenizer import Tokenizer
from kiban.objectives.diffusion import Diffusion
from kiban.weights.safetensors import read_safetensors, tensor_bytes

FILE = "learned_embeds.safetensors"
# Neutral sentences, as those of the paper's appendix.
TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a rendering of a {}",
    "a close-up of a {}",
    "a cropped photo of a {}",
    "a bright photo of a {}",
    "a good photo of one {}",
    "a depiction of the {}",
)


class GrownEmbedding(nn.Module):
    """An embedding with new rows behind its own, which alone learn. words: vectors (n, D) of each new word."""

    def __init__(self, base: nn.Embedding, words: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sizes = {word: len(vectors) for word, vectors in words.items()}
        self.new = nn.Parameter(torch.cat(list(words.values())).to(base.weight))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, D)."""
        first = self.base.num_embeddings
        old = self.base(tokens.clamp(max=first - 1))
        new = F.embedding((tokens - first).clamp(min=0), self.new)
        return torch.where((tokens >= first)[..., None], new, old)

    def words(self) -> dict[str, Tensor]:
        """The vectors (n, D) of each new word, as they are now."""
        return dict(zip(self.sizes, torch.split(self.new.detach(), list(self.sizes.values())), strict=True))


def add_word(model: StableDiffusion, tokenizer: Tokenizer, word: str, *, like: str, num_vectors: int = 1) -> Tokenizer:
    """Freeze the model, and give it a word that can learn; returns the tokenizer that knows it.

    like: what the thing is in one word; each vector begins as the mean of its tokens' (section 4). Raises ConfigError if
    the word is known already, if like is empty, and for models and tokenizers that cannot be grown.
    """
    pieces = tokenizer.encode(like, add_special=False)
    if not pieces or num_vectors < 1:
        raise ConfigError("add_word", field=word, why="needs a word that it is like, and at least one vector")
    vectors = _plain_embedding(model).weight.detach()[pieces]
    return _grow(model, tokenizer, {word: vectors.mean(0).repeat(num_vectors, 1)})


def load_words(model: StableDiffusion, tokenizer: Tokenizer, paths: Iterable[Path]) -> Tokenizer:
    """Freeze the model, and give it the words of files, or of folders that hold one; returns the tokenizer that knows them.

    Raises FormatError for files of another kind, ConfigError as `add_word` does.
    """
    dim = _tower(model).config.dim
    words: dict[str, Tensor] = {}
    for path in paths:
        file = path / FILE if path.is_dir() else path
        tensors = read_safetensors(file)
        vectors = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors.values() if tensor.ndim in (1, 2)]
        if len(tensors) != 1 or len(vectors) != 1 or vectors[0].shape[1] != dim or not len(vectors[0]):
            raise FormatError(file, why=f"does not hold one word with vectors of {dim} numbers")
        word = next(iter(tensors))
        if word in words:
            raise FormatError(file, field=word, why="stands in another file, too")
        words[word] = vectors[0]
    return _grow(model, tokenizer, words)


def save_word(model: StableDiffusion, word: str, folder: Path, *, base: str) -> None:
    """Write a folder that `pipeline.load_textual_inversion` of diffusers opens. base: name of the model that it is for."""
    embed: nn.Module = _tower(model).embed
    assert isinstance(embed, GrownEmbedding), "the model has no new word"
    with staged_folder(folder) as new:
        (new / FILE).write_bytes(tensor_bytes({word: embed.words()[word].contiguous()}))
        write_manifest(new, {"adapter_of": base})


def merge_words(model: StableDiffusion) -> None:
    """Make new rows part of the embedding, so that the model can be written as any other, with the grown tokenizer."""
    tower = _tower(model)
    embed: nn.Module = tower.embed
    assert isinstance(embed, GrownEmbedding), "the model has no new word"
    whole = torch.cat((embed.base.weight.detach(), embed.new.detach()))
    tower.embed = nn.Embedding(len(whole), whole.shape[1], _weight=whole, _freeze=True)
    tower.config = replace(tower.config, vocab_size=len(whole))
    model.config = replace(model.config, texts=(tower.config,))


def spell(prompt: str, model: StableDiffusion) -> str:
    """The prompt with all tokens of each new word."""
    embed: nn.Module = _tower(model).embed
    for word, size in embed.sizes.items() if isinstance(embed, GrownEmbedding) else ():
        prompt = prompt.replace(word, " ".join(_names(word, size)))
    return prompt


def word_rows(
    model: StableDiffusion, tokenizer: Tokenizer, word: str, latents: Tensor, *, templates: Sequence[str] = TEMPLATES
) -> list[Row]:
    """Every picture with every sentence about the word: rows of latents (R, C, h, w) times templates."""
    prompts = [spell(template.format(word), model) for template in templates]
    tokens = prompt_tokens([tokenizer], prompts, model.config)
    return [row for own in tokens for row in rows_of(model, latents, own[None])]


def word_objective(model: StableDiffusion) -> Diffusion:
    """What a new word learns from `word_rows`."""
    return objective_of(TokenUNet(model), model.config)


def _tower(model: StableDiffusion) -> TextTower:
    if len(model.texts) != 1:
        raise ConfigError(
            "textual inversion", why=f"of a model with {len(model.texts)} text towers is not possible here"
        )
    tower = model.texts[0]
    assert isinstance(tower, TextTower)
    return tower


def _plain_embedding(model: StableDiffusion) -> nn.Embedding:
    embed: nn.Module = _tower(model).embed
    if not isinstance(embed, nn.Embedding):
        raise ConfigError("textual inversion", why="the model has new words already", hint="call merge_words first")
    return embed


def _names(word: str, size: int) -> list[str]:
    """The tokens of a word, as diffusers calls them."""
    return [word, *(f"{word}_{i}" for i in range(1, size))]


def _grow(model: StableDiffusion, tokenizer: Tokenizer, words: Mapping[str, Tensor]) -> Tokenizer:
    """Put rows behind the embedding's own, and their names behind the tokenizer's."""
    tower, embed, backend = _tower(model), _plain_embedding(model), tokenizer.backend
    if not isinstance(backend, Fast) or backend.vocab_size != embed.num_embeddings:
        why = f"has {backend.vocab_size} tokens that cannot be grown together with {embed.num_embeddings} embeddings"
        raise ConfigError("tokenizer", why=why, hint="use the model's own tokenizer.json")
    values = json.loads(backend.open.to_str())
    names = [name for word, vectors in words.items() for name in _names(word, len(vectors))]
    for number, name in enumerate(names, start=backend.vocab_size):
        if not name.strip() or backend.token_to_id(name) is not None or names.count(name) > 1:
            raise ConfigError(
                "tokenizer", field=name, why="is a token already", hint="choose another word, such as <name>"
            )
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        values["added_tokens"].append({"id": number, "content": name, **plain})
    grown = tokenizer.changed(values, tokenizer.settings)
    assert [grown.backend.token_to_id(name) for name in names] == list(range(embed.num_embeddings, grown.vocab_size))
    model.requires_grad_(False)
    setattr(tower, "embed", GrownEmbedding(embed, words))  # noqa: B010 - its declared type is the plain one
    return grown
