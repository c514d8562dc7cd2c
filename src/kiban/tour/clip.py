"""CLIP: naming what was never seen together. Radford et al. 2021, section 3.1; the world is `tour.shapes`.

A CLIP with a text and a vision transformer is trained on pictures of 120 combinations of shape, colour and place with
captions in Japanese or English, one picture of each combination in a batch, so that no wrong answer is right as well.
Test. Pictures of the 24 combinations that were held out, each to be matched with its caption: among the captions of those
24, and among those of all 144, where the 120 that were trained on stand in the way.
Ablations. The same with captions dealt among the pictures, which leaves all frequencies and no meaning; and with the
temperature left as it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiban import zoo
from kiban.config import Progress
from kiban.data.loader import Loader
from kiban.families.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from kiban.objectives.contrastive import Contrastive
from kiban.tour import shapes
from kiban.tour.exhibit import Estimate, Exhibit, Lang, Requirement, Words
from kiban.tour.running import fit
from kiban.train.settings import TrainConfig

LENGTH = 10  # tokens of a caption: start, up to 8 words, end
ARMS = ("clip", "shuffled", "fixed")
ASKED = ("24_ja", "24_en", "144_ja", "144_en")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model and its training. pictures: of each held-out combination."""

    image_size: int = 32
    patch_size: int = 8
    num_layers: int = 3
    dim: int = 96
    num_heads: int = 4
    embed_dim: int = 64
    steps: int = 800
    lr: float = 2e-3
    pictures: int = 40


def model_of(s: Setting, seed: int) -> CLIP:
    """A CLIP with fresh weights."""
    words = shapes.vocabulary()
    sizes: dict[str, Any] = {
        "num_layers": s.num_layers,
        "dim": s.dim,
        "num_heads": s.num_heads,
        "ffn_dim": 4 * s.dim,
        "embed_dim": s.embed_dim,
        "quick_gelu": False,
    }
    text = TextConfig(vocab_size=len(words) + 1, max_seq_len=LENGTH, eos_id=None, **sizes)
    vision = VisionConfig(image_size=s.image_size, patch_size=s.patch_size, **sizes)
    model = CLIP(CLIPConfig(text=text, vision=vision))
    zoo.initialise(model, torch.Generator().manual_seed(seed))
    return model


def collate(s: Setting, words: dict[str, int], seed: int, shuffled: bool, rows: Sequence[int]) -> dict[str, Tensor]:
    """Pictures and captions, drawn from the seed and the first row's number: each combination of training once."""
    rng = np.random.default_rng([seed, 1, rows[0]])
    captions = [shapes.caption(c, ("ja", "en")[int(rng.integers(2))], rng) for c in shapes.TRAIN]
    images = shapes.pixels(shapes.TRAIN, rng, s.image_size)
    if shuffled:
        captions = [captions[i] for i in rng.permutation(len(captions))]
    return {"images": images, "tokens": shapes.tokens(captions, words, LENGTH)}


def train(s: Setting, arm: str, seed: int, folder: Path, progress: Progress) -> CLIP:
    """A CLIP from scratch."""
    model, words, count = model_of(s, seed), shapes.vocabulary(), len(shapes.TRAIN)
    model.logit_scale.requires_grad_(arm != "fixed")
    loader = Loader(
        range(s.steps * count),
        lambda rows: collate(s, words, seed, arm == "shuffled", rows),
        batch_size=count,
        seed=seed,
    )
    config = TrainConfig(
        steps=s.steps,
        batch_size=count,
        micro_batch_size=count,
        lr=s.lr,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        warmup=0.05,
        schedule="wsd",
        checkpoint_every=200,
        seed=seed,
    )
    fit(Contrastive(model), model, loader, config, folder, progress)
    return model.eval()


@torch.no_grad()
def accuracy(s: Setting, model: CLIP, seed: int) -> dict[str, float]:
    """Percent of held-out pictures whose caption comes first, among 24 and among 144, in each language."""
    asked = [combination for combination in shapes.HELD_OUT for _ in range(s.pictures)]
    images = model.encode_image(shapes.pixels(asked, np.random.default_rng([seed, 2]), s.image_size))
    words, right = shapes.vocabulary(), torch.arange(len(shapes.HELD_OUT)).repeat_interleave(s.pictures)
    found = {}
    for lang in ("ja", "en"):
        for others in ((), shapes.TRAIN):
            names = [*shapes.HELD_OUT, *others]
            captions = [shapes.caption(combination, lang) for combination in names]
            texts = model.encode_text(shapes.tokens(captions, words, LENGTH))
            told = (images @ texts.mT).argmax(-1)
            found[f"{len(names)}_{lang}"] = 100 * float((told == right).float().mean())
    return found


def measure(settings: Setting, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """One seed: weights, pictures and captions of its own, in three arms. Percent."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def tell(stage: str, done: int, total: int | None, arm: str = arm) -> None:
            progress(f"{arm} | {stage}", done, total)

        model = train(settings, arm, seed, folder / arm, tell)
        found |= {f"{arm}_{name}": value for name, value in accuracy(settings, model, seed).items()}
    return found | {"parameters": float(sum(p.numel() for p in model.parameters()))}


WORDS: dict[str, Words] = {
    "task": {"ja": "選択肢 (正答率 %)", "en": "captions to choose from (% right)"},
    "24_ja": {"ja": "未知の 24、日本語", "en": "24 held out, Japanese"},
    "24_en": {"ja": "未知の 24、英語", "en": "24 held out, English"},
    "144_ja": {"ja": "全 144、日本語", "en": "all 144, Japanese"},
    "144_en": {"ja": "全 144、英語", "en": "all 144, English"},
    "clip": {"ja": "CLIP", "en": "CLIP"},
    "shuffled": {"ja": "説明文を入れ替え", "en": "captions shuffled"},
    "fixed": {"ja": "温度を固定", "en": "temperature fixed"},
}


def draw(axes: Any, found: Mapping[str, Estimate], lang: Lang) -> None:
    """Percent right of each arm, for each choice of captions."""
    for number, arm in enumerate(ARMS):
        values = [found[f"{arm}_{name}"] for name in ASKED]
        places = np.arange(len(ASKED)) + 0.27 * (number - 1)
        spread = [[v.value - max(0.0, v.low) for v in values], [min(100.0, v.high) - v.value for v in values]]
        axes.bar(places, [v.value for v in values], 0.25, yerr=spread, capsize=3, label=WORDS[arm][lang])
    axes.set_xticks(np.arange(len(ASKED)), [WORDS[name][lang] for name in ASKED])
    axes.set(ylabel=WORDS["task"][lang], ylim=(0, 105))
    axes.legend(loc="lower left")


EXHIBIT = Exhibit(
    name="clip",
    title={"ja": "CLIP: 見たことのない組み合わせを名前で当てる", "en": "CLIP: naming what was never seen together"},
    shows={
        "ja": "形・色・位置の 120 通りの絵と日英の説明文で CLIP を学習し、学習に出ない 24 通りの組み合わせを説明文で当てる。"
        "説明文を入れ替えて学習すると当たらない。",
        "en": "A CLIP is trained on pictures of 120 combinations of shape, colour and place with captions in Japanese and "
        "English, and has to match pictures of 24 other combinations with their captions. Trained with captions dealt among "
        "the pictures it cannot.",
    },
    full=Setting(),
    quick=Setting(num_layers=2, dim=64, steps=150, pictures=10),
    measure=measure,
    requirements=tuple(
        Requirement(f"clip_{name}", WORDS[name], at_least=90 if name.startswith("24") else 60) for name in ASKED
    ),
    columns=(WORDS["task"], *(WORDS[arm] for arm in ARMS)),
    rows=tuple((WORDS[name], tuple(f"{arm}_{name}" for arm in ARMS)) for name in ASKED),
    draw=draw,
    headline={
        "ja": "未知の組み合わせ: 24 択の正答率 日本語 {clip_24_ja:.1f} %・英語 {clip_24_en:.1f} %、"
        "144 択 日本語 {clip_144_ja:.1f} %・英語 {clip_144_en:.1f} %",
        "en": "combinations never seen: {clip_24_en:.1f}% right of 24 and {clip_144_en:.1f}% of 144 in English, "
        "{clip_24_ja:.1f}% and {clip_144_ja:.1f}% in Japanese",
    },
)
