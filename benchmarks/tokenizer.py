"""Japanese BERT's tokenizer beside Hugging Face's, same texts, same ids; with --gigabyte, memory of training on 1 GB.

"MeCab alone" only cuts the normalised texts into words, through the same C interface and in as many threads: no tokenizer
that uses MeCab can be faster.

The texts are those that `python examples/get_text.py` has fetched, else examples/data/debian-ja.csv.

pip install -e ".[test]" && python benchmarks/tokenizer.py --save
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import arguments, finish, medians, table
from kiban.inputs.learn import train_bpe, train_unigram, train_wordpiece
from kiban.inputs.mecab import mecab
from kiban.inputs.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
CHARACTERS = 1_500_000  # of the sample that is timed
PASSAGE = 400  # about what BERT's 512 tokens take
VOCABULARY = 32_768  # of tohoku-nlp's bert-base-japanese-v3
GIGABYTE = 10**9
TRAINERS: dict[str, Callable[..., Tokenizer]] = {
    "bpe": train_bpe,
    "unigram": train_unigram,
    "wordpiece": train_wordpiece,
}


def texts() -> list[str]:
    """All Japanese texts at hand, in random order."""
    found = [
        json.loads(line)["text"]
        for path in sorted((EXAMPLES / "cache" / "text-ja").glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    if not found:
        with (EXAMPLES / "data" / "debian-ja.csv").open(encoding="utf-8", newline="") as file:
            found = [row["本文"] for row in csv.DictReader(file)]
    random.Random(0).shuffle(found)
    return found


def sample(found: list[str]) -> list[str]:
    """Passages of about PASSAGE characters, whole lines, about CHARACTERS in all."""
    result, part, size = [], "", 0
    for line in (line for text in found for line in text.splitlines() if line.strip()):
        part += line + "\n"
        if len(part) >= PASSAGE:
            result.append(part)
            size += len(part)
            part = ""
        if size >= CHARACTERS:
            break
    return [*result, part] if part else result


def speed(inputs: list[str], repeats: int) -> list[dict[str, Any]]:
    """Characters a second with both kinds of subwords, and whether the ids are the same."""
    logging.disable(logging.WARNING)  # of texts longer than the model
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        train_wordpiece(inputs, vocab_size=VOCABULARY).save(Path(name))
        path = Path(name) / "tokenizer_config.json"
        settings = json.loads(path.read_text("utf-8"))
        for kind in ("wordpiece", "character"):
            path.write_text(json.dumps({**settings, "subword_tokenizer_type": kind}), "utf-8")
            rows += [{"subwords": kind, **row} for row in beside(Path(name), inputs, repeats)]
    return rows


def beside(folder: Path, inputs: list[str], repeats: int) -> list[dict[str, Any]]:
    """One folder, opened by both."""
    from transformers import BertJapaneseTokenizer

    peer, ours = BertJapaneseTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    clean = [unicodedata.normalize("NFKC", text).replace("\0", " ") for text in inputs]
    ways: dict[str, Callable[[], Any]] = {
        "transformers": lambda: peer(inputs)["input_ids"],
        "kiban": lambda: ours.encode_batch(inputs),
        "MeCab alone": lambda: mecab().map(lambda cut, text: cut(text.encode()), clean),
    }
    seconds = medians(ways, repeats)
    found, processor = {}, {}
    for way, work in ways.items():
        start = time.process_time()
        found[way] = work()
        processor[way] = time.process_time() - start  # of all threads; less in doubt on a busy machine
    same = sum(a == b for a, b in zip(found["transformers"], found["kiban"], strict=True))
    return [
        {
            "way": way,
            "characters_per_s": sum(map(len, inputs)) / taken,
            "ratio": seconds["transformers"] / taken,
            "processor_ratio": processor["transformers"] / processor[way],
            "texts_with_the_same_ids": f"{same}/{len(inputs)}" if way == "kiban" else "",
        }
        for way, taken in seconds.items()
    ]


def gigabyte() -> Iterator[str]:
    """1 GB of Japanese: the texts at hand over and over, each time with a third of the kanji exchanged at random.

    So the words do not repeat, as they would not in a corpus of that size; there are more distinct ones than in a real one.
    """
    found, generator, size = texts(), random.Random(0), 0
    kanji = sorted({c for text in found for c in text if "\u4e00" <= c <= "\u9fff"})
    exchange: dict[str, str] = {}
    while True:
        for text in found:
            changed = text.translate(str.maketrans(exchange)) if exchange else text
            size += len(changed.encode("utf-8"))
            if size > GIGABYTE:
                return
            yield changed
        chosen = generator.sample(kanji, len(kanji) // 3)
        exchange = dict(zip(chosen, generator.sample(chosen, len(chosen)), strict=True))


def train(kind: str, answers: Any) -> None:
    """In a process of its own: train, and tell what that took."""
    start = time.perf_counter()
    tokenizer = TRAINERS[kind](gigabyte(), vocab_size=VOCABULARY)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    answers.put(
        {
            "trained": kind,
            "tokens": tokenizer.vocab_size,
            "minutes": (time.perf_counter() - start) / 60,
            "processor_minutes": time.process_time() / 60,
            "peak_gb": peak / 1e9,
        }
    )


def memory() -> list[dict[str, Any]]:
    """Peak memory of each trainer."""
    context, rows = multiprocessing.get_context("spawn"), []
    for kind in TRAINERS:
        answers = context.SimpleQueue()
        child = context.Process(target=train, args=(kind, answers))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"training {kind} ended with {child.exitcode}")
        rows.append(answers.get())
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print speeds and ratios, or memory."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--gigabyte", action="store_true")
    asked, sys.argv[1:] = own.parse_known_args()
    options = arguments(__doc__ or "")
    if asked.gigabyte:
        rows = memory()
        print(table(rows))
        finish("tokenizer-memory", {"bytes": GIGABYTE, "rows": rows}, options, ("tokenizers", "sentencepiece"))
        return
    inputs = sample(texts())
    rows = speed(inputs, options.repeats)
    print(table(rows))
    facts = {"texts": len(inputs), "characters": sum(map(len, inputs)), "cores": os.cpu_count(), "rows": rows}
    finish("tokenizer", facts, options, ("transformers", "fugashi", "unidic-lite"))


if __name__ == "__main__":
    main()
