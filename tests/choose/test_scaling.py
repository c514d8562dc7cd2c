"""The laws against published points, and the choice of a size."""

from __future__ import annotations

import pytest

from kiban.choose.scaling import BESIROGLU, Rung, best_size, effective_tokens
from kiban.errors import ConfigError


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"), [(1e21, 2.78e9, 60.0e9), (5.76e23, 72.3e9, 1.33e12)], ids=["1e21", "Gopher's"]
)
def test_the_best_size_for_a_budget_is_the_published_one(flops: float, parameters: float, tokens: float) -> None:
    found = BESIROGLU.best(flops)
    assert found == (pytest.approx(parameters, rel=0.01), pytest.approx(tokens, rel=0.01))


def test_no_other_size_of_the_same_budget_is_better() -> None:
    parameters, tokens = BESIROGLU.best(1e18)
    least = BESIROGLU.loss(parameters, tokens)
    assert all(BESIROGLU.loss(parameters * f, tokens / f) > least for f in (0.5, 0.9, 1.1, 2.0))


def test_repeated_tokens_are_worth_less_and_less() -> None:
    assert effective_tokens(5e6, 1e7) == 5e6
    worth = [effective_tokens(n * 1e6, 1e6) for n in (1, 2, 4, 16, 64, 1000)]
    assert worth == sorted(worth) and worth[0] == 1e6
    assert worth[2] == pytest.approx(4e6, rel=0.08)  # four passes are nearly as good as new text (Muennighoff et al.)
    assert worth[-1] < 17e6


def test_a_size_is_chosen_by_predicted_loss_and_the_text_there_is() -> None:
    rungs = {"small": Rung(10**7, 4e9), "large": Rung(10**9, 4e7)}
    assert best_size(rungs, unique_tokens=1e10)[0] == "small"
    name, losses = best_size({"small": Rung(10**7, 4e11), "large": Rung(10**9, 4e9)}, unique_tokens=1e12)
    assert name == "large" == min(losses, key=lambda size: losses[size])


def test_no_size_to_choose_from_is_an_error() -> None:
    with pytest.raises(ConfigError):
        best_size({}, 1.0)
