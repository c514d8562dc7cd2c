"""A model that fails is told by the health check, so that whoever watches the server starts it again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from torch import Tensor

from kiban import zoo
from kiban.engine.scheduler import Scheduler
from kiban.errors import BusyError, KibanError
from kiban.families.llama import Llama
from kiban.generate.constrained import Grammars
from kiban.generate.stoppable import Trial
from kiban.serve.batcher import Batcher
from kiban.serve.served import Writer

CHAT = "/v1/chat/completions"
ASK = {"model": "fragile", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


class Fragile(Llama):
    """A Llama that can be broken."""

    broken = False

    def forward(self, *args: Any, **more: Any) -> Tensor:
        if self.broken:
            raise RuntimeError("device-side assert")
        return super().forward(*args, **more)


@pytest.fixture
def fragile(chat_model: zoo.Loaded) -> Fragile:
    module = Fragile(chat_model.config)
    module.load_state_dict(chat_model.module.state_dict())
    return module.eval()


@pytest.fixture
def fragile_live(fragile: Fragile, chat_model: zoo.Loaded, serve: Any, trial: Trial) -> Any:
    tokenizer = chat_model.tokenizer
    assert tokenizer is not None
    grammars = Grammars(tokenizer, chat_model.config.vocab_size, trial)
    writer = Writer(name="fragile", engine=Scheduler(fragile, tokenizer), tokenizer=tokenizer, grammars=grammars)
    return serve({"fragile": writer})


def test_a_model_that_fails_again_and_again_is_told(fragile_live: Any, fragile: Fragile) -> None:
    live = fragile_live
    assert live.post(CHAT, ASK).status_code == 200
    assert live.get("/healthz").json() == {"status": "ok"}
    fragile.broken = True
    for _ in range(3):
        assert live.get("/healthz").status_code == 200, "one fault may be that of one request"
        answer = live.post(CHAT, ASK)
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_error"
        assert "device" not in answer.text
    health = live.get("/healthz")
    assert health.status_code == 503 and health.json() == {"status": "failed", "model": "fragile"}
    assert 'kiban_failed{model="fragile"} 1.0' in live.get("/metrics").text
    fragile.broken = False
    assert live.post(CHAT, ASK).status_code == 200
    assert live.get("/healthz").json() == {"status": "ok"}


def test_an_engine_that_stopped_is_told_and_nobody_waits_for_it(
    fragile_live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = fragile_live

    def fault() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(live.service.models["fragile"].engine, "_plan", fault)
    answer = live.post(CHAT, ASK)
    assert answer.status_code == 500 and "stopped" in answer.text
    assert live.get("/healthz").json() == {"status": "failed", "model": "fragile"}
    assert live.post(CHAT, ASK).status_code == 503


def test_a_batcher_that_fails_or_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[Any]) -> list[Any]:
        raise RuntimeError

    batcher = Batcher(fail)
    for left in (3, 2, 1):
        assert not batcher.load().failed, left
        with pytest.raises(KibanError):
            asyncio.run(batcher([1]))
    assert batcher.load().failed
    batcher.function = list
    assert asyncio.run(batcher([1])) == [1] and not batcher.load().failed
    monkeypatch.setattr(batcher, "_take", fail)
    with pytest.raises(BusyError):
        asyncio.run(asyncio.wait_for(_twice(batcher), 5))
    assert batcher.load().failed
    batcher.close(drain=1)


async def _twice(batcher: Batcher) -> None:
    """The second finds nobody who works, however soon it comes."""
    await batcher([1])
    await batcher([1])


def test_a_queue_that_everyone_left_does_not_stop_the_batcher() -> None:
    """A client that goes away before its only text has its turn."""
    batcher = Batcher(lambda items: time.sleep(0.05) or items)

    async def leave() -> None:
        first = asyncio.create_task(batcher([1]))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(batcher([2]))
        await asyncio.sleep(0)
        second.cancel()
        assert await first == [1]
        assert await asyncio.wait_for(batcher([3]), 5) == [3]

    asyncio.run(leave())
    assert not batcher.load().failed
    batcher.close(drain=1)
