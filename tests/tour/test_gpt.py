"""GPT's exhibit: its world against brute force, and a reduced run that must learn from its prompts and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kiban.config import silent
from kiban.families.gpt import GPT
from kiban.tour.exhibit import Exhibit
from kiban.tour.gpt import EXHIBIT, Setting, accuracy, collate, measure, train
from kiban.tour.gpt_world import Ints, Prompts, World, answer_tokens, draw_tables, exact_bayes
from kiban.tour.running import run

SETTING: Setting = EXHIBIT.quick


@cache
def tables_of(seed: int) -> Ints:
    return draw_tables(SETTING, np.random.default_rng([seed, 0]))


def prompts_of(count: int, seed: int = 5, tables: int = 0) -> Prompts:
    return Prompts.draw(SETTING, tables_of(tables), np.random.default_rng(seed), count)


def test_tables_are_balanced_both_ways_and_differ() -> None:
    tables = tables_of(0)
    for answer in range(8):
        assert ((tables == answer).sum(axis=0) == 2).all()  # a question has each answer in 2 of 16 tables
        assert ((tables == answer).sum(axis=1) == 3).all()  # a table gives each answer to 3 of 24 questions
    agree = (tables[:, None] == tables).mean(axis=-1)[~np.eye(16, dtype=bool)]
    assert agree.mean() == pytest.approx(1 / 15) and agree.max() < 0.5
    assert (tables != tables_of(1)).any()


def test_prompts_ask_no_question_twice_and_are_noisy_by_a_quarter() -> None:
    prompts = prompts_of(3840)
    assert all(len(set(row)) == 17 for row in prompts.questions.tolist())
    wrong = prompts.right != prompts.given
    assert wrong.mean() == pytest.approx(0.25, abs=0.01)
    shift = (prompts.given - prompts.right)[wrong] % 8
    assert np.bincount(shift, minlength=8)[1:] / len(shift) == pytest.approx(1 / 7, abs=0.01)
    # The right answers are those of one table, and every pair of table and first question is equally frequent.
    fits = (tables_of(0)[:, prompts.questions] == prompts.right).all(axis=-1)  # (tables, N)
    assert (fits.sum(axis=0) == 1).all()
    pairs = fits.argmax(axis=0) * 24 + prompts.questions[:, 0]
    assert (np.bincount(pairs, minlength=384) == 10).all()


def test_training_draws_from_all_tables_and_repeats_itself() -> None:
    prompts = prompts_of(32)
    assert len(set((tables_of(0)[:, prompts.questions] == prompts.right).all(axis=-1).argmax(axis=0))) > 8
    first, again, other = (collate(SETTING, tables_of(0), 3, rows) for rows in ([7, 1], [7, 1], [8, 1]))
    assert torch.equal(first["tokens"], again["tokens"]) and not torch.equal(first["tokens"], other["tokens"])


def test_only_answers_are_to_be_predicted() -> None:
    batch = collate(SETTING, tables_of(0), 0, [0, 1, 2])
    assert batch["tokens"].shape == (3, 34) and (batch["labels"][:, 0::2] == -100).all()
    assert torch.equal(batch["labels"][:, 1::2], batch["tokens"][:, 1::2])
    questions = batch["tokens"][:, 0::2].numpy()
    assert (questions < 24).all() and ((batch["tokens"][:, 1::2].numpy() - 24) // 8 == questions).all()


@pytest.mark.parametrize("shots", [2, 4, 16])
def test_dealing_round_leaves_no_answer_at_home(shots: int) -> None:
    marked = prompts_of(400)
    marked = replace(marked, given=np.tile(np.arange(17), (400, 1)))  # an answer tells where it was
    dealt = marked.dealt_round(shots, np.random.default_rng(0)).given
    assert (dealt[:, :shots] != np.arange(shots)).all() and (dealt[:, shots:] == np.arange(shots, 17)).all()
    assert (np.sort(dealt[:, :shots], axis=1) == np.arange(shots)).all()
    assert len({tuple(row) for row in dealt.tolist()}) == shots - 1


def _brute_force(world: World, tables: Ints, questions: list[int], given: list[int], answer: int) -> Fraction:
    """P(right answer to the last question | answers to those before), by summing over tables and every way to be noisy."""
    noise = Fraction(1, 4)
    joint = {True: Fraction(0), False: Fraction(0)}
    for table in tables.tolist():
        for flips in product(range(world.num_answers), repeat=len(given)):
            told = [(table[q] + flip) % world.num_answers for q, flip in zip(questions, flips, strict=False)]
            weight = Fraction(1, len(tables))
            for flip in flips:
                weight *= noise / (world.num_answers - 1) if flip else 1 - noise
            if told == given:
                joint[table[questions[-1]] == answer] += weight
    return joint[True] / (joint[True] + joint[False])


def test_exact_bayes_is_that_of_brute_force() -> None:
    world = World(num_tables=4, num_questions=4, num_answers=2)
    tables = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    questions = np.array([[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
    given = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    found = exact_bayes(world, tables, Prompts(questions, given, given))  # (3, 4, 2)
    for row, shots, answer in product(range(3), range(4), range(2)):
        exact = _brute_force(world, tables, questions[row, : shots + 1].tolist(), given[row, :shots].tolist(), answer)
        assert found[row, shots, answer] == pytest.approx(float(exact), abs=1e-12)


def test_exact_bayes_keeps_its_word() -> None:
    prompts = prompts_of(3840)
    probabilities = exact_bayes(SETTING, tables_of(0), prompts)
    assert probabilities.sum(axis=-1) == pytest.approx(1.0)
    assert probabilities[:, 0] == pytest.approx(1 / 8)
    right = (probabilities.argmax(axis=-1) == prompts.right).mean(axis=0)
    promised = probabilities.max(axis=-1)
    error = np.sqrt((promised * (1 - promised)).mean(axis=0) / 3840)
    assert (abs(right - promised.mean(axis=0))[1:] <= 3.5 * error[1:] + 1e-3).all()
    assert right[16] > 0.99


def test_exact_bayes_sees_nothing_of_the_answer_that_is_asked_for() -> None:
    """Not even in the last bit, which would break ties for or against it."""
    prompts = prompts_of(768)
    before = exact_bayes(SETTING, tables_of(0), prompts)
    for shots in range(17):
        given = prompts.given.copy()
        given[:, shots:] = (given[:, shots:] + 3) % 8
        after = exact_bayes(SETTING, tables_of(0), replace(prompts, given=given))
        assert np.array_equal(before[:, : shots + 1], after[:, : shots + 1])


def test_dealt_round_even_exact_bayes_falls_below_no_shots() -> None:
    dealt = prompts_of(3840).dealt_round(16, np.random.default_rng(0))
    right = exact_bayes(SETTING, tables_of(0), dealt).argmax(axis=-1) == dealt.right
    assert right[:, 16].mean() < 0.115


class Known:
    """In place of a model: exact Bayes, read off the tokens."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        questions = tokens[:, 0::2].numpy()
        given = np.pad(tokens[:, 1::2].numpy(), ((0, 0), (0, 1))) - 24 - questions * 8
        known = exact_bayes(SETTING, tables_of(0), Prompts(questions, given, given))
        logits = torch.zeros(*tokens.shape, 24 * 9)
        spread = answer_tokens(SETTING, questions[..., None], np.arange(8))
        logits[:, 0::2].scatter_(2, torch.from_numpy(spread), torch.from_numpy(known).float())
        return logits


def test_accuracy_of_one_who_knows_is_that_of_exact_bayes() -> None:
    prompts = prompts_of(768)
    best = exact_bayes(SETTING, tables_of(0), prompts).argmax(axis=-1) == prompts.right
    found = accuracy(SETTING, Known(), prompts, 16)  # type: ignore[arg-type]
    assert found == pytest.approx(100 * best.mean(axis=0), abs=0.2)  # ties may fall differently in float32
    assert len(accuracy(SETTING, Known(), prompts, 4)) == 5  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    return train(SETTING, tables_of(0), 0, tmp_path_factory.mktemp("gpt"), silent)


def test_a_reduced_run_learns_from_its_shots(model: GPT) -> None:
    found = accuracy(SETTING, model, prompts_of(768), 16)
    assert 11 < found[0] < 14  # balanced: 12.5 for whoever answers the question at all
    assert found[16] > 57 and found[4] > found[1] > 18  # a reader of one shot alone cannot be right more often than 41
    dealt = accuracy(SETTING, model, prompts_of(768).dealt_round(16, np.random.default_rng(0)), 16)
    assert dealt[16] < 16


def test_what_it_learned_are_the_tables_of_its_training(model: GPT) -> None:
    """Prompts of tables that it never saw look the same, but nobody could answer them."""
    assert accuracy(SETTING, model, prompts_of(768, tables=1), 16)[16] < 20


def test_an_untrained_model_fails(tmp_path: Path) -> None:
    found = measure(replace(SETTING, steps=1), seed=0, folder=tmp_path, progress=silent)
    assert found["gain"] < 10 and found["behind_bayes"] > 50


def test_the_full_model_has_a_million_parameters_besides_embeddings() -> None:
    from kiban.families.gpt import GPTConfig

    full: Setting = EXHIBIT.full
    sizes: dict[str, Any] = {name: getattr(full, name) for name in ("num_layers", "dim", "num_heads")}
    with torch.device("meta"):
        blocks = GPT(GPTConfig(vocab_size=216, max_seq_len=33, **sizes)).blocks
    # 4 d^2 + 4 d of attention, 8 d^2 + 5 d of the feed-forward layer, 4 d of two norms; two layers
    assert sum(p.numel() for p in blocks.parameters()) == 2 * (12 * 208**2 + 13 * 208) == 1_043_744


@pytest.mark.slow
def test_the_full_run_clears_its_bars(tmp_path: Path) -> None:
    exhibit: Exhibit = EXHIBIT
    outcome = run(exhibit, tmp_path / "run")
    assert outcome.passed, [bar for bar in outcome.bars if not bar.passed]
