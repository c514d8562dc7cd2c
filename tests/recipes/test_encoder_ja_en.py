"""The recipe in small: the student fits its budget of tokens, learns, goes on where it was stopped, and is published."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import kiban
from kiban import zoo
from kiban.engine.encoder import EncoderPlan
from kiban.recipes.encoder_ja_en import Settings, build_student, publish, train
from kiban.recipes.parallel_text import Pair, Selection

THINGS = {
    "猫": "cat",
    "犬": "dog",
    "花": "flower",
    "車": "car",
    "本": "book",
    "魚": "fish",
    "鳥": "bird",
    "家": "house",
}
VERBS = {"見る": "see", "買う": "buy", "描く": "draw", "好む": "like", "探す": "look for", "夢に見る": "dream of"}
COLOURS = {"赤い": "red", "青い": "blue", "白い": "white", "黒い": "black"}
SMALL = Settings(
    num_tokens=6_000,
    num_japanese=60,
    batch_size=16,
    seconds=0.0,
    steps=12,
    eval_every=6,
    checkpoint_every=4,
    lr=1e-3,
    masked_steps=6,
    masked_batch_size=32,
    masked_len=16,
)


@pytest.fixture(scope="module")
def selection() -> Selection:
    pairs = [
        Pair(f"{c}{t}を{v}。", f"I {VERBS[v]} a {COLOURS[c]} {THINGS[t]}.", "toy", "MIT")
        for t in THINGS
        for v in VERBS
        for c in COLOURS
    ]
    random.Random(0).shuffle(pairs)
    return Selection(pairs[:150], pairs[150:170], pairs[170:], {})


def texts(selection: Selection) -> list[str]:
    """Longer than a row."""
    return ["".join(pair.ja for pair in selection.train[i : i + 5]) for i in range(0, 150, 5)]


@pytest.fixture(scope="module")
def run(selection: Selection, tmp_path_factory: pytest.TempPathFactory) -> tuple[zoo.Loaded, Path]:
    folder = tmp_path_factory.mktemp("run")
    student, result = train(selection, folder, SMALL, texts=texts(selection))
    assert result.steps == SMALL.steps and result.stopped_by == "steps"
    return student, folder


def test_the_student_has_so_many_tokens_and_begins_with_its_words_at_their_translations(
    selection: Selection, minilm_folder: Path
) -> None:
    teacher = zoo.load(minilm_folder)
    student = build_student(teacher, selection.train, SMALL)
    assert student.tokenizer is not None
    assert 0.99 * SMALL.num_tokens <= student.config.vocab_size <= SMALL.num_tokens
    rows = student.module.embed.token.weight  # type: ignore[union-attr]
    cat, dog, neko = (student.tokenizer.encode(w, add_special=False) for w in ("cat", "dog", "猫"))
    assert len(neko) == 1
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(rows[neko], rows[cat]) > 0.8 > cosine(rows[neko], rows[dog])  # type: ignore[index]


def test_it_learns_and_tells_how(run: tuple[zoo.Loaded, Path]) -> None:
    lines = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text("utf-8").splitlines()]
    cosines = [line["cosine"] for line in lines if "loss" in line]
    assert len(cosines) == SMALL.steps and np.mean(cosines[-3:]) > np.mean(cosines[:3])
    assert [line["step"] for line in lines if "eval_recall@1" in line] == [6, 12]


def test_before_that_it_guesses_hidden_words_and_resumes_among_them(
    run: tuple[zoo.Loaded, Path], selection: Selection, tmp_path: Path
) -> None:
    folder = run[1] / "masked"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == SMALL.masked_steps and lines[-1]["masked_loss"] < lines[0]["masked_loss"]
    begun, read = (zoo.load(path).module for path in (run[1] / "begin", folder / "model"))
    assert not torch.equal(begun.embed.token.weight, read.embed.token.weight)  # type: ignore[arg-type, union-attr]
    shutil.copytree(run[1] / "begin", tmp_path / "begin")
    shutil.copytree(folder / "step-4", tmp_path / "masked" / "step-4")
    train(selection, tmp_path, dataclasses.replace(SMALL, steps=1), texts=texts(selection))
    again = zoo.load(tmp_path / "masked" / "model").module
    for (name, a), (_, b) in zip(read.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    run: tuple[zoo.Loaded, Path], selection: Selection, tmp_path: Path
) -> None:
    whole, folder = run
    for name in ("teacher.f16", "teacher.key"):
        shutil.copy(folder / name, tmp_path / name)
    for name in ("begin", "masked", "step-8"):
        shutil.copytree(folder / name, tmp_path / name)
    resumed, result = train(selection, tmp_path, SMALL)
    assert result.steps == SMALL.steps
    for (name, a), (_, b) in zip(whole.module.named_parameters(), resumed.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_published_opens_with_the_same_embeddings_in_half_the_bytes(
    run: tuple[zoo.Loaded, Path], selection: Selection, tmp_path: Path
) -> None:
    publish(run[0], tmp_path / "out", card="---\nlanguage: [ja, en]\n---\n", facts={"steps": 12})
    texts = [p.ja for p in selection.dev]
    opened = kiban.load(tmp_path / "out")
    assert np.abs(opened.embed(texts) - EncoderPlan(run[0]).embed(texts).numpy()).max() < 2e-3
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size < 2.01 * run[0].num_parameters
    assert json.loads((tmp_path / "out" / "kiban.json").read_text("utf-8"))["steps"] == 12


def test_the_published_settings_fit_forty_megabytes() -> None:
    config = dataclasses.replace(zoo.presets()["minilm-l6"][1], vocab_size=Settings().num_tokens)
    with torch.device("meta"):
        module = zoo.families()["bert"].build(config)
    assert 2 * sum(p.numel() for p in module.parameters()) < 40_000_000 - 20_000
