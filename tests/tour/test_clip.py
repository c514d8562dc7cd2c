"""CLIP's exhibit: its world is what it says, and a reduced run learns to name combinations that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kiban.config import silent
from kiban.tour import shapes
from kiban.tour.clip import EXHIBIT, LENGTH, Setting, accuracy, collate, model_of, train
from kiban.tour.running import run

SETTING: Setting = EXHIBIT.quick


def test_every_value_is_trained_and_no_held_out_combination_is() -> None:
    assert len(shapes.TRAIN) == 120 and len(shapes.HELD_OUT) == 24
    assert not {*shapes.TRAIN} & {*shapes.HELD_OUT}
    for side, counts in ((shapes.TRAIN, (20, 20, 30)), (shapes.HELD_OUT, (4, 4, 6))):
        for axis, count in enumerate(counts):
            assert set(np.bincount([combination[axis] for combination in side])) == {count}


def test_captions_tell_combinations_apart_in_both_languages() -> None:
    for lang in ("ja", "en"):
        first = {tuple(shapes.caption(combination, lang)) for combination in shapes.ALL}
        assert len(first) == 144
    rng = np.random.default_rng(0)
    ways = {tuple(shapes.caption(shapes.ALL[0], "ja", rng)) for _ in range(60)}
    assert len(ways) == 6  # three forms, two names


def test_tokens_end_with_the_largest_id() -> None:
    words = shapes.vocabulary()
    found = shapes.tokens([shapes.caption(c, "en") for c in shapes.ALL], words, LENGTH)
    assert (found.argmax(-1) >= 4).all() and (found.amax(-1) == len(words)).all() and (found[:, 0] == 1).all()


def test_a_picture_shows_its_colour_at_its_place() -> None:
    colours = np.array([rgb for rgb, _ in shapes.COLOURS.values()])
    for combination in shapes.ALL:
        image = shapes.render(combination, np.random.default_rng(combination), 64).astype(float)
        across, down = list(shapes.PLACES.values())[combination.place][0]
        empty = image[:8, :8] if down > 0.5 else image[-8:, -8:]
        rows, columns = np.nonzero(np.abs(image - empty.mean((0, 1))).sum(-1) > 100)
        assert abs(rows.mean() / 64 - down) < 0.1 and abs(columns.mean() / 64 - across) < 0.1
        assert np.abs(colours - np.median(image[rows, columns], axis=0)).sum(-1).argmin() == combination.colour


def test_a_batch_repeats_itself_and_holds_each_combination_once() -> None:
    words = shapes.vocabulary()
    first, again, other = (collate(SETTING, words, 0, False, rows) for rows in ([5, 1], [5, 2], [6, 1]))
    assert torch.equal(first["images"], again["images"]) and torch.equal(first["tokens"], again["tokens"])
    assert not torch.equal(first["images"], other["images"])
    dealt = collate(SETTING, words, 0, True, [5, 1])
    assert torch.equal(first["images"], dealt["images"]) and not torch.equal(first["tokens"], dealt["tokens"])
    assert sorted(map(tuple, first["tokens"].tolist())) == sorted(map(tuple, dealt["tokens"].tolist()))


def test_a_reduced_run_names_what_it_never_saw(tmp_path: Path) -> None:
    before = accuracy(SETTING, model_of(SETTING, 0).eval(), 0)
    after = accuracy(SETTING, train(SETTING, "clip", 0, tmp_path, silent), 0)
    for lang in ("ja", "en"):
        assert before[f"24_{lang}"] < 20 and after[f"24_{lang}"] > 50 and after[f"144_{lang}"] > 10


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_exhibit_passes_its_bars(tmp_path: Path) -> None:
    outcome = run(EXHIBIT, tmp_path / "run")
    assert outcome.passed, outcome.table("en")
    assert outcome.estimates["shuffled_24_en"].high < 15
