"""The objects that OpenAI's clients read, and the stream of events that carries them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kiban.engine.requests import Likely
from kiban.errors import KibanError
from kiban.generate.constrained import Grammars
from kiban.serve import logs
from kiban.serve.logs import Note
from kiban.serve.problems import RefusedError, encode, refusal_of

LEAST = -9999.0  # stands for the logarithm of 0, which JSON cannot write


class Json(Response):
    """JSON in UTF-8, never escaped to ASCII."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


class Events(Response):
    """Server-sent events; one that fails on the way ends with an error event, since its status is sent already."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], note: Note) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
        super().__init__(headers={**headers, "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.note = events, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def say(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": more})

        try:
            async with aclosing(self.events) as events:  # type: ignore[type-var]
                async for event in events:
                    await say(encode(event))
        except KibanError as error:
            problem = refusal_of(error)
            self.note.code = problem.code
            await say(encode(problem.body()), more=False)
        except Exception as error:
            logs.event("fault", level=logging.ERROR, error=error, request=self.note.id)
            problem = RefusedError(500, "the server failed on this request", code="internal_error")
            self.note.code = problem.code
            await say(encode(problem.body()), more=False)
        else:
            await say(b"[DONE]", more=False)


def chat_logprobs(likely: Sequence[Likely], grammars: Grammars) -> dict[str, Any]:
    """logprobs of a chat completion."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        token, raw = _token(id, grammars)
        return {"token": token, "logprob": max(logprob, LEAST), "bytes": raw}

    content = [entry(one.id, one.logprob) | {"top_logprobs": [entry(*top) for top in one.top]} for one in likely]
    return {"content": content, "refusal": None}


def completion_logprobs(likely: Sequence[Likely], grammars: Grammars, offset: int) -> dict[str, Any]:
    """logprobs of a completion; offset: characters of the answer before these tokens."""
    tokens = [_token(one.id, grammars)[0] for one in likely]
    offsets = [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [max(one.logprob, LEAST) for one in likely],
        "top_logprobs": [{_token(id, grammars)[0]: max(p, LEAST) for id, p in one.top} for one in likely],
        "text_offset": offsets,
    }


def _token(id: int, grammars: Grammars) -> tuple[str, list[int] | None]:
    """A token as text, and its bytes, which need not be whole characters."""
    raw = grammars.token_bytes(id)
    if raw is None:
        return grammars.tokenizer.decode([id], skip_special=False), None
    return raw.decode("utf-8", "replace"), list(raw)
