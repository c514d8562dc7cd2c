"""A small CLIP for captions in Japanese and English, from pictures that a laptop can learn in minutes.

The text tower first learns to put a text where a sentence encoder puts it (Reimers & Gurevych 2020), from many more texts
than there are captions: so it knows what a picture's name is like, also one that no picture was seen of. Then both towers
learn from pictures and captions (Radford et al. 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiban import zoo
from kiban.adapt.distill import teacher_embeddings
from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.data.pairs import Pair, choose_caption
from kiban.engine.encoder import EncoderPlan
from kiban.evaluate.pictures import embed_images
from kiban.evaluate.zero_shot import embed_texts
from kiban.families.clip import CLIP, PRESETS, text_batch
from kiban.inputs.image import CLIP_MEAN, CLIP_STD
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.tokenizer import Tokenizer
from kiban.objectives.contrastive import Contrastive
from kiban.objectives.diffusion import seeded_loader
from kiban.objectives.distillation import EmbeddingDistillation
from kiban.recipes.squares import channels_first, moved, squares
from kiban.train.precision import usual_device
from kiban.train.settings import Hooks, TrainConfig, TrainResult
from kiban.train.trainer import Trainer

Evaluate = Callable[[zoo.Loaded], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """preset: a CLIP's; its vocabulary and embedding are made to fit. teacher: a sentence encoder, "" for none.

    shift: pixels by which a picture moves at random. text_steps: of learning from the teacher.
    """

    preset: str = "clip-tiny"
    vocab_size: int = 4096
    teacher: str = "kiban-encoder-ja-en"
    text_steps: int = 1_500
    text_batch_size: int = 256
    text_lr: float = 1e-3
    steps: int = 1_500
    batch_size: int = 128
    part_size: int | None = None
    lr: float = 5e-4
    weight_decay: float = 0.2
    shift: int = 4
    languages: tuple[str, ...] = ("ja", "en")
    eval_every: int = 250
    seed: int = 0


def train(
    pairs: Sequence[Pair],
    folder: Path,
    settings: Settings | None = None,
    *,
    texts: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    progress: Progress = silent,
) -> tuple[zoo.Loaded, TrainResult]:
    """The trained model. Started again with the same arguments, it goes on where it was interrupted.

    texts: to learn from the teacher besides the captions. folder: gets the tokenizer, checkpoints and metrics.jsonl.
    """
    c = settings or Settings()
    captions = [text for pair in pairs for lang in c.languages for text in pair.captions.get(lang, ())]
    place = folder / "tokenizer"
    if not place.exists():
        length = PRESETS[c.preset].text.max_seq_len
        train_clip_bpe([*captions, *texts], vocab_size=c.vocab_size, max_len=length, progress=progress).save(place)
    tokenizer = Tokenizer.from_folder(place)
    known = list(dict.fromkeys([*captions, *texts]))
    targets = _targets(known, folder, c, progress) if c.teacher else None
    model = _model(tokenizer, c, None if targets is None else targets.shape[1])
    module: Any = model.module
    if targets is not None:
        result = _learn_texts(module, tokenizer, known, targets, folder / "text", c, progress)
        if result.stopped_by == "sigterm":
            return model, result
    loader = _loader(pairs, tokenizer, module, c, progress)
    hooks = Hooks(evaluate=(lambda: evaluate(model)) if evaluate else None)
    config = _config(c, steps=c.steps, batch_size=c.batch_size, lr=c.lr, eval_every=c.eval_every)
    objective = Contrastive(module, part_size=c.part_size)
    result = Trainer(objective, module, loader, config, folder=folder, hooks=hooks, progress=progress).run()
    module.cpu()
    return model, result


def _model(tokenizer: Tokenizer, c: Settings, embed_dim: int | None) -> zoo.Loaded:
    """Fresh weights, in the space of the teacher if there is one."""
    config = PRESETS[c.preset]
    width = embed_dim or config.embed_dim
    text = replace(config.text, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, embed_dim=width)
    config = dataclasses.replace(config, text=text, vision=replace(config.vision, embed_dim=width))
    generator = torch.Generator().manual_seed(c.seed)
    model = zoo.new(zoo.families()["clip"], config, c.preset, generator=generator)
    model.module.to(usual_device())
    return replace(model, tokenizer=tokenizer)


def _config(c: Settings, **settings: Any) -> TrainConfig:
    return TrainConfig(
        micro_batch_size=settings["batch_size"],
        schedule="wsd",
        warmup=0.05,
        betas=(0.9, 0.98),
        weight_decay=c.weight_decay,
        checkpoint_every=100,
        seed=c.seed,
        **settings,
    )


class _Sentence(nn.Module):
    """A text tower as an encoder of one state, which is what is pulled to the teacher."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.text = model.text

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        """(B, T) to (B, 1, E)."""
        return self.text(tokens)[:, None]  # type: ignore[no-any-return]


def _targets(texts: Sequence[str], folder: Path, c: Settings, progress: Progress) -> Any:
    """Where the teacher puts each text, (N, E) float16."""
    teacher = zoo.load(c.teacher)
    embed, dim = EncoderPlan(teacher, max_len=64).embed, teacher.config.dim
    return teacher_embeddings(embed, texts, folder / "teacher.f16", dim=dim, key=c.teacher, progress=progress)


def _learn_texts(
    module: CLIP,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    targets: Any,
    folder: Path,
    c: Settings,
    progress: Progress,
) -> TrainResult:
    """Pull the text tower to the teacher's embeddings of texts."""
    rows = text_batch(tokenizer, texts, module.config.text)  # (N, T)

    def collate(some: list[int]) -> dict[str, Tensor]:
        mask = torch.ones(len(some), 1, dtype=torch.bool)
        return {"tokens": rows[some], "mask": mask, "targets": torch.from_numpy(targets[some]).float()}

    size = c.text_batch_size
    loader = Loader(range(len(texts)), collate, batch_size=size, seed=c.seed)
    objective = EmbeddingDistillation(_Sentence(module), contrast=0.5)
    config = _config(c, steps=c.text_steps, batch_size=size, lr=c.text_lr)
    return Trainer(objective, objective.module, loader, config, folder=folder, progress=progress).run()


def _loader(pairs: Sequence[Pair], tokenizer: Tokenizer, module: CLIP, c: Settings, progress: Progress) -> Loader[Any]:
    """Pictures moved by some pixels, each with one of its captions; what happens to a row follows from its seed."""
    pictures = squares(pairs, module.config.vision.image_size, progress)

    def collate(rows: list[tuple[int, int]]) -> dict[str, Tensor]:
        images = channels_first(np.stack([moved(pictures[i], seed, c.shift) for i, seed in rows]))
        texts = [
            choose_caption(pairs[i].captions, seed=seed, epoch=0, row=i, languages=c.languages)[1] for i, seed in rows
        ]
        return {"images": normalised(images), "tokens": text_batch(tokenizer, texts, module.config.text)}

    return seeded_loader(range(len(pairs)), collate, steps=c.steps, batch_size=c.batch_size, seed=c.seed)


def normalised(images: Tensor) -> Tensor:
    """(N, 3, S, S) of 0 to 255 as `clip_pixels` gives them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images / 255 - mean) / std


def name_retrieval(model: zoo.Loaded, pairs: Sequence[Pair], languages: Sequence[str]) -> dict[str, float]:
    """How often a picture's own name is among the nearest 1 and 5 of all names, and the other way round; and chance."""
    found: dict[str, float] = {}
    for lang in languages:
        ranks = name_ranks(model, pairs, lang)
        for way, rank in (("picture to name", ranks.names), ("name to picture", ranks.pictures)):
            found |= {f"{lang} {way}@{k}": float((rank < k).mean()) for k in (1, 5)}
        found |= {f"{lang} chance@{k}": min(1.0, k / len(ranks.known)) for k in (1, 5)}
    return found


@dataclass(frozen=True)
class Ranks:
    """known (M): the different names. own (N,): which of them is a picture's.

    names (N,): how many names are nearer to a picture than its own. pictures (M,): how many pictures of other names are
    nearer to a name than the nearest of its own.
    """

    known: Sequence[str]
    own: NDArray[np.int64]
    names: NDArray[np.int64]
    pictures: NDArray[np.int64]


@torch.no_grad()
def name_ranks(model: zoo.Loaded, pairs: Sequence[Pair], lang: str) -> Ranks:
    """Where each picture and its name, the first caption in this language, stand for one another."""
    module: Any = model.module
    assert model.tokenizer is not None
    known = list(dict.fromkeys(pair.captions[lang][0] for pair in pairs))
    own = torch.tensor([known.index(pair.captions[lang][0]) for pair in pairs])
    images = embed_images(module, [pair.content() for pair in pairs])
    scores = images @ embed_texts(module, model.tokenizer, known).mT  # (N, M)
    names = (scores > scores.gather(1, own[:, None])).sum(1)
    right = own[:, None] == torch.arange(len(known))
    best = scores.mT.masked_fill(~right.mT, -torch.inf).amax(1, keepdim=True)  # of each name's own pictures
    return Ranks(known, own.numpy(), names.numpy(), (scores.mT > best).sum(1).numpy())
