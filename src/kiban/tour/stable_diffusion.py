"""Stable Diffusion: drawing what was never seen together, from a caption. Rombach et al. 2022; the world is `tour.shapes`.

An autoencoder learns pictures of 120 combinations of shape, colour and place, and a U-Net together with a text tower, both
from nothing, to denoise its latents, told by captions in Japanese or English of which a tenth is left out. The text is told
as to SDXL (Podell et al. 2023): word by word to the transformers, and pooled to every res-block.
Test. Captions of the 24 combinations that were held out are drawn at several guidance scales (Ho & Salimans 2022), and a
network that learned from real pictures with a seed of its own says whether shape, colour and place are those of the
caption (`shapes_judge`). Diversity: how much pictures of one caption differ from each other.
Ablations. No caption and no guidance (scales 0 and 1); and a U-Net of pixels, trained for as many operations as the
autoencoder and the U-Net of latents were together.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kiban.config import Progress
from kiban.families.stable_diffusion import StableDiffusion
from kiban.generate.images import ImageSampling, Source
from kiban.tour import shapes, shapes_judge
from kiban.tour.exhibit import PICTURES, Estimate, Exhibit, Lang, Requirement, Words
from kiban.tour.page import line
from kiban.tour.shapes_judge import ATTRIBUTES, Judge, diversity, right
from kiban.tour.stable_diffusion_models import LANGS, Painter, Setting, latent_painter, pixel_painter
from kiban.tour.stable_diffusion_training import encode, pool_of, train_latents, train_pixels

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
BEST = 4.0  # chosen on seed 0
PIXEL_SCALES = (1.0, BEST)
USUAL = ImageSampling(sampler="dpm++2m", num_steps=20, karras=True)
LONG = ImageSampling(sampler="ddim", num_steps=100)
ARM, TOP = f"w{BEST:g}", f"w{SCALES[-1]:g}"
GRID = ("real", *(f"w{w:g}" for w in SCALES), f"pixel_{ARM}")
MOST = 1_000_000  # seeds of noise that one run may use
MARGIN = 2  # white pixels around the pictures of the grid
SHOWN = tuple(shapes.HELD_OUT[4 * shape + shape % 4] for shape in range(len(shapes.SHAPES)))
WHAT = (*ATTRIBUTES, "all")


def asked_of(s: Setting) -> tuple[list[shapes.Combination], list[list[str]]]:
    """Held-out combinations and their captions: each in both languages, and each of these as often as it is drawn."""
    each = [(c, shapes.caption(c, lang)) for lang in LANGS for c in shapes.HELD_OUT for _ in range(s.pictures)]
    return [c for c, _ in each], [caption for _, caption in each]


def judged(s: Setting, judge: Judge, arm: str, images: Tensor, meant: list[shapes.Combination]) -> dict[str, float]:
    """Percent right of what was drawn, and its diversity."""
    shares = 100 * right(judge, images, meant).float().mean(dim=0)
    found = {f"{arm}_{name}": float(share) for name, share in zip(WHAT, shares, strict=True)}
    return found | {f"{arm}_diversity": diversity(images, s.pictures)}


def inpaint(s: Setting, model: StableDiffusion, painter: Painter, judge: Judge, seed: int) -> dict[str, float]:
    """Real pictures in which another held-out combination is painted in the place of the shape.

    change: the largest difference in a latent outside of what is painted.
    """
    pairs = [(a, b) for a in shapes.HELD_OUT for b in shapes.HELD_OUT if a.place == b.place and a.shape != b.shape]
    pairs = pairs[seed % 2 :: 2][: 12 * s.pictures]
    before = shapes.pixels([a for a, _ in pairs], np.random.default_rng([seed, 3]), s.image_size)
    known, wanted = encode(model, before, seed), [b for _, b in pairs]
    mask = torch.stack([painted(b.place, known.shape[-1]) for b in wanted])
    captions = [shapes.caption(b, LANGS[i % 2]) for i, b in enumerate(wanted)]
    source = Source(latents=known, strength=1.0, mask=mask)
    drawn = painter.draw(captions, BEST, USUAL, first=seed * MOST, source=source)
    change = (drawn - known).abs().masked_fill(mask, 0.0).max()
    share = 100 * right(judge, painter.pictures(drawn), wanted).float().mean(dim=0)[-1]
    return {"inpaint_change": float(change), "inpaint_all": float(share)}


def painted(place: int, side: int) -> Tensor:
    """(1, side, side) bool: True in that corner, five eighths of the side high and wide, which hold any shape there."""
    across, down = list(shapes.PLACES.values())[place][0]
    mask, width = torch.zeros(1, side, side, dtype=torch.bool), side * 5 // 8
    rows = slice(0, width) if down < 0.5 else slice(side - width, side)
    columns = slice(0, width) if across < 0.5 else slice(side - width, side)
    mask[:, rows, columns] = True
    return mask


def grid(rows: list[Tensor], s: Setting, path: Path) -> None:
    """Keep the first pictures of SHOWN, columns in both languages, as one picture."""
    each = [lang * len(shapes.HELD_OUT) + shapes.HELD_OUT.index(c) for lang in range(len(LANGS)) for c in SHOWN]
    places = [s.pictures * place for place in each]
    lines = [torch.cat([F.pad(row[i].clamp(-1, 1), (MARGIN,) * 4, value=1.0) for i in places], dim=2) for row in rows]
    levels = ((torch.cat(lines, dim=1) + 1) * 127.5).round().byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(path)


def measure(settings: Setting, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """One seed: pictures, weights and noise of its own; the judge is always the same. Percent."""
    s = settings

    def stage(name: str) -> Progress:
        return lambda what, done, total: progress(f"{name} | {what}", done, total)

    judge = shapes_judge.train(s.image_size, s.judge_steps, folder / "judge", stage("judge"))
    images, tokens = pool_of(s, seed)
    model, cost = train_latents(s, images, tokens, seed, folder, stage("latents"))
    objective, pixel_cost = train_pixels(s, images, tokens, cost, seed, folder, stage("pixels"))
    latents, pixels = latent_painter(s, model), pixel_painter(s, objective)
    meant, arms = draw_all(s, model, latents, pixels, seed, progress)
    grid([arms[name] for name in GRID], s, folder / PICTURES)
    found = {name: value for arm, drawn in arms.items() for name, value in judged(s, judge, arm, drawn, meant).items()}
    half = len(meant) // 2
    for lang, part in zip(LANGS, (slice(half), slice(half, None)), strict=True):
        found[f"{lang}_all"] = judged(s, judge, lang, arms[ARM][part], meant[part])[f"{lang}_all"]
    return {
        **found,
        **inpaint(s, model, latents, judge, seed),
        "gain_0": found[f"{ARM}_all"] - found["w0_all"],
        "gain_1": found[f"{ARM}_all"] - found["w1_all"],
        "diversity_left": 100 * found[f"{TOP}_diversity"] / found["w1_diversity"],
        "solver_gap": abs(found[f"{ARM}_all"] - found["ddim_all"]),
        "latent_flops": float(cost),
        "pixel_flops": float(pixel_cost),
        "latent_parameters": float(sum(p.numel() for part in (model.unet, model.texts) for p in part.parameters())),
        "pixel_parameters": float(sum(p.numel() for p in objective.module.parameters())),
    }


def draw_all(
    s: Setting, model: StableDiffusion, latents: Painter, pixels: Painter, seed: int, progress: Progress
) -> tuple[list[shapes.Combination], dict[str, Tensor]]:
    """What captions mean, and pictures of them by arm: real ones, those decoded from their latents, and drawn ones."""
    meant, captions = asked_of(s)
    real = shapes.pixels(meant, np.random.default_rng([seed, 2]), s.image_size)
    arms = {"real": real, "decoded": latents.pictures(encode(model, real, seed))}
    todo = [(f"w{w:g}", latents, w, USUAL) for w in SCALES] + [("ddim", latents, BEST, LONG)]
    todo += [(f"pixel_w{w:g}", pixels, w, USUAL) for w in PIXEL_SCALES]
    for done, (arm, painter, scale, sampling) in enumerate(todo):
        progress(f"draw | {arm}", done, len(todo))
        arms[arm] = painter.pictures(painter.draw(captions, scale, sampling, first=seed * MOST))
    return meant, arms


WORDS: dict[str, Words] = {
    "arm": {"ja": "未知の組み合わせ 24 (% 正答)", "en": "24 held-out combinations (% right)"},
    "shape": {"ja": "形", "en": "shape"},
    "colour": {"ja": "色", "en": "colour"},
    "place": {"ja": "位置", "en": "place"},
    "all": {"ja": "すべて", "en": "all three"},
    "diversity": {"ja": "多様性 (画素差 %)", "en": "diversity (RMS of pixels, %)"},
    "scale": {"ja": "ガイダンス w", "en": "guidance scale w"},
    "real": {"ja": "実画像", "en": "real pictures"},
    "decoded": {"ja": "自己符号化器を通した実画像", "en": "real, through the autoencoder"},
    "ddim": {"ja": "w = {:g}、DDIM 100 ステップ", "en": "w = {:g}, DDIM in 100 steps"},
    "in_ja": {"ja": "w = {:g}、日本語の説明文", "en": "w = {:g}, captions in Japanese"},
    "in_en": {"ja": "w = {:g}、英語の説明文", "en": "w = {:g}, captions in English"},
    "inpaint": {"ja": "インペイント、w = {:g}", "en": "inpainting, w = {:g}"},
    "latents": {"ja": "潜在空間、w = {:g}", "en": "latents, w = {:g}"},
    "pixels": {"ja": "画素空間、w = {:g}", "en": "pixels, w = {:g}"},
    "pixel_row": {"ja": "画素", "en": "pixels"},
}


def words(name: str, *values: float) -> Words:
    """A line of WORDS with its numbers."""
    return {lang: text.format(*values) for lang, text in WORDS[name].items()}


def draw(axes: Any, found: Mapping[str, Estimate], lang: Lang) -> None:
    """Percent right and diversity over the guidance scale, of latents and of pixels."""
    for what, style in (("all", "o-"), ("shape", "^--"), ("colour", "s--"), ("place", "v--")):
        line(axes, [found[f"w{w:g}_{what}"] for w in SCALES], style=style, label=WORDS[what][lang])
    pixels = [found.get(f"pixel_w{w:g}_all") for w in SCALES]
    line(axes, pixels, style="x:", label=f"{WORDS['all'][lang]} ({WORDS['pixel_row'][lang]})")
    axes.set_xticks(range(len(SCALES)), [f"{w:g}" for w in SCALES])
    axes.set(xlabel=WORDS["scale"][lang], ylabel=WORDS["arm"][lang], ylim=(0, 105))
    right_axes = axes.twinx()
    right_axes.set_prop_cycle(color=["gray"])
    line(right_axes, [found[f"w{w:g}_diversity"] for w in SCALES], style="D-", label=WORDS["diversity"][lang])
    right_axes.set(ylabel=WORDS["diversity"][lang], ylim=(0, 1.5 * found["w0_diversity"].value))
    right_axes.grid(visible=False)
    both = [one + other for one, other in zip(axes.get_legend_handles_labels(), right_axes.get_legend_handles_labels())]
    axes.legend(*both, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8)


def label(axes: Any, lang: Lang, japanese: bool) -> None:
    """Captions above the columns, in the language they were given in, and rows."""
    width = axes.images[0].get_array().shape[1]
    columns = [(spoken, c) for spoken in LANGS for c in SHOWN]
    side = width / len(columns)
    captions = [written(c, spoken if japanese else "en") for spoken, c in columns]
    rows = [WORDS["real"][lang], *(f"w = {w:g}" for w in SCALES), words("pixels", BEST)[lang]]
    axes.set_xticks((np.arange(len(columns)) + 0.5) * side - 0.5, captions, fontsize=7)
    axes.set_yticks((np.arange(len(rows)) + 0.5) * side - 0.5, [name.replace(", ", ",\n") for name in rows], fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)


def written(c: shapes.Combination, lang: Lang) -> str:
    """A caption in short lines."""
    return textwrap.fill(" ".join(shapes.caption(c, lang)), 5 if lang == "ja" else 9)


def row(name: Words, arm: str) -> tuple[Words, tuple[str | None, ...]]:
    """A row of the table."""
    return name, tuple(f"{arm}_{what}" for what in (*WHAT, "diversity"))


EXHIBIT = Exhibit(
    name="stable_diffusion",
    title={
        "ja": "Stable Diffusion: 見たことのない組み合わせを描く",
        "en": "Stable Diffusion: drawing what was never seen together",
    },
    shows={
        "ja": "形・色・位置の 120 通りの絵と日英の説明文で潜在拡散モデルを一から学習し、学習に出ない 24 通りを"
        "説明文から描く。実画像で学習した別のネットワークが判定する。ガイダンスを強めると正答が増え、やがて多様性が減る。"
        "同じ演算量で学習した画素空間の拡散モデルを並べる。",
        "en": "A latent diffusion model is trained from scratch on pictures of 120 combinations of shape, colour and place "
        "with captions in Japanese and English, and draws 24 other combinations from their captions; a network that learned "
        "from real pictures judges. With stronger guidance more of them are right, and then they become alike. A diffusion "
        "of pixels that was trained for as many operations stands beside.",
    },
    full=Setting(),
    quick=Setting(
        image_size=16,
        pool=10,
        vae_channels=(8, 16),
        vae_steps=200,
        channels=(16, 32, 32),
        pixel_channels=(16, 16, 32, 32),
        text_dim=32,
        steps=300,
        judge_steps=150,
        pictures=2,
    ),
    measure=measure,
    requirements=(
        Requirement(
            "real_all",
            {"ja": "判定器: 未知の組み合わせの実画像 (%)", "en": "judge: real held-out pictures (%)"},
            at_least=97,
        ),
        Requirement(
            f"{ARM}_all",
            {"ja": f"w = {BEST:g}: すべて正しい (%)", "en": f"w = {BEST:g}: all three right (%)"},
            at_least=60,
        ),
        Requirement(
            "gain_0", {"ja": "w = 0 (説明文なし) との差", "en": "points above w = 0 (no caption)"}, at_least=55
        ),
        Requirement(
            "gain_1", {"ja": "w = 1 (ガイダンスなし) との差", "en": "points above w = 1 (no guidance)"}, at_least=3
        ),
        Requirement(
            "diversity_left",
            {
                "ja": f"w = {SCALES[-1]:g} の多様性 (w = 1 の %)",
                "en": f"diversity at w = {SCALES[-1]:g} (% of that at w = 1)",
            },
            at_most=90,
        ),
        Requirement(
            "solver_gap",
            {
                "ja": "DPM++ 20 ステップと DDIM 100 ステップの差",
                "en": "points between DPM++ in 20 and DDIM in 100 steps",
            },
            at_most=5,
        ),
        Requirement(
            "inpaint_change",
            {
                "ja": "インペイント: 塗らない潜在の最大の変化",
                "en": "inpainting: largest change of a latent not painted",
            },
            at_most=0,
        ),
    ),
    columns=(WORDS["arm"], *(WORDS[what] for what in (*WHAT, "diversity"))),
    rows=(
        row(WORDS["real"], "real"),
        row(WORDS["decoded"], "decoded"),
        *(row(words("latents", w), f"w{w:g}") for w in SCALES),
        *((words(f"in_{lang}", BEST), (None, None, None, f"{lang}_all", None)) for lang in LANGS),
        (words("inpaint", BEST), (None, None, None, "inpaint_all", None)),
        row(words("ddim", BEST), "ddim"),
        *(row(words("pixels", w), f"pixel_w{w:g}") for w in PIXEL_SCALES),
    ),
    draw=draw,
    label=label,
    headline={
        "ja": f"未知の組み合わせを w = {BEST:g} で {{{ARM}_all:.1f}} % 正しく描く (w = 0: {{w0_all:.1f}} %、"
        f"w = 1: {{w1_all:.1f}} %、同じ演算量の画素空間: {{pixel_{ARM}_all:.1f}} %)",
        "en": f"{{{ARM}_all:.1f}}% of combinations never seen are drawn right at w = {BEST:g} (w = 0: {{w0_all:.1f}}%, "
        f"w = 1: {{w1_all:.1f}}%; in pixel space with as many operations {{pixel_{ARM}_all:.1f}}%)",
    },
)
