"""Batches of texts, metrics and logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import pickle
import threading
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from kiban.errors import BusyError, LimitError
from kiban.serve import logs
from kiban.serve.batcher import Batcher
from kiban.serve.problems import RefusedError

CHAT = "/v1/chat/completions"


def test_texts_of_several_requests_share_a_batch_and_come_back_in_order() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def double(items: list[Any]) -> list[int]:
        gate.wait(10)
        sizes.append(len(items))
        return [2 * item for item in items]

    batcher = Batcher(double, max_batch=16)

    async def ask() -> list[list[int]]:
        tasks = [asyncio.create_task(batcher(list(range(start, start + size)))) for start, size in SIZES]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks)

    SIZES = ((0, 50), (100, 3), (200, 1), (300, 20))
    found = asyncio.run(ask())
    batcher.close(drain=1)
    assert found == [[2 * i for i in range(start, start + size)] for start, size in SIZES]
    assert sum(sizes) == 74 and max(sizes) <= 16 and len(sizes) <= 7


def test_a_long_request_does_not_hold_up_a_short_one() -> None:
    ended: list[str] = []
    batcher = Batcher(lambda items: time.sleep(0.005) or items, max_batch=16)

    async def ask(name: str, size: int) -> None:
        await batcher([name] * size)
        ended.append(name)

    async def both() -> None:
        long = asyncio.create_task(ask("long", 1000))
        await asyncio.sleep(0.02)
        await ask("short", 1)
        assert not long.done()
        long.cancel()  # and what its client has left is not worked off

    asyncio.run(both())
    begun = time.monotonic()
    batcher.close(drain=5)
    assert ended == ["short"] and time.monotonic() - begun < 1


def test_one_request_that_fails_does_not_fail_the_others() -> None:
    gate = threading.Event()

    def refuse(items: list[Any]) -> list[Any]:
        gate.wait(10)
        if "bad" in items:
            raise LimitError("text", why="is bad")
        if "worse" in items:
            raise ZeroDivisionError("secret")
        return items

    batcher = Batcher(refuse)

    async def ask() -> list[Any]:
        asks = [batcher(items) for items in (["first"], ["a"], ["bad", "b"], ["worse"], ["c", "d"])]
        tasks = [asyncio.ensure_future(one) for one in asks]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, a, bad, worse, cd = asyncio.run(ask())
    batcher.close(drain=1)
    assert (first, a, cd) == (["first"], ["a"], ["c", "d"])
    assert isinstance(bad, LimitError) and isinstance(worse, RefusedError) and worse.status == 500
    assert "secret" not in str(worse)


def test_a_full_or_closed_batcher_says_so() -> None:
    gate = threading.Event()
    batcher = Batcher(lambda items: gate.wait(10) and items, max_waiting=2)

    async def ask() -> None:
        tasks = [asyncio.create_task(batcher(["a"]))]
        while not batcher.load().running:
            await asyncio.sleep(0.005)
        tasks += [asyncio.create_task(batcher(["a"])) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher(["b"])
        gate.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(batcher.close, drain=1.0)
        with pytest.raises(BusyError, match="closing"):
            await batcher(["b"])

    asyncio.run(ask())


def test_metrics_count_and_their_labels_are_bounded(serve: Any, tiny_chat: Any) -> None:
    live = serve(tiny_chat(max_running=2, max_waiting=3), price_per_hour=3600.0)
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 7, "temperature": 0}
    usages = [live.post(CHAT, body).json()["usage"] for _ in range(3)]

    def series() -> dict[tuple[str, str], float]:
        found = families(live.get("/metrics").text)
        return {(s.name, ",".join(sorted(s.labels.values()))): s.value for family in found for s in family.samples}

    first = series()
    assert first["kiban_requests_total", f"{CHAT},200"] == 3
    assert first["kiban_tokens_total", "completion,tiny-chat"] == 21
    assert first["kiban_tokens_total", "prompt,tiny-chat"] == sum(usage["prompt_tokens"] for usage in usages)
    assert first["kiban_cost_total", "tiny-chat"] == pytest.approx(sum(usage["cost"] for usage in usages))
    assert first["kiban_time_to_first_token_seconds_count", "tiny-chat"] == 3
    assert first["kiban_inter_token_seconds_count", "tiny-chat"] == 18
    assert first["kiban_max_running", "tiny-chat"] == 2 and first["kiban_max_waiting", "tiny-chat"] == 3
    assert first["kiban_running", "tiny-chat"] == 0 and first["kiban_pages", "tiny-chat"] > 0

    def strange(start: int, number: int) -> None:
        for i in range(start, start + number):
            live.get(f"/wp-admin/{i}")
            live.post(CHAT, {**body, "model": f"m{i}"})
            live.post(f"/v1/chat/{i}", body)

    strange(0, 1)
    known = set(series())
    strange(1, 30)
    assert set(series()) == known


def test_lines_are_json_and_faults_have_no_message() -> None:
    stream = io.StringIO()
    root = {
        name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate)
        for name in ("kiban.serve", "uvicorn", "asyncio")
    }
    try:
        logs.begin(stream)
        logs.event("closing", running=3)
        try:
            raise ValueError("秘密")
        except ValueError as error:
            logs.event("fault", level=logging.ERROR, error=error)
        logging.getLogger("asyncio").error("a line of asyncio's\nwith two")
        logs.request(logs.Note(id="r", method="GET", path="/日本" + "x" * 999, status=200, ms=1.2345))
    finally:
        for name, (handlers, propagate) in root.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["closing", "fault", "a line of asyncio's\nwith two", "request"]
    assert lines[0]["running"] == 3 and lines[1]["error"] == "ValueError" and "test_parts.py" in lines[1]["at"][0]
    assert "秘密" not in stream.getvalue() and "日本" in stream.getvalue() and len(lines[3]["path"]) == 200
    assert lines[3]["ms"] == 1.23 and "model" not in lines[3]


def test_refusals_travel_between_processes() -> None:
    sent = RefusedError(500, "model: failed", code="engine_error", headers={"retry-after": "3"})
    came = pickle.loads(pickle.dumps(sent))
    assert isinstance(came, RefusedError) and came.status == 500 and came.raw == sent.raw
