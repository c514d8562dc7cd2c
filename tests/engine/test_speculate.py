"""Guesses change the pace and nothing else, and stop where they don't pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kiban.engine import answer as answer_module
from kiban.engine.decoder import DecoderPlan
from kiban.engine.scheduler import Scheduler
from kiban.engine.speculate import MOST, Lookup, Payoff
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate
from kiban.inputs.tokenizer import Tokenizer
from listener import Listener


def test_what_followed_before_is_guessed() -> None:
    lookup, seen = Lookup(), [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert lookup.guess(seen, 8) == [4, 5, 6, 1]
    assert lookup.guess([*seen, 9], 8) == []  # 2 3 9 is new
    assert lookup.guess([*seen, 9, 1, 2, 3], 8) == [9, 1, 2, 3]  # the latest continuation
    assert lookup.guess([*seen, 9, 1, 2, 3], 2) == [9, 1]
    assert lookup.guess([*seen, 9, 1, 2, 3], 0) == []
    assert Lookup().guess([1, 2], 8) == Lookup().guess([1, 2, 3], 8) == []


def test_guesses_are_as_long_as_they_are_right() -> None:
    lookup, seen = Lookup(), [*range(20), 0, 1, 2]
    for _ in range(30):
        lookup.judge(4, 4)
    assert len(lookup.guess(seen, 99)) == MOST
    for _ in range(30):
        lookup.judge(4, 0)
    assert len(lookup.guess(seen, 99)) == 1


def test_it_pays_only_if_more_tokens_come_per_second() -> None:
    payoff = Payoff()
    assert not payoff.pays(2, 4, 4.0)  # nothing is known yet
    payoff.observe(2, 1.0, guessed=False)
    assert payoff.pays(2, 4, 4.0)  # has to be tried
    payoff.observe(6, 2.0, guessed=True)
    answers = [(payoff.pays(2, 4, 2.5), payoff.pays(2, 4, 1.5)) for _ in range(64)]
    # 4.5 tokens in 2 s against 2 in 1 s pay, 3.5 don't; now and then the other way is taken.
    assert sum(yes for yes, _ in answers) >= 60 and sum(no for _, no in answers) <= 4
    assert len(set(answers)) > 1
    for _ in range(50):
        payoff.observe(6, 1.0, guessed=True)  # the machine has less to do now
    assert sum(payoff.pays(2, 4, 1.5) for _ in range(64)) >= 60


def test_steps_with_guesses_do_not_tell_what_those_without_take() -> None:
    payoff = Payoff()
    for _ in range(50):
        payoff.observe(6, 1.0, guessed=False)  # compiled, say
        payoff.observe(8, 2.0, guessed=True)  # as many rows as a power of two
    assert sum(payoff.pays(6, 2, 2.0) for _ in range(64)) <= 4


class Always(Payoff):
    """Guesses whether it pays or not."""

    def pays(self, rows: int, guessed: int, expected: float) -> bool:
        return True


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "top_p": 0.9},
        {"repetition_penalty": 1.2},
        {"temperature": 0.8, "stop": ("a", "b", "c")},
    ],
    ids=["greedy", "sampled", "penalised", "stop texts"],
)
def test_answers_are_those_without_guesses(
    any_model: Any, byte_tokenizer: Tokenizer, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses of five tokens, of which none, some or all are right, beside each other."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in (9, 30, 150)]
    sampling = Sampling(max_new_tokens=60, **settings)
    alone = [generate(any_model, byte_tokenizer, [prompt], sampling)[0] for prompt in prompts]
    whole = [prompt + answer.ids for prompt, answer in zip(prompts, alone, strict=True)]

    class Half(Lookup):
        def guess(self, seen: Sequence[int], most: int) -> list[int]:
            (truth,) = (ids for ids in whole if ids[: len(seen)] == list(seen))
            guess = truth[len(seen) : len(seen) + min(most, 5)]
            wrong = len(seen) % 7
            return [(id + 1) % 256 if place == wrong else id for place, id in enumerate(guess)]

    monkeypatch.setattr(answer_module, "Lookup", Half)
    engine = Scheduler(any_model, byte_tokenizer)
    engine._payoff = Always()
    listeners = [Listener() for _ in prompts]
    for listener, prompt in zip(listeners, prompts, strict=True):
        engine.submit(listener.request(prompt, max_new_tokens=60, **settings))
    for listener, wanted in zip(listeners, alone, strict=True):
        assert listener.wait().ids == wanted.ids
        assert listener.text == wanted.text and listener.finish == wanted.finish_reason
    more = engine.load().more
    assert 0.3 * more["tokens_guessed"] < more["tokens_guessed_right"] < 0.8 * more["tokens_guessed"]
    engine.close(drain=0)
    engine._pages.check()
    assert engine.load().pages_used == 0


def test_a_loop_is_written_in_fewer_steps(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    """Among greedy answers of a random model some fall into loops; every token of a loop is guessed."""
    prompts = [[number] * 5 for number in range(6)]
    steps = []
    for speculate in (False, True):
        engine = Scheduler(plan, byte_tokenizer, max_running=1, max_waiting=10, speculate=speculate)
        if speculate:
            engine._payoff = Always()
        listeners = [Listener() for _ in prompts]
        for listener, prompt in zip(listeners, prompts, strict=True):
            engine.submit(listener.request(prompt, max_new_tokens=120))
        written = sum(len(listener.wait().ids) for listener in listeners)
        more = engine.load().more
        engine.close(drain=0)
        steps.append(more["steps"])
        assert more["tokens_written"] == written - len(prompts)  # the first ones come with the prompts
    assert more["tokens_guessed_right"] > 0
    assert steps[1] <= steps[0] - more["tokens_guessed_right"]
