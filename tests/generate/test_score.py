"""Scores against a direct computation without cache or batch."""

from __future__ import annotations

import pytest
import torch

from kiban.errors import ConfigError, LimitError
from kiban.families.llama import Llama
from kiban.generate.score import ChoiceScorer, calibrate, common_prefix, log_likelihood, score_choices

GENERATOR = torch.Generator().manual_seed(1)


def some(*lengths: int) -> list[list[int]]:
    return [torch.randint(0, 256, (n,), generator=GENERATOR).tolist() for n in lengths]


@torch.inference_mode()
def direct(model: Llama, context: list[int], continuation: list[int]) -> float:
    scores = model(torch.tensor([context + continuation])).log_softmax(-1)[0]
    return sum(float(scores[len(context) + i - 1, id]) for i, id in enumerate(continuation))


def test_log_likelihood_equals_the_direct_sum(tiny_llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts, continuations = some(5, 1, 30, 5, 17), some(3, 1, 40, 12, 1)
    wanted = [direct(tiny_llama, a, b) for a, b in zip(contexts, continuations, strict=True)]
    for positions in (512, 8):  # in one piece, and in many
        monkeypatch.setattr("kiban.generate.score.MAX_POSITIONS", positions)
        for batch_size in (1, 2, 5):
            found = log_likelihood(tiny_llama, contexts, continuations, batch_size=batch_size)
            assert found == pytest.approx(wanted, abs=2e-4)


def test_log_likelihood_of_nothing_is_zero(tiny_llama: Llama) -> None:
    assert log_likelihood(tiny_llama, [[1, 2], [3]], [[], [4]])[0] == 0.0
    with pytest.raises(ConfigError, match="empty"):
        log_likelihood(tiny_llama, [[]], [[1]])
    with pytest.raises(LimitError, match="190 tokens and 3"):
        log_likelihood(tiny_llama, [[1] * 190], [[1] * 3])


@pytest.mark.parametrize("normalise", ["tokens", "sum"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("shared", [0, 9])
def test_choices_equal_the_naive_way(tiny_llama: Llama, normalise: str, batch_size: int, shared: int) -> None:
    start = some(shared)[0]
    prompts = [start + row for row in some(4, 1, 11, 4, 7)]
    choices = some(1, 3, 2, 1, 5)
    found = score_choices(tiny_llama, prompts, choices, normalise=normalise, batch_size=batch_size)  # type: ignore[arg-type]
    wanted = torch.tensor([[direct(tiny_llama, p, c) for c in choices] for p in prompts])
    if normalise == "tokens":
        wanted = wanted / torch.tensor([len(c) for c in choices])
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_single_token_choices_need_one_pass(tiny_llama: Llama) -> None:
    prompts, choices = some(4, 6), some(1, 1)
    wanted = torch.tensor([[direct(tiny_llama, p, c) for c in choices] for p in prompts])
    torch.testing.assert_close(score_choices(tiny_llama, prompts, choices), wanted, atol=2e-4, rtol=0)


def test_the_common_prefix_is_read_once(tiny_llama: Llama) -> None:
    start, read = some(60)[0], []
    handle = tiny_llama.embed.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    try:
        score_choices(tiny_llama, [start + row for row in some(2, 2, 2, 2)], some(1, 1), batch_size=2)
    finally:
        handle.remove()
    assert sum(read) <= 60 + 4 * 2 + 4  # not 4 * 62; a row may share a token more by chance


def test_a_scorer_takes_prompts_that_begin_otherwise(tiny_llama: Llama) -> None:
    prefix, choices = some(8)[0], some(2, 1)
    scorer = ChoiceScorer(tiny_llama, choices, prefix=prefix, normalise="sum")
    for prompts in ([[*prefix, 3, 4]], [prefix], [[*prefix[:5], 9, 9]], [[1, 2]], [[*prefix, 3], [*prefix[:2], 7]]):
        wanted = torch.tensor([[direct(tiny_llama, p, c) for c in choices] for p in prompts])
        torch.testing.assert_close(scorer(prompts), wanted, atol=2e-4, rtol=0)


def test_choices_may_not_be_empty_and_prompts_not_too_long(tiny_llama: Llama) -> None:
    for choices in ([], [[1], []]):
        with pytest.raises(ConfigError, match="choice"):
            score_choices(tiny_llama, [[1]], choices)
    with pytest.raises(LimitError, match="191 tokens and 2"):
        score_choices(tiny_llama, [[1] * 191], [[1, 2]])


def test_calibration_removes_a_bias() -> None:
    scores, bias = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([5.0, -5.0])
    assert (calibrate(scores + bias, bias.expand(3, 2)) == scores).all()


def test_common_prefix_leaves_a_token_of_each() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2]]) == [1]
    assert common_prefix([[1]]) == [] == common_prefix([])
