"""kiban-encoder-ja-en: MiniLM's English sentence space for Japanese, in minutes on a GPU or an hour on one core.

MiniLM gets Japanese tokens (`adapt.vocabulary`), each placed at its English translations (`adapt.align`), and loses the
tokens that neither language needs (`adapt.prune`). It may then guess hidden words of Japanese texts, and of pairs side by
side; and it learns to put a Japanese text where MiniLM put the English one (Reimers & Gurevych 2020). Some English texts
among them keep the English side in its place.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiban import zoo
from kiban.adapt.align import place_by_translation, translations
from kiban.adapt.distill import Embed, teacher_embeddings
from kiban.adapt.prune import prune
from kiban.adapt.vocabulary import expand, grow
from kiban.config import Progress, silent
from kiban.data.corruption import WordMasking
from kiban.data.loader import Loader
from kiban.engine.encoder import EncoderPlan
from kiban.evaluate.retrieval import recall
from kiban.families.bert import BertMaskedLM, mean_pool
from kiban.inputs.batch import pad_batch
from kiban.objectives.distillation import EmbeddingDistillation
from kiban.objectives.masked_lm import MaskedLM
from kiban.recipes.parallel_text import Pair, Selection
from kiban.train.precision import usual_device
from kiban.train.settings import Hooks, TrainConfig, TrainResult
from kiban.train.trainer import Trainer

Row = tuple[list[int], int]  # token ids, place of the pair


@dataclass(frozen=True, kw_only=True)
class Settings:
    """num_tokens: rows of the student's embedding, 23,400 being what 40 MB of float16 hold; num_japanese of them are new.

    max_len in tokens. english_share: of the pairs, how many are also shown in English. rows: pairs that are used, the
    first of the selection's; 0 for all. seconds: of distillation; 0 if steps say how long. masked_*: of masked language
    modelling before it, which takes hours without a GPU.
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
    masked_steps: int = 0
    masked_batch_size: int = 256
    masked_len: int = 128
    masked_lr: float = 5e-4
    eval_every: int = 100
    num_dev: int = 1_000
    checkpoint_every: int = 50
    seed: int = 0


# Seven times the steps of the published weights, four times the batch, and hidden words before: no better, see docs/log.md.
ON_GPU = Settings(
    seconds=0.0, steps=4_000, batch_size=512, lr=4e-4, masked_steps=2_000, eval_every=400, checkpoint_every=1_000
)


def train(
    selection: Selection,
    folder: Path,
    settings: Settings | None = None,
    *,
    texts: Sequence[str] = (),
    progress: Progress = silent,
) -> tuple[zoo.Loaded, TrainResult]:
    """The trained student. Started again with the same arguments, it goes on where it was interrupted.

    folder: gets the teacher's embeddings, the student as it began, checkpoints and metrics.jsonl. texts: Japanese, for
    masked language modelling.
    """
    c = settings or Settings()
    device = usual_device()
    pairs = selection.train[: c.rows or None]
    teacher = zoo.load(c.teacher)
    begun = folder / "begin"
    if not begun.exists():
        zoo.save(build_student(teacher, selection.train, c, progress=progress), begun)
    if c.masked_steps:
        read, begun = begun, folder / "masked" / "model"
        if not begun.exists():
            student, result = _read(read, texts, pairs, folder / "masked", c, device, progress)
            if result.stopped_by == "sigterm":
                return student, result
            zoo.save(student, begun)
    embed = _embedder(teacher, c.max_len, device, torch.bfloat16)
    targets = teacher_embeddings(
        embed,
        [pair.en for pair in pairs],
        folder / "teacher.f16",
        dim=teacher.config.dim,
        key=f"{c.teacher} {c.max_len}",
        progress=progress,
    )
    student = zoo.load(begun, device=device)
    student.module.requires_grad_()
    assert student.tokenizer is not None
    pad = student.tokenizer.pad_id or 0
    rows = _rows(student, pairs, c)

    def collate(rows: list[Row]) -> dict[str, Tensor]:
        tokens, mask = pad_batch([ids for ids, _ in rows], pad)
        return {"tokens": tokens, "mask": mask, "targets": torch.from_numpy(targets[[i for _, i in rows]]).float()}

    loader = Loader(rows, collate, batch_size=c.batch_size, seed=c.seed, length_of=lambda row: len(row[0]))
    dev = selection.dev[: c.num_dev]
    dev_targets = embed([pair.en for pair in dev])

    def evaluate() -> dict[str, float]:
        now = _embedder(student, c.max_len, device)([pair.ja for pair in dev])
        return {"recall@1": recall(now, dev_targets, 1), "cosine": float((now * dev_targets).sum(-1).mean())}

    objective = EmbeddingDistillation(student.module, contrast=c.contrast)
    trainer = Trainer(
        objective,
        student.module,
        loader,
        _config(c, steps=c.steps, batch_size=c.batch_size, lr=c.lr, seconds=c.seconds),
        folder=folder,
        hooks=Hooks(evaluate=evaluate),
        progress=progress,
    )
    result = trainer.run()
    student.module.cpu()
    return student, result


def _config(c: Settings, **settings: Any) -> TrainConfig:
    return TrainConfig(
        micro_batch_size=settings["batch_size"],
        schedule="wsd",
        warmup=0.05,
        betas=(0.9, 0.98),
        eval_every=c.eval_every,
        checkpoint_every=c.checkpoint_every,
        seed=c.seed,
        **settings,
    )


def _embedder(loaded: zoo.Loaded, max_len: int, device: str, dtype: torch.dtype = torch.float32) -> Embed:
    """Sentence embeddings (N, D) float32, computed on device by the model as it is now; on the CPU in dtype."""
    if device == "cpu":
        return EncoderPlan(loaded, max_len=max_len, dtype=dtype).embed
    loaded.module.to(device)
    return partial(_embed, loaded, max_len)


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


def _read(
    begun: Path,
    texts: Sequence[str],
    pairs: Sequence[Pair],
    folder: Path,
    c: Settings,
    device: str,
    progress: Progress,
) -> tuple[zoo.Loaded, TrainResult]:
    """The student of begun after masked language modelling; its head is not kept."""
    student = zoo.load(begun, device=device)
    tokenizer, body = student.tokenizer, student.module
    assert tokenizer is not None
    module = BertMaskedLM(body)  # type: ignore[arg-type]
    module.initialise(torch.Generator().manual_seed(c.seed))
    module.to(device).requires_grad_()
    masking = WordMasking.of(tokenizer)

    def collate(rows: list[list[int]]) -> dict[str, Tensor]:
        tokens, mask = pad_batch(rows, tokenizer.pad_id or 0)
        # The trainer keeps the state of this generator, so that a resumed run hides the same words.
        hidden, labels = masking(tokens, torch.default_generator)
        return {"tokens": hidden, "mask": mask, "labels": labels}

    size = c.masked_batch_size
    loader = Loader(_masked_rows(student, texts, pairs, c), collate, batch_size=size, seed=c.seed, length_of=len)
    config = _config(c, steps=c.masked_steps, batch_size=size, lr=c.masked_lr)
    result = Trainer(MaskedLM(module), module, loader, config, folder=folder, progress=progress).run()
    body.cpu()
    return student, result


def _masked_rows(student: zoo.Loaded, texts: Sequence[str], pairs: Sequence[Pair], c: Settings) -> list[list[int]]:
    """Texts in rows of masked_len tokens; and pairs side by side, so that a word can be read off the other language.

    The latter is translation language modelling, Conneau & Lample 2019, section 3.3.
    """
    tokenizer, room, half = student.tokenizer, c.masked_len - 2, (c.masked_len - 3) // 2
    assert tokenizer is not None and tokenizer.cls_id is not None and tokenizer.sep_id is not None
    first, last = tokenizer.cls_id, tokenizer.sep_id
    encode = partial(tokenizer.encode_batch, add_special=False)
    rows = [[first, *ids[i : i + room], last] for ids in encode(list(texts)) for i in range(0, len(ids), room)]
    sides = zip(encode([pair.ja for pair in pairs]), encode([pair.en for pair in pairs]), strict=True)
    return rows + [[first, *ja[:half], last, *en[:half], last] for ja, en in sides]


@torch.inference_mode()
def _embed(loaded: zoo.Loaded, max_len: int, texts: Sequence[str]) -> Tensor:
    """`EncoderPlan.embed` for a model on a GPU."""
    module, tokenizer = loaded.module, loaded.tokenizer
    assert tokenizer is not None
    rows = tokenizer.encode_batch(list(texts), max_len=max_len)
    device, found = next(module.parameters()).device, torch.zeros(len(rows), loaded.config.dim)
    order = iter(sorted(range(len(rows)), key=lambda i: len(rows[i])))
    while chosen := list(islice(order, 512)):
        tokens, mask = (x.to(device) for x in pad_batch([rows[i] for i in chosen], tokenizer.pad_id or 0))
        found[chosen] = mean_pool(module(tokens, mask=mask), mask).float().cpu()
    return found


def _rows(student: zoo.Loaded, pairs: Sequence[Pair], c: Settings) -> list[Row]:
    """Japanese of every pair, English of some."""
    assert student.tokenizer is not None
    rng = random.Random(c.seed)
    english = [i for i in range(len(pairs)) if rng.random() < c.english_share]
    ja = student.tokenizer.encode_batch([pair.ja for pair in pairs], max_len=c.max_len)
    en = student.tokenizer.encode_batch([pairs[i].en for i in english], max_len=c.max_len)
    return [*zip(ja, range(len(pairs)), strict=True), *zip(en, english, strict=True)]
