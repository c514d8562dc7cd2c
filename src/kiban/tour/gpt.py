"""GPT: learning a task from the prompt alone. Brown et al. 2020, section 3; the world after Xie et al. 2022, section 2.

World. 24 questions have 8 possible answers each, and a hidden table says which is right. There are 16 tables; a prompt
belongs to one of them, and nothing in it says to which. Prompts are `question answer question answer ...`, no question
twice, and every answer is wrong with probability 1/4. A GPT is trained to predict the answers.
Test. Up to 16 shots, then a question that is not among them: copying an answer does not help, the table must be inferred
and applied. What a reader who knows all tables could do at best is computed on the same prompts (Bayes' rule).
Each answer of each question is a token of its own, so which question an answer belongs to need not be learned; with
answers that all questions share the same model was still at 21% with 16 shots after 1,900 steps, here it needs 400.
Balance. Over the tables every answer to a question is equally frequent, so without shots 1/8 is right, whoever answers. In
every table each of the 8 answer numbers is equally frequent, so that counting them tells nothing.
Ablation. The answer numbers are dealt round among the shots, so that none stays: format, questions, frequencies and noise
are as they were, but what the shots say of the table is gone. As they mislead, at most what no shots give may be left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress
from kiban.data.loader import Loader
from kiban.families.gpt import GPT, GPTConfig
from kiban.inputs.batch import IGNORE
from kiban.objectives.causal_lm import CausalLM
from kiban.tour.exhibit import Estimate, Exhibit, Lang, Requirement, Words
from kiban.tour.gpt_world import SHOTS, Ints, Prompts, World, answer_tokens, draw_tables, exact_bayes
from kiban.tour.page import line
from kiban.tour.running import fit
from kiban.train.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Setting(World):
    """The world, the model and its training. prompts: held-out ones, a multiple of tables times questions."""

    num_layers: int = 2
    dim: int = 208
    num_heads: int = 4
    steps: int = 400
    batch_size: int = 32
    lr: float = 5e-3
    prompts: int = 10 * 16 * 24


def collate(s: Setting, tables: Ints, seed: int, rows: list[int]) -> dict[str, Tensor]:
    """A batch of training prompts, drawn from the seed and the first row's number; only answers are to be predicted."""
    tokens = Prompts.draw(s, tables, np.random.default_rng([seed, 1, rows[0]]), len(rows)).tokens(s)
    labels = tokens.clone()
    labels[:, 0::2] = IGNORE
    return {"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool), "labels": labels}


def train(s: Setting, tables: Ints, seed: int, folder: Path, progress: Progress) -> GPT:
    """A GPT trained from scratch on prompts of these tables."""
    vocabulary = s.num_questions * (1 + s.num_answers)
    model = GPT(
        GPTConfig(
            vocab_size=vocabulary,
            num_layers=s.num_layers,
            dim=s.dim,
            num_heads=s.num_heads,
            max_seq_len=2 * SHOTS[-1] + 1,
        )
    )
    model.initialise(torch.Generator().manual_seed(seed))
    loader = Loader(
        range(s.steps * s.batch_size), lambda rows: collate(s, tables, seed, rows), batch_size=s.batch_size, seed=seed
    )
    config = TrainConfig(
        steps=s.steps,
        batch_size=s.batch_size,
        micro_batch_size=s.batch_size,
        lr=s.lr,
        optimizer="muon",
        betas=(0.9, 0.99),
        warmup=0.05,
        schedule="wsd",
        checkpoint_every=100,
        seed=seed,
    )
    fit(CausalLM(model), model, loader, config, folder, progress)
    return model


@torch.no_grad()
def accuracy(s: Setting, model: GPT, prompts: Prompts, shots: int) -> NDArray[np.float64]:
    """Percent of prompts whose likeliest next token, of all, is the right answer behind 0, 1, ... shots."""
    tokens = prompts.tokens(s)[:, : 2 * shots + 1]
    told = torch.cat([model(part)[:, 0::2].argmax(-1) for part in torch.split(tokens, 256)]).numpy()
    right = answer_tokens(s, prompts.questions, prompts.right)[:, : shots + 1]
    return np.asarray(100 * (told == right).mean(axis=0))


def measure(settings: Setting, *, seed: int, folder: Path, progress: Progress) -> dict[str, float]:
    """One seed: its own tables, weights and prompts. Percent, and differences in points."""
    s = settings
    tables = draw_tables(s, np.random.default_rng([seed, 0]))
    model = train(s, tables, seed, folder, progress)
    rng = np.random.default_rng([seed, 2])
    prompts = Prompts.draw(s, tables, rng, s.prompts)
    likeliest = exact_bayes(s, tables, prompts).argmax(axis=-1)
    found: dict[str, float] = {}
    learned, best = accuracy(s, model, prompts, SHOTS[-1]), 100 * (likeliest == prompts.right).mean(axis=0)
    for number, shots in enumerate(SHOTS):
        progress("test", number, len(SHOTS))
        found |= {f"gpt_{shots}": float(learned[shots]), f"bayes_{shots}": float(best[shots])}
        if shots >= 2:
            found[f"dealt_{shots}"] = float(accuracy(s, model, prompts.dealt_round(shots, rng), shots)[shots])
    steps = np.diff(learned[list(SHOTS)])
    return found | {
        "gain": found["gpt_16"] - found["gpt_0"],
        "least_step": float(steps.min()),
        "behind_bayes": max(found[f"bayes_{shots}"] - found[f"gpt_{shots}"] for shots in SHOTS),
        "dealt_over_none": found["dealt_16"] - found["gpt_0"],
        "parameters": float(sum(p.numel() for p in model.blocks.parameters())),
    }


WORDS: dict[str, Words] = {
    "gpt": {"ja": "GPT", "en": "GPT"},
    "bayes": {"ja": "厳密なベイズ", "en": "exact Bayes"},
    "dealt": {"ja": "例の答えを入れ替え", "en": "answers dealt round"},
    "shots": {"ja": "例の数", "en": "shots"},
    "right": {"ja": "正答率 (%)", "en": "right (%)"},
}


def draw(axes: Any, found: Mapping[str, Estimate], lang: Lang) -> None:
    """Percent right against shots: model, exact Bayes, ablation."""
    for name, style in (("bayes", "k--"), ("gpt", "C0o-"), ("dealt", "C3s-")):
        line(axes, [found.get(f"{name}_{shots}") for shots in SHOTS], style=style, label=WORDS[name][lang])
    axes.set_xticks(range(len(SHOTS)), [str(shots) for shots in SHOTS])
    axes.set(xlabel=WORDS["shots"][lang], ylabel=WORDS["right"][lang], ylim=(0, 103))
    axes.legend(loc="upper left")


EXHIBIT = Exhibit(
    name="gpt",
    title={"ja": "GPT: 例だけから課題を学ぶ", "en": "GPT: a task learned from its prompt alone"},
    shows={
        "ja": "16 個の隠れた表のどれかに従う問答で GPT を学習する。答えの 4 分の 1 は誤り。"
        "例が増えるほど、例にない問いの正答率は、表をすべて知る厳密なベイズ推論に近づく。例の答えを互いに入れ替えると、例がないとき以下に落ちる。",
        "en": "A GPT is trained on questions and answers that follow one of 16 hidden tables; a quarter of the answers is "
        "wrong. The more shots a prompt has, the nearer its answers to a question that is not among them come to exact "
        "Bayes, which knows all tables. With the answers of the shots dealt round, no more is left than without shots.",
    },
    full=Setting(),
    quick=Setting(dim=64, steps=250, lr=1e-2, prompts=16 * 24),
    measure=measure,
    requirements=(
        Requirement("gain", {"ja": "0 例から 16 例までの上昇", "en": "rise from 0 to 16 shots, points"}, at_least=45),
        Requirement("least_step", {"ja": "各段の上昇の最小", "en": "smallest rise between neighbours"}, at_least=0),
        Requirement("behind_bayes", {"ja": "厳密なベイズとの最大の差", "en": "most behind exact Bayes"}, at_most=10),
        Requirement("parameters", {"ja": "埋め込み以外のパラメータ", "en": "parameters but embeddings"}, at_least=1e6),
        Requirement(
            "dealt_over_none",
            {"ja": "答えを入れ替えた 16 例 − 0 例", "en": "16 shots dealt round, above 0 shots"},
            at_most=0,
        ),
    ),
    columns=(WORDS["shots"], WORDS["gpt"], WORDS["bayes"], WORDS["dealt"]),
    rows=tuple(
        (
            {"ja": str(shots), "en": str(shots)},
            (f"gpt_{shots}", f"bayes_{shots}", f"dealt_{shots}" if shots >= 2 else None),
        )
        for shots in SHOTS
    ),
    draw=draw,
    headline={
        "ja": "0 → 16 例で正答率 {gpt_0:.1f} → {gpt_16:.1f} % (厳密なベイズ {bayes_16:.1f} %)、"
        "答えを入れ替えると {dealt_16:.1f} %",
        "en": "0 to 16 shots: {gpt_0:.1f} to {gpt_16:.1f}% right (exact Bayes {bayes_16:.1f}%), "
        "with answers dealt round {dealt_16:.1f}%",
    },
)
