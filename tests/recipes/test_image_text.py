"""The recipe in small: shapes and their names in two languages, with and without a teacher of texts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kiban import zoo
from kiban.recipes.image_text import Settings, name_retrieval, normalised, train
from shape_pairs import pairs

SMALL = Settings(
    vocab_size=700,
    teacher="",
    steps=60,
    batch_size=48,
    lr=1e-3,
    shift=2,
    eval_every=30,
    text_steps=20,
    text_batch_size=16,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[zoo.Loaded, Path]:
    folder = tmp_path_factory.mktemp("run")

    def evaluate(model: zoo.Loaded) -> dict[str, float]:
        return name_retrieval(model, pairs(90, 1), ("ja",))

    return train(pairs(0, 4), folder, SMALL, evaluate=evaluate)[0], folder


def test_it_learns_names_in_both_languages_and_tells_how(run: tuple[zoo.Loaded, Path]) -> None:
    found = name_retrieval(run[0], pairs(50, 2), ("ja", "en"))
    assert found["ja chance@1"] == pytest.approx(1 / 36)
    for lang in ("ja", "en"):
        assert found[f"{lang} picture to name@1"] > 6 / 36 and found[f"{lang} name to picture@5"] > 15 / 36
    lines = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if "eval_ja picture to name@1" in line] == [30, 60]


def test_the_saved_model_finds_the_same(run: tuple[zoo.Loaded, Path], tmp_path: Path) -> None:
    zoo.save(run[0], tmp_path / "model")
    asked = pairs(50, 1)
    assert name_retrieval(zoo.load(tmp_path / "model"), asked, ("ja",)) == name_retrieval(run[0], asked, ("ja",))


def test_an_interrupted_run_ends_alike(tmp_path: Path) -> None:
    short = replace(SMALL, steps=110, batch_size=8)
    whole, _ = train(pairs(0, 1), tmp_path / "whole", short)
    (tmp_path / "resumed").mkdir()
    for name in ("tokenizer", "step-100"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    resumed, _ = train(pairs(0, 1), tmp_path / "resumed", short)
    for (name, a), (_, b) in zip(whole.module.named_parameters(), resumed.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_teacher_of_texts_gives_the_space(tmp_path: Path) -> None:
    c = replace(SMALL, teacher="kiban-encoder-ja-en", steps=2)
    model, _ = train(pairs(0, 2), tmp_path, c, texts=["猫", "犬", "a cat", "a dog"])
    assert model.config.embed_dim == 384
    lines = [json.loads(line) for line in (tmp_path / "text" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 20 and lines[-1]["cosine"] > lines[0]["cosine"] + 0.1


def test_pictures_are_normalised_as_clip_does() -> None:
    white = normalised(torch.full((1, 3, 2, 2), 255.0))
    assert torch.allclose(white[0, :, 0, 0], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-3)
