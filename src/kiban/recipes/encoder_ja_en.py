"""kiban-encoder-ja-en: MiniLM's English sentence space for Japanese, on one core in about an hour.

MiniLM gets Japanese tokens (`adapt.vocabulary`), each placed at its English translations (`adapt.align`), loses the
tokens that neither language needs (`adapt.prune`), and then learns to put a Japanese text where MiniLM put the English
one (Reimers & Gurevych 2020). Some English texts among them keep the English side in its place.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.align import place_by_translation, translations
from kiban.adapt.distill import teacher_embeddings
from kiban.adapt.prune import prune
from kiban.adapt.vocabulary import expand, grow
from kiban.config import Progress, silent
from kiban.data.loader import Loader
from kiban.engine.encoder import EncoderPlan
from kiban.evaluate.retrieval import recall
from kiban.inputs.batch import pad_batch
from kiban.objectives.distillation import EmbeddingDistillation
from kiban.recipes.parallel_text import Pair, Selection
from kiban.train.settings import Hooks, TrainConfig, TrainResult
from kiban.train.trainer import Trainer

Row = tuple[list[int], int]  # token ids, place of the pair


@dataclass(frozen=True, kw_only=True)
class Settings:
    """num_tokens: rows of the student's embedding, 23,400 being what 40 MB of float16 hold; num_japanese of them are new.

    max_len in tokens. english_share: of the pairs, how many are also shown in English. rows: pairs that are used, the
    first of the selection's; 0 for all. seconds: of training.
    """

    teacher: str = "minilm-l6"
    num_tokens: int = 23_400
    num_japanese: int = 10_000
    max_len: int = 64
    english_share: float = 0.15
    rows: int = 0
    seconds: float = 3_300.0
    steps: int = 1_000
    batch_size: int = 128
    lr: float = 3e-4
    contrast: float = 0.5
    eval_every: int = 100
    num_dev: int = 1_000
    checkpoint_every: int = 50
    seed: int = 0


def train(
    selection: Selection, folder: Path, settings: Settings | None = None, *, progress: Progress = silent
) -> tuple[zoo.Loaded, TrainResult]:
    """The trained student. Started again with the same arguments, it goes on where it was interrupted.

    folder: gets the teacher's embeddings, the student as it began, checkpoints and metrics.jsonl.
    """
    c = settings or Settings()
    pairs = selection.train[: c.rows or None]
    teacher = zoo.load(c.teacher)
    plan = EncoderPlan(teacher, max_len=c.max_len, dtype=torch.bfloat16)
    targets = teacher_embeddings(
        plan.embed,
        [pair.en for pair in pairs],
        folder / "teacher.f16",
        dim=teacher.config.dim,
        key=f"{c.teacher} {c.max_len}",
        progress=progress,
    )
    begun = folder / "begin"
    if not begun.exists():
        zoo.save(build_student(teacher, selection.train, c, progress=progress), begun)
    student = zoo.load(begun)
    student.module.requires_grad_()
    assert student.tokenizer is not None
    pad = student.tokenizer.pad_id or 0
    rows = _rows(student, pairs, c)

    def collate(rows: list[Row]) -> dict[str, Tensor]:
        tokens, mask = pad_batch([ids for ids, _ in rows], pad)
        return {"tokens": tokens, "mask": mask, "targets": torch.from_numpy(targets[[i for _, i in rows]]).float()}

    loader = Loader(rows, collate, batch_size=c.batch_size, seed=c.seed, length_of=lambda row: len(row[0]))
    dev = selection.dev[: c.num_dev]
    dev_targets = plan.embed([pair.en for pair in dev])

    def evaluate() -> dict[str, float]:
        now = EncoderPlan(student, max_len=c.max_len).embed([pair.ja for pair in dev])
        return {"recall@1": recall(now, dev_targets, 1), "cosine": float((now * dev_targets).sum(-1).mean())}

    config = TrainConfig(
        steps=c.steps,
        batch_size=c.batch_size,
        micro_batch_size=c.batch_size,
        lr=c.lr,
        seconds=c.seconds,
        schedule="wsd",
        warmup=0.05,
        betas=(0.9, 0.98),
        eval_every=c.eval_every,
        checkpoint_every=c.checkpoint_every,
        seed=c.seed,
    )
    objective = EmbeddingDistillation(student.module, contrast=c.contrast)
    trainer = Trainer(
        objective, student.module, loader, config, folder=folder, hooks=Hooks(evaluate=evaluate), progress=progress
    )
    return student, trainer.run()


def publish(student: zoo.Loaded, folder: Path, *, card: str, facts: Mapping[str, Any], max_len: int = 256) -> None:
    """Write a folder that `kiban.load` and `SentenceTransformer` open, in float16. It must not exist.

    card: README.md. facts: for the manifest. max_len: tokens after which both cut a text.
    """
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(("Transformer", "Pooling", "Normalize"))
    ]
    files = {
        "README.md": card,
        "modules.json": _json(modules),
        "sentence_bert_config.json": _json({"max_seq_length": max_len, "do_lower_case": False}),
        "1_Pooling/config.json": _json(
            {"word_embedding_dimension": student.config.dim, "pooling_mode_mean_tokens": True}
        ),
    }
    # Stored in float16, used in float32: half precision is slow on most processors.
    zoo.save(student, folder, files=files, manifest=facts, stored=torch.float16)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def build_student(
    teacher: zoo.Loaded, pairs: Sequence[Pair], c: Settings, *, progress: Progress = silent
) -> zoo.Loaded:
    """The teacher with Japanese tokens at their translations and without tokens that the pairs do not need."""
    assert teacher.tokenizer is not None
    num_old = teacher.config.vocab_size
    spare = 1.1  # some tokens that were learned are never chosen when text is cut
    tokenizer = expand(
        teacher.tokenizer, [pair.ja for pair in pairs], num_new=int(spare * c.num_japanese), progress=progress
    )
    generator = torch.Generator().manual_seed(c.seed)
    grown = grow(teacher, tokenizer, init="mean", generator=generator)
    ja = tokenizer.encode_batch([pair.ja for pair in pairs], add_special=False, max_len=c.max_len)
    en = tokenizer.encode_batch([pair.en for pair in pairs], add_special=False, max_len=c.max_len)
    short = [(a, b) for a, b in zip(ja, en, strict=True) if len(a) * len(b) <= 24 * 24]
    found = translations(short, ignore=tokenizer.backend.control_tokens().values(), progress=progress)
    module: Any = grown.module
    new = range(num_old, tokenizer.vocab_size)
    module.embed.token.weight.data = place_by_translation(module.embed.token.weight.data, found, new=new)
    used_ja, used_en = (Counter(id for ids in side for id in ids) for side in (ja, en))
    japanese = [id for id, _ in used_ja.most_common() if id >= num_old][: c.num_japanese]
    frequent = [id for id, count in used_en.items() if count >= 20 and id < num_old]
    others = [id for id, count in used_ja.items() if count >= 20 and id < num_old]
    keep = {*japanese, *frequent, *others, *_letters(tokenizer.backend.token_to_id)}
    # BERT's ids go by frequency in its own text, so low ones are the words of general English; 999 first are unused.
    for id in range(999, num_old):
        if len(keep) >= c.num_tokens - len(tokenizer.backend.control_tokens()):
            break
        keep.add(id)
    return prune(grown, keep, dropout=0.0)


def _letters(id_of: Callable[[str], int | None]) -> set[int]:
    """Every letter, digit and sign of ASCII at the beginning of a word and inside, so that any word can be spelt."""
    characters = [chr(code) for code in range(33, 127)]
    ids = [id_of(form) for c in characters for form in (c, f"##{c}")]
    return {id for id in ids if id is not None}


def _rows(student: zoo.Loaded, pairs: Sequence[Pair], c: Settings) -> list[Row]:
    """Japanese of every pair, English of some."""
    assert student.tokenizer is not None
    rng = random.Random(c.seed)
    english = [i for i in range(len(pairs)) if rng.random() < c.english_share]
    ja = student.tokenizer.encode_batch([pair.ja for pair in pairs], max_len=c.max_len)
    en = student.tokenizer.encode_batch([pairs[i].en for i in english], max_len=c.max_len)
    return [*zip(ja, range(len(pairs)), strict=True), *zip(en, english, strict=True)]
