"""What is absurd, too long, too large or not there is refused with its field named, before any tokenising."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny-chat", "messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"model": "lm", "prompt": "hi", "max_tokens": 2},
    "/v1/embeddings": {"model": "tiny-encoder", "input": "hi"},
    "/v1/classify": {"model": "adopt-words", "input": "hi"},
}
NOT_A_NUMBER = float("nan")
NUMBERS: list[Any] = [NOT_A_NUMBER, float("inf"), -float("inf"), True, "1", [], {}, -1e9, 1e9]
WHOLE: list[Any] = [0, -1, 2**31, 2**63, 10**40, 1.5, True, "1", [], {}, NOT_A_NUMBER]
TEXTS: list[Any] = [1, True, {}, [1], [""], ["a"] * 10_000, "x" * 10_000]
SAMPLED: dict[str, list[Any]] = {
    "temperature": [*NUMBERS, -0.1, 2.1],
    "top_p": [*NUMBERS, 0, 1.01],
    "min_p": [*NUMBERS, -0.1, 1.1],
    "repetition_penalty": [*NUMBERS, 0, 5e-324],
    "frequency_penalty": [1.0, NOT_A_NUMBER, "0"],
    "presence_penalty": [-1.0, True],
    "logit_bias": [{"5": 100}],
    "n": WHOLE,
    "max_tokens": WHOLE[:4] + WHOLE[4:],
    "seed": [2**64, 10**40, 1.5, True, "1", []],
    "stop": TEXTS,
    "stream": [1, "true", []],
    "stream_options": [{"include_usage": True}, 1, {"other": 1}],
    "top_k": [-1, 2**31, 1.5, True],
    "user_id": ["unknown"],
    "chat_template": ["{{ messages }}"],
}
CHAT: dict[str, list[Any]] = {
    "messages": [None, [], "hi", [1], [{}], [{"role": "boss", "content": "x"}], [{"role": "user"}], [HELLO] * 2],
    "logprobs": [1, "yes"],
    "top_logprobs": [21, -1, True],
    "response_format": [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_object", "x": 1}, 3],
    "tools": [[{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}], 3],
    "tool_choice": ["often", {"type": "function", "function": {"name": "none"}}, 3],
    "chat_template_kwargs": [{}],
}
COMPLETION: dict[str, list[Any]] = {
    "prompt": [None, "", [], [[]], [-1], [True], [1.5], {}, [{}], ["a", 1]],
    "logprobs": [21, -1, True],
    "echo": [True],
    "best_of": [2],
    "suffix": ["x"],
}
READ: dict[str, list[Any]] = {"input": [None, "", [], [1, 2], [""], {}, 3, ["a"] * 3000]}
EMBED = {**READ, "dimensions": [0, -1, 7, True], "encoding_format": ["hex", 1]}
FIELDS = {
    "/v1/chat/completions": {**SAMPLED, **CHAT},
    "/v1/completions": {**SAMPLED, **COMPLETION},
    "/v1/embeddings": EMBED,
    "/v1/classify": {**READ, "truncate": [1, "yes"]},
}


def _absurd() -> Iterator[tuple[str, str, Any]]:
    for path, fields in FIELDS.items():
        for name, values in fields.items():
            for value in values:
                yield path, name, value


def test_absurd_parameters_are_400_with_their_field(live: Any, case: Any) -> None:
    """Reliability 18, in full: more than 200 of them."""
    cases = list(_absurd())
    assert len(cases) >= 200
    wrong = []
    for path, name, value in cases:
        body = json.dumps({**GOOD[path], name: value})  # which writes NaN, as attackers do
        answer = live.post(path, content=body)
        error = answer.json().get("error", {})
        named = str(error.get("param") or "") + error.get("message", "")
        if answer.status_code != 400 or name not in named:
            wrong.append((path, name, str(value)[:40], answer.status_code, error))
    assert not wrong
    for path, body in GOOD.items():  # and the server goes on
        assert live.post(path, body).status_code == 200
    case(18, parameters=len(cases), refused_with_their_field=len(cases) - len(wrong))


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_are_no_json_objects_are_400(live: Any, path: str) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ):
        answer = live.post(path, content=body)
        assert answer.status_code == 400 and answer.json()["error"]["message"], body[:20]
    lone = json.dumps({**GOOD[path], "model": "\ud800"}) + " "
    assert live.post(path, content=lone).status_code in (400, 404)
    extra = json.dumps({**GOOD[path], "\ud800": 1})
    assert live.post(path, content=extra).status_code == 400
    assert live.post(path, content=json.dumps(GOOD[path]), kind="text/plain").status_code == 415


def test_too_long_is_400_with_the_counts_and_nothing_is_cut(live: Any) -> None:
    lm = live.post("/v1/completions", {"model": "lm", "prompt": [5] * 257}).json()["error"]
    assert lm["code"] == "context_length_exceeded" and "257 tokens" in lm["message"] and "256" in lm["message"]
    most = live.post("/v1/completions", {"model": "lm", "prompt": [5] * 256, "max_tokens": 1}).json()["error"]
    assert "256 tokens" in most["message"] and most["param"] == "prompt"
    assert live.post("/v1/completions", {"model": "lm", "prompt": [5] * 255, "max_tokens": 1}).status_code == 200
    chat = live.post(
        "/v1/chat/completions", {"model": "tiny-chat", "messages": [{"role": "user", "content": "x" * 5000}]}
    )
    assert chat.status_code == 400 and chat.json()["error"]["param"] == "messages"
    embed = live.post("/v1/embeddings", {"model": "tiny-encoder", "input": ["a", "a " * 400]}).json()["error"]
    assert embed["param"] == "input[1]" and "402 tokens" in embed["message"] and "128" in embed["message"]
    unknown = live.post("/v1/completions", {"model": "lm", "prompt": [8192]}).json()["error"]
    assert "does not know" in unknown["message"]


def test_sizes_are_refused_before_the_body_is_read(live: Any, case: Any) -> None:
    """Reliability 19: a 64 MB body with a length and without, ten thousand headers."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

    def answer(start: bytes, parts: Any) -> str:
        with live.connect() as wire:
            wire.sendall(start)
            try:
                for part in parts:
                    wire.sendall(part)
            except OSError:
                pass  # it was refused meanwhile
            return wire.recv(200).split(b"\r\n")[0].decode()

    mega = b"x" * 2**20
    assert " 413 " in answer(head + b"content-length: 67108864\r\n\r\n", [mega] * 64)
    chunk = b"100000\r\n" + mega + b"\r\n"
    assert " 413 " in answer(head + b"transfer-encoding: chunked\r\n\r\n", [chunk] * 64)
    many = b"".join(b"a%d: b\r\n" % i for i in range(10_000))
    assert " 431 " in answer(head + many + b"\r\n", [])
    assert " 431 " in answer(head + b"".join(b"a%d: b\r\n" % i for i in range(101)) + b"\r\n", [])
    assert " 431 " in answer(head + b"a: " + b"x" * 40_000 + b"\r\n\r\n", [])
    assert " 400 " in answer(b"\x16\x03\x01 this is TLS\r\n\r\n", [])
    assert live.post("/v1/completions", GOOD["/v1/completions"]).status_code == 200
    case(19, body_64_mb=413, chunked_64_mb=413, headers_10_000=431, header_40_kb=431)


def test_a_refused_body_can_be_answered_for_while_it_is_sent(live: Any) -> None:
    """The usual clients send all of a body before they read; they still get the 413."""
    answer = live.post("/v1/completions", {"model": "lm", "prompt": "x" * 2**25})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_pictures_by_address_are_refused_and_never_fetched(live: Any, case: Any) -> None:
    """Reliability 24: they are off, so a canary on this machine is not touched, by whatever name it is called."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(1.0)
        port = canary.getsockname()[1]
        hosts = ("127.0.0.1", "localhost", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]", "user@127.0.0.1")
        urls = [f"http://{host}:{port}/x.png" for host in hosts]
        urls += [
            "http://169.254.169.254/latest/meta-data",
            "http://10.0.0.1/",
            "file:///etc/passwd",
            "data:image/png;base64,",
        ]
        for url in urls:
            for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "input_image", "image_url": url}):
                body = {**GOOD["/v1/chat/completions"], "messages": [{"role": "user", "content": [part]}]}
                refused = live.post("/v1/chat/completions", body)
                assert refused.status_code == 400 and "content[0]" in refused.json()["error"]["param"], refused.text
        with pytest.raises(TimeoutError):
            canary.accept()
    case(24, addresses=len(urls), hits=0)


@pytest.mark.parametrize("name", ["../lm", "%2e%2e/lm", "..%2f..%2fetc%2fpasswd", "lm%00", "LM", "lm/", "x" * 5000])
def test_names_of_models_are_looked_up_and_never_opened(live: Any, name: str) -> None:
    """Reliability 23."""
    with live.connect() as wire:
        wire.sendall(f"GET /v1/models/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert b" 404 " in wire.recv(200).split(b"\r\n")[0]
    answer = live.post("/v1/completions", {"model": name.replace("%00", "\0"), "prompt": "x"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_numbers_at_the_ends_of_their_ranges_are_answered(live: Any) -> None:
    """5e-324 is above 0, and whatever is divided by it is infinite."""
    ends = {"temperature": [0, 5e-324, 2], "top_p": [5e-324, 1], "min_p": [0, 1], "repetition_penalty": [0.01, 10]}
    for name, values in ends.items():
        for value in values:
            answer = live.post("/v1/completions", {**GOOD["/v1/completions"], "temperature": 2, name: value})
            assert answer.status_code == 200, (name, value, answer.text)


def test_models_are_told_what_they_cannot_do(live: Any) -> None:
    chat = live.post("/v1/chat/completions", {"model": "lm", "messages": HELLO}).json()["error"]
    assert chat["code"] == "wrong_model" and "chat template" in chat["message"]
    assert live.post("/v1/embeddings", {"model": "lm", "input": "x"}).status_code == 400
    assert live.post("/v1/completions", {"model": "tiny-encoder", "prompt": "x"}).status_code == 400
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]
    refused = live.post("/v1/chat/completions", {"model": "tiny-chat", "messages": picture})
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("messages[0].content[0]")


def test_schemas_that_would_hang_or_grow_are_refused(live: Any) -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}}
    bombs: list[dict[str, Any]] = [
        {"type": "string", "pattern": "("},
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"enum": ["x" * 70_000]},
        deep,
    ]
    for bomb in bombs:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bomb}}
        begun = time.monotonic()
        body = {"model": "tiny-chat", "messages": HELLO, "response_format": form}
        answer = live.post("/v1/chat/completions", body)
        assert answer.status_code == 400 and "response_format" in answer.json()["error"]["param"], answer.text[:300]
        assert time.monotonic() - begun < 20
