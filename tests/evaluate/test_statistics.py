"""Intervals cover what they promise; tests equal their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from kiban.evaluate.curves import fit_learning_curve, rows_needed
from kiban.evaluate.statistics import bootstrap_interval, holm, mcnemar, mean_interval, paired_bootstrap


def test_the_interval_holds_the_true_accuracy_about_95_times_in_100() -> None:
    rng, hits, trials = np.random.default_rng(1), 0, 300
    truth = np.zeros(150, dtype=int)
    for trial in range(trials):
        predicted = (rng.random(150) > 0.8).astype(int)
        _, low, high = bootstrap_interval("accuracy", truth, predicted, num_labels=2, num_samples=400, seed=trial)
        hits += low <= 0.8 <= high
    assert 0.90 <= hits / trials <= 0.98


def test_a_bootstrap_interval_of_accuracy_is_that_of_the_binomial() -> None:
    truth, predicted = np.zeros(200, dtype=int), np.repeat([0, 1], [140, 60])
    value, low, high = bootstrap_interval("accuracy", truth, predicted, num_labels=2, num_samples=20_000)
    assert value == 0.7
    assert low == pytest.approx(binom.ppf(0.025, 200, 0.7) / 200, abs=0.006)
    assert high == pytest.approx(binom.ppf(0.975, 200, 0.7) / 200, abs=0.006)


def test_the_interval_of_a_mean_is_that_of_the_normal_and_wider_for_values_in_groups() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    value, low, high = mean_interval(values, num_samples=20_000)
    assert value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    _, low, high = mean_interval(np.repeat(values, 4), np.repeat(np.arange(400), 4), num_samples=20_000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_the_difference_of_paired_models_varies_less_than_that_of_unrelated_ones() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    a = np.where(rng.random(300) < 0.8, truth, (truth + 1) % 3)
    b = np.where(rng.random(300) < 0.05, (truth + 1) % 3, a)  # like a, and a little worse
    c = np.where(rng.random(300) < 0.78, truth, (truth + 1) % 3)
    value, low, high = paired_bootstrap("macro_f1", truth, a, b, num_labels=3)
    _, wide_low, wide_high = paired_bootstrap("macro_f1", truth, a, c, num_labels=3)
    assert low <= value <= high
    assert high - low < 0.7 * (wide_high - wide_low)
    back = paired_bootstrap("macro_f1", truth, b, a, num_labels=3)
    assert back == pytest.approx((-value, -high, -low))


def test_equal_answers_differ_by_nothing() -> None:
    truth, same = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert paired_bootstrap("accuracy", truth, same, same, num_labels=2) == (0.0, 0.0, 0.0)
    assert mcnemar(truth, same, same) == 1.0


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 2), (1, 1), (0, 7), (30, 12)])
def test_mcnemar_is_a_fair_coin_over_the_rows_that_differ(only_a: int, only_b: int) -> None:
    truth = np.zeros(only_a + only_b + 10, dtype=int)
    a, b = truth.copy(), truth.copy()
    b[:only_a] = 1
    a[only_a : only_a + only_b] = 1
    n, k = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(truth, a, b) == pytest.approx(expected)


def test_holm_rejects_as_in_the_worked_example() -> None:
    # Of four tests at 0.05 the limits are 0.0125, 0.0167, 0.025, 0.05; the walk stops at the first above its limit.
    assert holm([0.03, 0.01, 0.04, 0.005]) == [False, True, False, True]
    assert holm([]) == []
    assert holm([0.05]) == [True]


def test_degenerate_rows_have_an_interval_too() -> None:
    one = np.array([1])
    assert bootstrap_interval("macro_f1", one, one, num_labels=2) == (1.0, 1.0, 1.0)
    assert bootstrap_interval("accuracy", one, 1 - one, num_labels=2) == (0.0, 0.0, 0.0)


def test_the_learning_curve_recovers_a_power_law() -> None:
    rows = [100, 200, 400, 800]
    scores = [0.9 - 3.0 * n**-0.5 for n in rows]
    curve = fit_learning_curve(rows, scores, noise=0.001)
    value, low, high = curve.predict(1600)
    assert value == pytest.approx(0.9 - 3.0 * 1600**-0.5, abs=0.003)
    assert low <= value <= high


@pytest.mark.parametrize("scores", [[0.7, 0.6, 0.5], [0.98, 0.99, 1.0], [0.5, 0.5, 0.5]])
def test_a_forecast_never_falls_and_never_passes_one(scores: list[float]) -> None:
    curve = fit_learning_curve([50, 100, 200], scores)
    near, far = curve.predict(400)[0], curve.predict(4000)[0]
    assert 0 <= near <= far + 1e-9 <= 1 + 1e-9
    assert 0 <= curve.predict(400)[1] <= curve.predict(400)[2] <= 1


def test_the_rows_needed_give_the_power_that_they_promise() -> None:
    needed = rows_needed(20, 10, 200)
    assert needed is not None
    rng, found, trials = np.random.default_rng(3), 0, 400
    truth = np.zeros(needed, dtype=int)
    for _ in range(trials):
        drawn = rng.random(needed)
        a, b = (drawn < 0.05).astype(int), ((drawn >= 0.05) & (drawn < 0.15)).astype(int)
        found += mcnemar(truth, a, b) < 0.05
    assert 0.7 <= found / trials <= 0.9


def test_models_that_differ_equally_often_are_never_told_apart() -> None:
    assert rows_needed(5, 5, 100) is None
    assert rows_needed(0, 0, 100) is None
