"""Answers of the scheduler are those of `generate`, whoever else is answered; nothing is lost and nobody waits for ever."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.engine.batch import batched
from kiban.engine.decoder import DecoderPlan
from kiban.engine.pages import PAGE, PagedKeys, Part
from kiban.engine.requests import Load, Piece
from kiban.engine.scheduler import Scheduler
from kiban.errors import BusyError, ConfigError, LimitError
from kiban.generate.sampling import Sampling
from kiban.generate.text import generate
from kiban.inputs.tokenizer import Tokenizer
from listener import Listener, plan_of, small_llama

LENGTHS = (1, 5, 17, 31, 32, 33, 97, 150)
GREEDY: dict[str, Any] = {"max_new_tokens": 40}
SAMPLED: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 3}


def prompts_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@contextmanager
def scheduler(model: Any, tokenizer: Tokenizer, **settings: Any) -> Iterator[Scheduler]:
    engine = Scheduler(model, tokenizer, **settings)
    try:
        yield engine
    finally:
        engine.close(drain=0)
        engine._pages.check()
        assert engine.load().pages_used == 0 and engine.load().running == engine.load().waiting == 0


def answers(engine: Scheduler, prompts: list[list[int]], **settings: Any) -> list[Listener]:
    """All at once."""
    listeners = [Listener() for _ in prompts]
    for listener, prompt in zip(listeners, prompts, strict=True):
        engine.submit(listener.request(prompt, **settings))
    return [listener.wait() for listener in listeners]


def in_steps(load: Load) -> int:
    return int(load.more["steps"])


@torch.inference_mode()
def test_a_step_over_answers_of_different_lengths_gives_the_models_logits(any_model: Any) -> None:
    """Prompts in chunks beside single tokens, in pages that don't follow each other, against each sequence by itself."""
    sequences = prompts_of((150, 90, 33, 60))
    batch, _ = batched(any_model, 1 << 30, 40)
    free = list(range(40))
    random.Random(3).shuffle(free)
    pages = [list(range(30, 36)) for _ in sequences[:1]]  # the first one's follow each other
    free = [page for page in free if page not in pages[0]]
    pages += [[free.pop() for _ in range(-(-len(ids) // PAGE))] for ids in sequences[1:]]
    cuts = [[0, 64, 128, 149, 150], [0, 89, 90, 90, 90], [0, 32, 32, 33, 33], [0, 1, 2, 58, 60]]
    wanted = [any_model(torch.tensor([ids]))[0] for ids in sequences]
    for step in range(4):
        parts, truth = [], []
        for ids, held, cut, logits in zip(sequences, pages, cuts, wanted, strict=True):
            start, end = cut[step], cut[step + 1]
            if end > start:
                number = min(2, end - start)
                parts.append(Part(ids[start:end], start, held, num_logits=number))
                truth.append(logits[end - number : end])
        assert (batch.step(parts) - torch.cat(truth)).abs().max() < 1e-4 * max(1.0, float(wanted[0].abs().max()))


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_eight_at_once_are_answered_as_each_alone(
    any_model: Any, byte_tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    prompts = prompts_of()
    with scheduler(any_model, byte_tokenizer, chunk=48) as engine:
        found = answers(engine, prompts, **settings)
        assert in_steps(engine.load()) < 8 * 40  # they went together
    assert len({tuple(listener.ids) for listener in found}) == len(prompts)
    for prompt, listener in zip(prompts, found, strict=True):
        alone = generate(any_model, byte_tokenizer, [prompt], Sampling(**settings))[0]
        assert listener.ids == alone.ids
        assert listener.text == alone.text and listener.finish == alone.finish_reason


@pytest.mark.parametrize("chunk", [32, 100, 4096])
@pytest.mark.parametrize("share", [False, True])
def test_neither_chunks_nor_shared_pages_change_an_answer(
    plan: DecoderPlan, byte_tokenizer: Tokenizer, chunk: int, share: bool
) -> None:
    begin = prompts_of((100,))[0]
    prompts = [begin + prompt for prompt in prompts_of((1, 30, 70, 3), seed=1)] + [begin, begin, begin[:64], begin[:63]]
    wanted = [generate(plan, byte_tokenizer, [prompt], Sampling(**GREEDY))[0].ids for prompt in prompts]
    with scheduler(plan, byte_tokenizer, chunk=chunk, share=share) as engine:
        for _ in range(2):  # the second time even what was written is known
            assert [listener.ids for listener in answers(engine, prompts, **GREEDY)] == wanted
        assert (engine.load().more["tokens_shared"] > 0) == share
        assert engine.load().more["pages_idle"] == 0 or share


def test_what_was_taken_over_is_told_and_not_read_again(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    prompt = prompts_of((100,))[0]
    with scheduler(plan, byte_tokenizer) as engine:
        listener = Listener()
        first = engine.submit(listener.request(prompt, max_new_tokens=1))
        listener.wait()
        read = engine.load().more["tokens_read"]
        listener = Listener()
        second = engine.submit(listener.request(prompt, max_new_tokens=1))
        listener.wait()
        assert (first.num_cached, second.num_cached) == (0, 96)
        assert (read, engine.load().more["tokens_read"]) == (100, 104)


def test_answers_to_one_prompt_read_it_together(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    """Eight at once: each goes on where another one has read up to, so that the prompt is read about once."""
    prompt = prompts_of((300,))[0]
    with scheduler(plan, byte_tokenizer) as engine:
        found = answers(engine, [prompt] * 8, max_new_tokens=30)
        assert len({tuple(listener.ids) for listener in found}) == 1
        assert engine.load().more["tokens_read"] < 300 + 8 * 2 * PAGE


def test_answers_that_lose_their_pages_go_on_where_they_were(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    """Room for about two of the eight: the others are put off, and nobody notices."""
    prompts = prompts_of()
    memory = 9 * PagedKeys.page_bytes(plan.config, torch.float32)
    for share in (False, True):
        with scheduler(plan, byte_tokenizer, memory=memory, share=share) as engine:
            found = answers(engine, prompts, **{**SAMPLED, "max_new_tokens": 90})
            assert engine.load().more["pauses"] > 0
        for prompt, listener in zip(prompts, found, strict=True):
            alone = generate(plan, byte_tokenizer, [prompt], Sampling(**{**SAMPLED, "max_new_tokens": 90}))[0]
            assert listener.ids == alone.ids and listener.text == alone.text


def test_stop_texts_seeds_and_whole_characters(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    prompt = prompts_of((20,))[0]
    whole = generate(plan, byte_tokenizer, [prompt], Sampling(max_new_tokens=60, temperature=0.8))[0].text
    assert len(whole) > 12
    stop = whole[8:11]
    with scheduler(plan, byte_tokenizer) as engine:
        (listener,) = answers(engine, [prompt], max_new_tokens=60, temperature=0.8, stop=(stop,))
        assert listener.text == whole[: whole.index(stop)] and listener.finish == "stop"
        seeds = [Listener() for _ in range(4)]
        for seed, other in enumerate(seeds):
            engine.submit(other.request(prompt, max_new_tokens=20, temperature=1.5, seed=seed // 2))
        ids = [other.wait().ids for other in seeds]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_logprobs_are_those_of_the_model(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    prompt = prompts_of((20,))[0]
    with scheduler(plan, byte_tokenizer) as engine:
        (listener,) = answers(engine, [prompt], max_new_tokens=8, temperature=2.0, seed=1, num_top=3)
        (bare,) = answers(engine, [prompt], max_new_tokens=8, temperature=2.0, seed=1, num_top=0)
        (none,) = answers(engine, [prompt], max_new_tokens=8, temperature=2.0, seed=1)
    logprobs = plan(torch.tensor([prompt + listener.ids]))[0, len(prompt) - 1 :].log_softmax(-1)
    likely = [one for piece in listener.pieces for one in piece.likely]
    assert [one.id for one in likely] == listener.ids == bare.ids == none.ids
    for one, row in zip(likely, logprobs, strict=False):
        assert math.isclose(one.logprob, float(row[one.id]), abs_tol=1e-3)
        best = row.topk(3)
        assert [id for id, _ in one.top] == best.indices.tolist()
        assert torch.allclose(torch.tensor([p for _, p in one.top]), best.values, atol=1e-3)
    assert all(one.top == () for piece in bare.pieces for one in piece.likely)
    assert not any(piece.likely for piece in none.pieces)


class Letters:
    """Only these letters, and then the end."""

    def __init__(self, tokenizer: Tokenizer, letters: str, most: int) -> None:
        self.ids, self.most = tokenizer.encode(letters), most
        self.end = tokenizer.eos_id
        self.chosen: list[int] = []

    def allowed(self) -> Tensor:
        allowed = torch.zeros(258, dtype=torch.bool)
        allowed[self.end if len(self.chosen) == self.most else self.ids] = True
        return allowed

    def advance(self, id: int) -> None:
        self.chosen.append(id)


def test_a_constraint_is_kept_and_a_broken_one_hurts_nobody_else(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    class Broken(Letters):
        def advance(self, id: int) -> None:
            if len(self.chosen) == 3:
                raise ValueError("secret")
            super().advance(id)

    prompt = prompts_of((20,))[0]
    rules = [None, Letters(byte_tokenizer, "abc", 10), Broken(byte_tokenizer, "abc", 10), None]
    listeners = [Listener() for _ in rules]
    with scheduler(plan, byte_tokenizer) as engine:
        for rule, listener in zip(rules, listeners, strict=True):
            engine.submit(listener.request(prompt, constraint=rule, temperature=1.0, max_new_tokens=30))
        free, kept, broken, also = (listener.wait() for listener in listeners)
    assert len(kept.text) == 10 and set(kept.text) <= set("abc") and kept.finish == "stop"
    assert broken.finish == "error" and len(broken.text) == 3
    assert broken.pieces[-1].error == "ValueError in the engine"
    wanted = generate(plan, byte_tokenizer, [prompt], Sampling(temperature=1.0, max_new_tokens=30))[0].ids
    assert free.ids == also.ids == wanted


def test_a_fault_in_the_model_ends_those_it_hits_and_no_others(byte_tokenizer: Tokenizer) -> None:
    model = small_llama()
    with torch.no_grad():
        model.embed.weight[7] = torch.nan
    prompts = [[1, 2, 3], [7, 2, 3], [4, 5]]
    with scheduler(plan_of(model), byte_tokenizer) as engine:
        fine, broken, also = answers(engine, prompts, temperature=5.0, max_new_tokens=10)
        assert broken.finish == "error" and "NaN" in broken.pieces[-1].error and broken.ids == []
        assert len(fine.ids) == len(also.ids) == 10 or 7 in fine.ids + also.ids

        step, engine._batch.step = engine._batch.step, lambda parts: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        (hit,) = answers(engine, [[1, 2]], max_new_tokens=4)
        assert hit.pieces[-1].error == "ZeroDivisionError in the engine"
        engine._batch.step = step  # type: ignore[method-assign]
        (again,) = answers(engine, [[1, 2]], max_new_tokens=4)
        assert again.finish in ("stop", "length")


class Held:
    """Steps of a scheduler only while the gate is open."""

    def __init__(self, engine: Scheduler) -> None:
        self.gate, self.inside, self.step = threading.Event(), threading.Event(), engine._batch.step
        engine._batch.step = self  # type: ignore[method-assign]

    def __call__(self, parts: Any) -> Tensor:
        self.inside.set()
        assert self.gate.wait(60)
        return self.step(parts)


def test_a_burst_on_a_full_queue_is_refused_at_once(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    with scheduler(plan, byte_tokenizer, max_running=4, max_waiting=32) as engine:
        held = Held(engine)
        listeners, refused, seconds = [], list[BusyError](), list[float]()
        for _ in range(500):
            listener = Listener()
            start = time.perf_counter()
            try:
                engine.submit(listener.request([1, 2, 3], max_new_tokens=2))
                listeners.append(listener)
            except BusyError as error:
                refused.append(error)
            seconds.append(time.perf_counter() - start)
        assert len(listeners) == 36 and len(refused) == 464
        assert sorted(seconds)[-25] < 0.05  # all but a few that the machine held up; none waited for the step
        assert all(1 <= error.retry_after <= 60 for error in refused)
        held.gate.set()
        for listener in listeners:
            assert listener.wait().finish in ("stop", "length")
        engine.submit(Listener().request([1, 2, 3], max_new_tokens=2))


def test_clients_are_admitted_in_turn(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    """One client has asked twenty times before another asks twice: the second does not wait for all of the first."""
    order: list[str] = []
    with scheduler(plan, byte_tokenizer, max_running=1, max_waiting=40) as engine:
        held = Held(engine)
        listeners = []
        for client, count in (("many", 20), ("few", 2), ("one", 1)):
            for _ in range(count):
                listener = Listener()
                request = listener.request([1, 2, 3], max_new_tokens=1, client=client)

                def told(piece: Any, listener: Listener = listener, client: str = client) -> None:
                    order.append(client)
                    listener(piece)

                object.__setattr__(request, "on_piece", told)
                engine.submit(request)
                listeners.append(listener)
            if client == "many":
                assert held.inside.wait(60)  # the first of them has the slot
        held.gate.set()
        for listener in listeners:
            listener.wait()
    assert order[:7] == ["many", "many", "few", "one", "many", "few", "many"]


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_cancelled_at_any_time_nothing_stays(plan: DecoderPlan, byte_tokenizer: Tokenizer, count: int) -> None:
    """Queued, while the prompt is read, while the answer is written; the neighbours' answers stay what they are."""
    rng = random.Random(5)
    steady = prompts_of((40,))[0]
    wanted = generate(plan, byte_tokenizer, [steady], Sampling(max_new_tokens=100))[0].ids
    with scheduler(plan, byte_tokenizer, max_running=4, max_waiting=count, chunk=32) as engine:

        class Clock(Listener):
            """Notes the number of steps when the last piece comes."""

            steps = 0

            def __call__(self, piece: Piece) -> None:
                self.steps = in_steps(engine.load())
                super().__call__(piece)

        kept: list[Listener] = []
        for number in range(count):
            if number % 20 == 0:
                kept.append(Listener())
                engine.submit(kept[-1].request(steady, max_new_tokens=100))
            listener = Clock()
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 200))]
            ticket = engine.submit(listener.request(prompt, max_new_tokens=150))
            if number % 3:
                time.sleep(rng.random() * 0.05)
            steps = in_steps(engine.load())
            ticket.cancel()
            listener.wait()
            assert listener.steps <= steps + 2, "the last piece came later than after the step that ran and one more"
            assert listener.finish in ("cancelled", "stop", "length")
            ticket.cancel()  # once more does nothing
        assert all(listener.wait().ids == wanted for listener in kept)
        assert engine.load().pages_used == 0


def test_closing_lets_answers_end_and_cancels_the_rest(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    engine = Scheduler(plan, byte_tokenizer)
    some = [Listener() for _ in range(3)]
    for listener in some:
        engine.submit(listener.request([1, 2, 3], max_new_tokens=5))
    engine.close(drain=60)
    assert all(listener.finish in ("stop", "length") for listener in some)
    with pytest.raises(BusyError, match="closing"):
        engine.submit(Listener().request([1, 2, 3]))
    engine.close(drain=60)

    engine = Scheduler(plan, byte_tokenizer, max_running=1)
    held = Held(engine)
    some = [Listener() for _ in range(3)]
    for listener in some:
        engine.submit(listener.request([1, 2, 3], max_new_tokens=300))
    threading.Timer(0.3, held.gate.set).start()
    engine.close(drain=0.05)
    assert [listener.finish for listener in some] == ["cancelled"] * 3
    assert engine.load().pages_used == 0 and not engine._thread.is_alive()


def test_one_who_no_longer_listens_hurts_nobody(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    with scheduler(plan, byte_tokenizer) as engine:
        request = Listener().request([1, 2, 3], max_new_tokens=300)

        def deaf(piece: Any) -> None:
            raise RuntimeError("Event loop is closed")

        object.__setattr__(request, "on_piece", deaf)
        engine.submit(request)
        (listener,) = answers(engine, [[4, 5]], max_new_tokens=20)
        assert listener.finish in ("stop", "length")
        assert engine.load().running == 0


def test_what_can_never_fit_is_refused_with_the_counts(plan: DecoderPlan, byte_tokenizer: Tokenizer) -> None:
    memory = 3 * PagedKeys.page_bytes(plan.config, torch.float32)
    with scheduler(plan, byte_tokenizer, memory=memory) as engine:
        with pytest.raises(LimitError, match="380 tokens and 5 new ones exceed the model's 384"):
            engine.submit(Listener().request([1] * 380, max_new_tokens=5))
        with pytest.raises(LimitError, match="90 tokens and 7 new ones exceed the 96"):
            engine.submit(Listener().request([1] * 90, max_new_tokens=7))
        with pytest.raises(ConfigError, match="empty"):
            engine.submit(Listener().request([]))
        with pytest.raises(ConfigError, match="does not know"):
            engine.submit(Listener().request([1, 258]))
        answers(engine, [[1] * 90], max_new_tokens=6)
    with pytest.raises(LimitError, match="memory"):
        Scheduler(plan, byte_tokenizer, memory=100)
    with pytest.raises(ConfigError, match="max_running"):
        Scheduler(plan, byte_tokenizer, max_running=0)


@pytest.mark.weights
def test_a_real_model_answers_as_it_does_alone(smollm2_gguf: Path) -> None:
    loaded = zoo.load(smollm2_gguf)
    assert loaded.tokenizer is not None
    plan, tokenizer = DecoderPlan(loaded, weights="fp32"), loaded.tokenizer
    questions = [
        "What is the capital of Japan?",
        "Name three colours.",
        "東京について教えてください。",
        "Repeat: a b c a b c a b",
    ]
    prompts = [tokenizer.chat([{"role": "user", "content": question}]) for question in questions]
    with scheduler(plan, tokenizer) as engine:
        found = answers(engine, prompts, max_new_tokens=10)
        again = answers(engine, prompts[:1], max_new_tokens=10)
    for prompt, listener in zip([*prompts, prompts[0]], [*found, *again], strict=True):
        alone = generate(plan, tokenizer, [prompt], Sampling(max_new_tokens=10))[0]
        assert (listener.ids, listener.text) == (alone.ids, alone.text)
