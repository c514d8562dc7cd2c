"""Pretraining: a corpus and a recipe in, a run folder with the model out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kiban import zoo
from kiban.config import Progress, silent
from kiban.data import next_sentence, packing
from kiban.data.corruption import WordMasking
from kiban.data.loader import Loader
from kiban.data.shards import Shards
from kiban.evaluate.language import bits_per_character, score_documents
from kiban.evaluate.ngram import KneserNey
from kiban.files import write_text
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate
from kiban.objectives.base import Objective
from kiban.objectives.causal_lm import CausalLM
from kiban.objectives.masked_lm import MaskedLM
from kiban.recipes.base import Recipe, flops_per_token
from kiban.recipes.corpus import Corpus
from kiban.train.parallel import Parallel
from kiban.train.precision import Precision, choose, usual_device
from kiban.train.settings import Hooks, TrainConfig
from kiban.train.trainer import Trainer

NGRAM_TOKENS = 3 * 10**7  # of training text that the n-gram model counts at most
WATCH_CHARACTERS = 60_000  # held-out text that is scored while training; all of it, to a bound, at the end
END_CHARACTERS = 2_000_000
# What a GPU takes at once at least, if the model has no more parameters than this.
GPU_TOKENS, GPU_PARAMETERS = 2**15, 10**8
# Of a decoder over its text, when only a time is given. Up to 4 are worth almost as much as new text, later ones less and
# less (Muennighoff et al. 2023, section 6); 14M parameters on 11M tokens got worse on held-out text after 6.
MAX_PASSES = 6
SENTENCE_ENDS = tuple("。！？.!?")


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to train: exactly one is given. seconds are of training alone."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same however long a run takes. note is told what a person would want to see on the way."""

    recipe: Recipe
    corpus: Corpus
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    ema: float = 0.0

    def model(self, *, device: torch.device | str = "cpu") -> zoo.Loaded:
        """The model with fresh weights; of a masked language model with its pretraining heads."""
        loaded = zoo.new(
            zoo.families()[self.recipe.family],
            self.recipe.config(self.corpus.tokenizer.vocab_size),
            self.recipe.size,
            head=None if self.recipe.objective == "causal_lm" else "pretraining",
            generator=torch.Generator().manual_seed(self.seed),
        )
        loaded.module.to(device)
        return replace(loaded, tokenizer=self.corpus.tokenizer)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """result.json of a run. Losses are natural, per token; ngram_bits is of interpolated Kneser-Ney, order 5."""

    family: str
    size: str
    parameters: int
    vocab_size: int
    train_tokens: int
    steps: int
    tokens: int
    epochs: float
    seconds: float
    stopped_by: str
    metrics: dict[str, float]
    ngram_bits_per_character: float | None = None


def rows_of(plan: Plan, shards: Shards) -> tuple[Any, Callable[[list[Any]], dict[str, torch.Tensor]], Any]:
    """The rows of a corpus for the recipe's objective, what makes a batch of them, and the objective (module to it)."""
    recipe, tokenizer = plan.recipe, plan.corpus.tokenizer
    if recipe.objective == "causal_lm":
        return packing.PackedRows(shards, recipe.seq_len), packing.collate, partial(CausalLM, z_loss=recipe.z_loss)
    assert tokenizer.cls_id is not None and tokenizer.sep_id is not None and tokenizer.pad_id is not None
    ends = [id for mark in SENTENCE_ENDS if (id := tokenizer.backend.token_to_id(mark)) is not None]
    pairs = next_sentence.SentencePairs(
        [_sentences(shards.document(i)[1:], ends) for i in range(len(shards))],
        WordMasking.of(tokenizer),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        max_len=recipe.seq_len,
        seed=plan.seed,
    )
    collate = partial(next_sentence.collate, pad_id=tokenizer.pad_id)
    return pairs, collate, partial(MaskedLM, hidden_per_row=pairs.hidden_per_row)


def _sentences(ids: np.ndarray[Any, np.dtype[np.int64]], ends: list[int]) -> list[list[int]]:
    """A document's tokens, cut behind each of ends, the tokens that end a sentence."""
    cuts = np.flatnonzero(np.isin(ids, ends)) + 1
    return [part.tolist() for part in np.split(ids, cuts) if len(part)]


def train_config(recipe: Recipe, **settings: Any) -> TrainConfig:
    """How the trainer trains this recipe; settings are what a recipe does not say, steps among them."""
    return TrainConfig(
        batch_size=recipe.batch_rows,
        micro_batch_size=max(1, recipe.micro_tokens // recipe.seq_len),
        lr=recipe.lr,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        warmup=recipe.warmup,
        schedule=recipe.schedule,
        **settings,
    )


def trainer_of(
    plan: Plan,
    loaded: zoo.Loaded,
    material: tuple[Any, Any, Any],
    length: Length,
    folder: Path | None,
    hooks: Hooks,
    parallel: Parallel,
    progress: Progress,
) -> Trainer:
    """The trainer of a plan; material is what `rows_of` gives."""
    recipe, (rows, collate, objective) = plan.recipe, material
    steps = length.steps or math.ceil(length.tokens / recipe.batch_tokens) or 1000
    passes = MAX_PASSES if recipe.objective == "causal_lm" else 0
    if next(loaded.module.parameters()).is_cuda and loaded.num_parameters <= GPU_PARAMETERS:
        recipe = replace(recipe, micro_tokens=max(recipe.micro_tokens, GPU_TOKENS))
    config = train_config(
        recipe,
        steps=steps,
        seconds=length.seconds,
        most_steps=math.ceil(passes * plan.corpus.train.facts.tokens / recipe.batch_tokens),
        ema=plan.ema,
        precision=plan.precision,
        compile=plan.compile,
        recompute=plan.recompute,
        eval_every=max(10, steps // 10),
        sample_every=max(10, steps // 5),
        checkpoint_every=max(20, steps // 10),
        seed=plan.seed,
    )
    loss: Objective = objective(loaded.module)
    return Trainer(
        loss,
        loaded.module,
        Loader(rows, collate, batch_size=recipe.batch_rows, seed=plan.seed),
        config,
        folder=folder,
        hooks=hooks,
        flops_per_token=flops_per_token(loaded.module, loaded.config, recipe.seq_len),
        parallel=parallel,
        progress=progress,
    )


def pretrain(
    plan: Plan,
    length: Length,
    folder: Path,
    *,
    parallel: Parallel | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> tuple[zoo.Loaded, Pretrained]:
    """Train in folder, or go on with a run that was interrupted there; gives the model and what was measured.

    A time budget needs a recipe with schedule "wsd". Raises NonFiniteError, CheckpointError or DatasetError.
    """
    recipe, corpus = plan.recipe, plan.corpus
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    parallel = parallel or Parallel()
    loaded = plan.model(device=parallel.device if parallel.world > 1 else usual_device())
    judge = Judge(plan, loaded)
    floor = parallel.inside(loaded.module, lambda: judge.ngram(progress))
    if floor is not None:
        note(f"n-gram model (Kneser-Ney, order 5): bits_per_character {floor:.3f}")

    def evaluate() -> dict[str, float]:
        found = judge(WATCH_CHARACTERS)
        note("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
        return found

    def sample() -> str:
        text = judge.sample()
        note(text)
        return text

    hooks = Hooks(evaluate=evaluate, sample=sample if recipe.objective == "causal_lm" else None)
    material = rows_of(plan, corpus.train)
    trainer = trainer_of(plan, loaded, material, length, folder / "checkpoints", hooks, parallel, progress)
    done = trainer.run()
    ended = done.stopped_by != "sigterm"  # a signal leaves no time to measure
    result = Pretrained(
        family=recipe.family,
        size=recipe.size,
        parameters=loaded.num_parameters,
        vocab_size=corpus.tokenizer.vocab_size,
        train_tokens=corpus.train.facts.tokens,
        steps=done.steps,
        tokens=done.tokens,
        epochs=done.tokens / corpus.train.facts.tokens,
        seconds=round(done.seconds, 1),
        stopped_by=done.stopped_by,
        metrics=parallel.inside(loaded.module, lambda: judge(END_CHARACTERS)) if ended else {},
        ngram_bits_per_character=floor,
    )
    if ended and parallel.rank == 0:
        write_text(folder / "result.json", json.dumps(asdict(result), indent=1))
    return loaded, result


def held_out_bits(module: nn.Module, corpus: Corpus, context: int, characters: int) -> float:
    """Bits per character of held-out documents with so many characters, the same ones for every model and tokenizer."""
    shards = corpus.held_out
    chosen = _some_documents(shards, characters)
    texts, device = [shards.document(i).tolist() for i in chosen], next(module.parameters()).device
    sums = score_documents(module, texts, context=context, stride=context // 2, batch_size=16, device=device)
    return bits_per_character(float(sums.sum()), int(shards.characters[chosen].sum()))


def _some_documents(shards: Shards, characters: int) -> list[int]:
    order = np.random.default_rng(0).permutation(len(shards))
    enough = int(np.searchsorted(np.cumsum(shards.characters[order]), characters)) + 1
    return sorted(order[:enough].tolist())


class Judge:
    """Measures a model on the held-out documents of its corpus."""

    def __init__(self, plan: Plan, loaded: zoo.Loaded) -> None:
        self.plan, self.loaded = plan, loaded
        self.fast = choose(plan.precision, loaded.module) == "bf16"

    def __call__(self, characters: int) -> dict[str, float]:
        """Bits per character of a decoder; losses and accuracies of a masked language model."""
        module: nn.Module = self.loaded.module
        device = next(module.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.fast):
            if self.plan.recipe.objective == "causal_lm":
                bits = held_out_bits(module, self.plan.corpus, self.plan.recipe.seq_len, characters)
                return {"bits_per_character": bits}
            rows, collate, objective = self._pairs
            count = min(len(rows), max(16, characters // self.plan.recipe.seq_len))
            batches = (
                collate([rows[i] for i in range(start, min(start + 16, count))]) for start in range(0, count, 16)
            )
            module.eval()
            measured: dict[str, float] = objective(module).evaluate(batches)
            return measured

    @cached_property
    def _pairs(self) -> tuple[Any, Any, Any]:
        return rows_of(self.plan, self.plan.corpus.held_out)

    def ngram(self, progress: Progress) -> float | None:
        """Bits per character of the n-gram model on the same held-out documents, as it is after the whole of training."""
        train, held_out = self.plan.corpus.train, self.plan.corpus.held_out
        if self.plan.recipe.objective != "causal_lm":
            return None
        last = int(np.searchsorted(train.ends, NGRAM_TOKENS, side="right")) or 1
        end = int(train.ends[min(last, len(train)) - 1])
        model = KneserNey.fit(
            train.read(0, end),
            vocab_size=train.facts.vocab_size,
            starts=train.starts[train.starts < end],
            progress=progress,
        )
        chosen = _some_documents(held_out, END_CHARACTERS)
        texts = [held_out.document(i) for i in chosen]
        starts = np.cumsum([0, *map(len, texts)])[:-1]
        scores = model.log_probs(np.concatenate(texts), starts=starts)
        scores[starts] = 0.0  # the token that begins every document
        return bits_per_character(float(scores.sum()), int(held_out.characters[chosen].sum()))

    def sample(self) -> str:
        """What the model writes by itself, 48 tokens."""
        tokenizer = self.plan.corpus.tokenizer
        begin = [self.plan.corpus.train.facts.eos_id]
        model: Any = self.loaded.module
        return generate(model, tokenizer, [begin], Sampling(max_new_tokens=48, temperature=0.8, top_p=0.95))[0].text
