"""kiban-encoder-ja-en beside MiniLM, from which it was distilled, and TF-IDF: retrieval and classification.

    pip install -e . && python examples/get_text.py parallel && python benchmarks/encoder_ja_en.py --save

Retrieval: sentences of manuals and programs of which nothing was trained on, Japanese to English and back; and general
sentences, whose Japanese side is machine translation. Classification: the labelled sets of examples/data, split as `kiban
adopt` splits them, with its own strategies. --folds N instead asks every row once, in N parts of which each is the test of
models trained on the others: more rows, hence a narrower interval. A model that --models does not name keeps the numbers of
the last record.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from common import RESULTS, finish
from kiban import zoo
from kiban.adopt.folder import Settings
from kiban.adopt.job import Look, look
from kiban.adopt.profile import profile
from kiban.adopt.sources import open_source
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Rows
from kiban.adopt.strategies.classifier import BATCH_SIZE
from kiban.catalogue.pull import pull
from kiban.data.tables import read_table
from kiban.engine.encoder import EncoderPlan
from kiban.evaluate.retrieval import found_at
from kiban.evaluate.statistics import bootstrap_interval, mcnemar, paired_bootstrap
from kiban.recipes.parallel_text import Pair, questions

EXAMPLES = Path(__file__).parent.parent / "examples"
SETS = {"debian-ja": ("本文", "区分"), "debian-en": ("text", "label")}
NUM_PAIRS = 2_000


def main() -> None:
    """Measure, print and, with --save, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["retrieval", "linear_head", "finetune_encoder"], help="measure nothing else")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS), help="labelled sets")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning, which is measured with --only")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate in so many parts, with --only")
    parser.add_argument(
        "--models",
        nargs="*",
        help="catalogue names, or folders, which count by their last name",
        default=["baseline", "minilm-l6", "kiban-encoder-ja-en"],
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/encoder-ja-en.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.threads, options.repeats = 1, 1
    path = RESULTS / "encoder-ja-en.json"
    retrieval: dict[str, dict[str, Any]] = {}
    classification: dict[str, dict[str, Any]] = {}
    if options.folds:
        cross_validate(options, path)
        return
    pairs, looks = test_pairs(), {name: look_at(name, columns) for name, columns in SETS.items()}
    kind = options.only or "linear_head"
    for model in options.models:
        name = Path(model).name
        if model != "baseline" and options.only in (None, "retrieval"):
            loaded = zoo.load(model)
            for place, chosen in pairs.items():
                retrieval.setdefault(place, {})[name] = retrieve(loaded, chosen)
                print(place, model, retrieval[place][name], flush=True)
        for place in options.sets if options.only != "retrieval" else ():
            found = classify(model, kind, looks[place], options.epochs)
            key = f"{name}, fine-tuned {options.epochs} epochs" if found["strategy"] == "finetune_encoder" else name
            classification.setdefault(place, {})[key] = found
            print(place, key, {key: value for key, value in found.items() if key != "answers"}, flush=True)
    # Read as late as this, since another call may have measured other models meanwhile.
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for kept, new in ((record.get("retrieval", {}), retrieval), (record.get("classification", {}), classification)):
        for place in {**kept, **new}:
            new[place] = {**kept.get(place, {}), **new.get(place, {})}
    facts = {
        "pairs": {name: len(chosen) for name, chosen in pairs.items()},
        "test_rows": {name: len(seen.rows[2]) for name, seen in looks.items()},
        "retrieval": retrieval,
        "classification": classification,
        "beside_baseline": {name: compare(looks[name], found) for name, found in classification.items()},
    }
    print(json.dumps(facts["beside_baseline"], indent=1))
    finish("encoder-ja-en", facts, options, ("scikit-learn", "tokenizers"))


def test_pairs() -> dict[str, list[Pair]]:
    """Held-out sources, as the training script names them, and general sentences."""
    sys.path.insert(0, str(EXAMPLES))
    from train_encoder_ja_en import TEST, parallel

    pairs = list(parallel())
    held = [pair for pair in pairs if pair.source in TEST]
    general = [pair for pair in pairs if pair.source == "ja-corpus"]
    return {"held-out": questions(held, most=NUM_PAIRS), "general": questions(general, most=NUM_PAIRS)}


def retrieve(loaded: zoo.Loaded, pairs: list[Pair]) -> dict[str, float]:
    """Recall at 1 and 10 with 95% intervals, both ways, every text among all of the other language."""
    plan = EncoderPlan(loaded, max_len=256)
    ja, en = plan.embed([pair.ja for pair in pairs]), plan.embed([pair.en for pair in pairs])
    found = {}
    for way, ranks in (("ja-en", found_at(ja, en)), ("en-ja", found_at(en, ja))):
        for k in (1, 10):
            share = float((ranks <= k).double().mean())
            found[f"{way} recall@{k}"] = round(share, 4)
            # Half a normal interval; the shares are far enough from 0 and 1, the pairs many.
            found[f"{way} recall@{k} ±"] = round(1.96 * (share * (1 - share) / len(pairs)) ** 0.5, 4)
    return found


def look_at(name: str, columns: tuple[str, str]) -> Look:
    """What `kiban adopt` starts from, with its split of seed 0."""
    path = EXAMPLES / "data" / f"{name}.csv"
    settings = Settings(source=str(path), source_sha256="", text=columns[0], label=columns[1])
    return look(settings, open_source(path, text=columns[0], label=columns[1]))


def classify(model: str, kind: str, seen: Look, epochs: int) -> dict[str, Any]:
    """Scores on the test rows of the baseline, or of a model with a strategy of this kind."""
    kind = "baseline" if model == "baseline" else kind
    path = None if model == "baseline" else Path(model) if Path(model).exists() else pull(model)
    train, validation, test = seen.rows
    with tempfile.TemporaryDirectory() as work:
        job = Job(
            task=seen.task,
            candidate=Candidate(strategy=kind, model=path and model, path=path),
            train=train,
            validation=validation,
            max_steps=epochs * -(-len(train) // BATCH_SIZE) if kind in ("finetune_encoder", "lora_decoder") else 0,
            seed=0,
            work=Path(work),
        )
        start = time.perf_counter()
        predictor = strategy(kind).fit(job).predictor
        seconds = time.perf_counter() - start
        answers = predictor.predict(test.inputs).argmax(-1)
    scores = {"strategy": kind, "fit_seconds": round(seconds, 1), **score(test.targets, answers, seen.task.labels)}
    return {**scores, "answers": answers.tolist()}


def score(targets: Any, answers: Any, labels: Any) -> dict[str, Any]:
    """Macro-F1 and accuracy with their intervals."""
    scores: dict[str, Any] = {}
    for metric in ("macro_f1", "accuracy"):
        found = bootstrap_interval(metric, np.asarray(targets), np.asarray(answers), num_labels=len(labels))
        scores[metric], scores[f"{metric}_95"] = round(found[0], 4), [round(x, 4) for x in found[1:]]
    return scores


def cross_validate(options: argparse.Namespace, path: Path) -> None:
    """Every row of the sets answered by a model that was trained on other parts, near-duplicates in one part."""
    measured: dict[str, Any] = {}
    for place in options.sets:
        table, (text, label) = read_table(EXAMPLES / "data" / f"{place}.csv"), SETS[place]
        found = profile(table, text, label, seed=0)
        parts = StratifiedGroupKFold(options.folds, shuffle=True, random_state=0)
        seen, answers = look_at(place, SETS[place]), {m: np.zeros(len(found.targets), int) for m in options.models}
        for number, (rest, test) in enumerate(parts.split(found.inputs, found.targets, found.groups)):
            targets, groups = (np.asarray(values)[rest] for values in (found.targets, found.groups))
            inner = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(rest, targets, groups)
            train, validation = (rest[part] for part in next(iter(inner)))
            rows = tuple(
                Rows(inputs=[found.inputs[i] for i in part], targets=[found.targets[i] for i in part])
                for part in (train, validation, test)
            )
            for model in options.models:
                told = classify(model, options.only or "linear_head", replace(seen, rows=rows), options.epochs)
                answers[model][test] = told["answers"]
                print(place, number, model, told["macro_f1"], f"{told['fit_seconds']} s", flush=True)
        truth = Rows(inputs=found.inputs, targets=found.targets)
        scored = {
            Path(model).name: {**score(found.targets, given, found.labels), "answers": given.astype(int).tolist()}
            for model, given in answers.items()
        }
        gains = compare(replace(seen, rows=(truth, truth, truth)), scored)
        for name, gain in gains.items():
            scored[name] |= gain
        print({name: {k: v for k, v in values.items() if k != "answers"} for name, values in scored.items()})
        strategy_name = f"{options.only or 'linear_head'}, {options.epochs} epochs, {options.folds} folds"
        measured[place] = {strategy_name: scored}
    record = json.loads(path.read_text(encoding="utf-8"))
    for place, scored in measured.items():
        record.setdefault("cross_validated", {}).setdefault(place, {}).update(scored)
    if options.save:
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(seen: Look, found: dict[str, Any]) -> dict[str, Any]:
    """Each model less the baseline, on the same rows."""
    truth, result = np.asarray(seen.rows[2].targets), {}
    for model, scores in found.items():
        if model != "baseline" and "baseline" in found:
            a, b = (np.asarray(values["answers"]) for values in (scores, found["baseline"]))
            gain = paired_bootstrap("macro_f1", truth, a, b, num_labels=len(seen.task.labels))
            keys = ("macro_f1_gain", "low", "high")
            result[model] = dict(zip(keys, (round(x, 4) for x in gain), strict=True)) | {
                "mcnemar_p": mcnemar(truth, a, b)
            }
    return result


if __name__ == "__main__":
    main()
