"""kiban-lm-ja-en on text that was held out of its training, beside an n-gram model and SmolLM2; and as a classifier.

    python examples/train_lm_ja_en.py && python benchmarks/lm_ja_en.py --save

Bits per character: the first 1,000 characters of held-out documents, for all models the same ones. The n-gram model
(Kneser-Ney, order 5) has the same training text and tokens. SmolLM2-135M has 60 times the parameters and was trained on two
trillion tokens, mostly English. Classification: the labelled sets of examples/data with `kiban adopt`'s LoRA, split as it
splits them, beside TF-IDF.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import finish, table
from encoder_ja_en import SETS, classify, look_at
from kiban import zoo
from kiban.data.shards import Shards
from kiban.evaluate.language import bits_per_character, score_documents
from kiban.evaluate.ngram import KneserNey
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate
from kiban.inputs.tokenizer import Tokenizer

DOCUMENTS, CHARACTERS = 30, 1000  # of each language; of each document
SMALL = "smollm2-135m-instruct"
PROMPTS = ("吾輩は", "このコマンドは、", "The President of the United States", "The configuration file")


def main() -> None:
    """Measure, print and, with --save, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/lm-ja-en"), help="folder of the training run")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/lm-ja-en.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.threads, options.repeats = 1, 1
    final, data = options.run / "model" / "final", options.run / "model" / "data"
    model = zoo.load(final)
    assert model.tokenizer is not None
    floor = ngram(Shards(data / "train"))
    bits: list[dict[str, Any]] = []
    for language, texts in held_out(options.run).items():
        total = sum(map(len, texts))
        scores = {
            "n-gram (Kneser-Ney, order 5)": by_ngram(floor, model.tokenizer, texts),
            "kiban-lm-ja-en": by_model(model, texts),
            SMALL: by_model(zoo.load(SMALL), texts),
        }
        for name, score in scores.items():
            bits.append(
                {"language": language, "model": name, "characters": total, "bits_per_character": round(score, 3)}
            )
    print(table(bits))
    topics: list[dict[str, Any]] = []
    for place, columns in SETS.items():
        seen = look_at(place, columns)
        for name, kind in (("baseline", "baseline"), (str(final), "lora_decoder")):
            found = classify(name, kind, seen, 3)
            low, high = found["macro_f1_95"]
            label = "TF-IDF" if name == "baseline" else "kiban-lm-ja-en, LoRA"
            topics.append({"set": place, "model": label, "macro_f1": found["macro_f1"], "low": low, "high": high})
            print(topics[-1], flush=True)
    samples = [written(model, prompt) for prompt in PROMPTS]
    print("\n".join(samples))
    finish("lm-ja-en", {"bits": bits, "topics": topics, "samples": samples}, options, ("tokenizers",))


def held_out(run: Path) -> dict[str, list[str]]:
    """Beginnings of documents that were held out, by language."""
    languages = {}
    with (run / "text.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            languages[row["id"]] = row["lang"]
    found: dict[str, list[str]] = {"ja": [], "en": []}
    lines = (run / "model" / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    for place in np.random.default_rng(0).permutation(len(lines)).tolist():
        row = json.loads(lines[place])
        texts = found[languages[row["id"]]]
        if len(texts) < DOCUMENTS:
            texts.append(row["text"][:CHARACTERS])
    return found


def ngram(train: Shards) -> KneserNey:
    """The model of all training text."""
    return KneserNey.fit(train.read(0, train.facts.tokens), vocab_size=train.facts.vocab_size, starts=train.starts)


def by_ngram(model: KneserNey, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Bits per character."""
    rows = _tokens(tokenizer, texts)
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    scores = model.log_probs(np.concatenate(rows), starts=starts)
    scores[starts] = 0.0  # the token that begins every document
    return bits_per_character(float(scores.sum()), sum(map(len, texts)))


def by_model(loaded: zoo.Loaded, texts: list[str]) -> float:
    """Bits per character."""
    assert loaded.tokenizer is not None
    context = min(2048, loaded.config.max_seq_len)
    rows = _tokens(loaded.tokenizer, texts)
    sums = score_documents(loaded.module, rows, context=context, stride=context // 2, batch_size=8, device="cpu")
    found = bits_per_character(float(sums.sum()), sum(map(len, texts)))
    assert math.isfinite(found)
    return found


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text behind the token that ends the one before it."""
    assert tokenizer.eos_id is not None
    return [[tokenizer.eos_id, *ids] for ids in tokenizer.encode_batch(texts, add_special=False)]


def written(loaded: zoo.Loaded, prompt: str) -> str:
    """A prompt and how the model goes on."""
    assert loaded.tokenizer is not None
    ids = [loaded.tokenizer.eos_id or 0, *loaded.tokenizer.encode(prompt, add_special=False)]
    module: Any = loaded.module
    how = Sampling(max_new_tokens=48, temperature=0.8, top_p=0.9, seed=0)
    return " ".join((prompt + generate(module, loaded.tokenizer, [ids], how)[0].text).split())


if __name__ == "__main__":
    main()
