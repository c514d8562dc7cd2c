"""/v1/chat/completions and /v1/completions of models that write."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import Response

from kiban.engine.requests import Constraint, Likely
from kiban.errors import ConfigError, FormatError
from kiban.generate.constrained import schema_grammar
from kiban.generate.sampling import Sampling
from kiban.serve import tools
from kiban.serve.answers import MAX_SEED, Answers, Ask
from kiban.serve.messages import ObjectFormat, SchemaFormat
from kiban.serve.problems import TOO_LONG, RefusedError, busy
from kiban.serve.replies import Events, Json, chat_logprobs, completion_logprobs
from kiban.serve.schemas import ChatRequest, CompletionRequest
from kiban.serve.served import Writer
from kiban.serve.service import Service

COLDEST = 1e-3  # below, the likeliest token is all that is left, and quotients overflow
NARROWEST = 1e-6  # top_p; anything less is 0 in float32, which leaves no token at all
SHORT = 16  # tokens of a completion that does not say how many, as at OpenAI


@dataclass
class _Told:
    """What has come of one answer."""

    calls: tools.Calls
    text: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    finish: str | None = None


class Chat:
    """One chat completion. Its steps are those of an HTTP request: refuse, prepare, submit, answer."""

    def __init__(self, service: Service, request: Request, body: ChatRequest, writer: Writer) -> None:
        self.service, self.request, self.body, self.writer = service, request, body, writer
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": writer.name,
        }

    async def respond(self) -> Response:
        """The answer, whole or as a stream. Raises RefusedError before anything is sent."""
        check_room(self.service, self.writer)
        prompt, constraints = await asyncio.to_thread(self._prepare)
        body = self.body
        new = most_new(self.writer, len(prompt), body.max_completion_tokens or body.max_tokens, param="messages")
        ask = Ask(
            prompts=[prompt], sampling=sampling_of(body, new), n=body.n or 1, num_top=body.num_top,
            constraints=constraints,
        )  # fmt: skip
        self.answers = begin(self.service, self.request, self.writer, ask)
        if body.stream:
            return Events(self._chunks(), self.request.scope["state"]["note"])
        return Json(await self._whole())

    def _prepare(self) -> tuple[list[int], list[Constraint] | None]:
        """The prompt and what the answers may be; slow, so not for the loop."""
        body, offered = self.body, tools.offered(self.body)
        try:
            prompt = self.writer.tokenizer.chat(tools.told(body.messages, offered))
        except FormatError as error:
            raise RefusedError(400, str(error), param="messages") from error
        grammar, param = tools.grammar_of(body), "tools"
        if isinstance(body.response_format, ObjectFormat | SchemaFormat):
            schema = body.response_format.json_schema.schema_ if body.response_format.type == "json_schema" else None
            grammar, param = schema_grammar({"type": "object"} if schema is None else schema), "response_format"
        if body.num_top is not None:
            self.writer.grammars.token_bytes(prompt[0])  # opens what tells bytes
        if grammar is None:
            return prompt, None
        try:
            return prompt, [self.writer.grammars.constraint(grammar, field=param) for _ in range(body.n or 1)]
        except ConfigError as error:
            raise RefusedError(400, str(error), param=param, code="invalid_schema") from error

    def _states(self) -> list[_Told]:
        names = [tool.function.name for tool in tools.offered(self.body)]
        return [_Told(tools.Calls(names)) for _ in range(self.body.n or 1)]

    async def _whole(self) -> dict[str, Any]:
        states = self._states()
        async for i, piece in self.answers:
            state = states[i]
            text, calls = state.calls.push(piece.text, ended=piece.finish is not None)
            state.text += text
            state.made += calls
            state.likely += piece.likely
            state.finish = piece.finish
        choices = []
        for i, state in enumerate(states):
            message: dict[str, Any] = {"role": "assistant", "content": state.text, "refusal": None}
            if state.made:
                made = [{k: v for k, v in call.items() if k != "index"} for call in state.made]
                message |= {"content": state.text.strip() or None, "tool_calls": made}
            finish = "tool_calls" if state.made and state.finish == "stop" else state.finish
            choices.append(
                {"index": i, "message": message, "logprobs": self._logprobs(state.likely), "finish_reason": finish}
            )
        note(self.request, [state.finish for state in states])
        return {**self.head, "choices": choices, "usage": await usage_of(self.answers)}

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        with_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        head = {**self.head, "object": "chat.completion.chunk"}
        more = {"usage": None} if with_usage else {}

        def chunk(i: int, delta: dict[str, Any], finish: str | None, likely: Sequence[Likely]) -> dict[str, Any]:
            choice = {"index": i, "delta": delta, "logprobs": self._logprobs(likely), "finish_reason": finish}
            return {**head, "choices": [choice], **more}

        states = self._states()
        for i in range(len(states)):
            yield chunk(i, {"role": "assistant", "content": ""}, None, ())
        async for i, piece in self.answers:
            state = states[i]
            text, calls = state.calls.push(piece.text, ended=piece.finish is not None)
            state.made += calls
            state.likely += piece.likely
            if text or calls or (state.likely and self.body.num_top is not None):
                delta: dict[str, Any] = {"content": text} if text or not calls else {}
                yield chunk(i, delta | ({"tool_calls": calls} if calls else {}), None, state.likely)
                state.likely = []
            if piece.finish is not None:
                state.finish = "tool_calls" if state.made and piece.finish == "stop" else piece.finish
                yield chunk(i, {}, state.finish, ())
        note(self.request, [state.finish for state in states])
        usage = await usage_of(self.answers)
        if with_usage:
            yield {**head, "choices": [], "usage": usage}

    def _logprobs(self, likely: Sequence[Likely]) -> dict[str, Any] | None:
        return chat_logprobs(likely, self.writer.grammars) if likely and self.body.num_top is not None else None


class Completion:
    """One completion of a text, or several."""

    def __init__(self, service: Service, request: Request, body: CompletionRequest, writer: Writer) -> None:
        self.service, self.request, self.body, self.writer = service, request, body, writer
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": writer.name,
        }

    async def respond(self) -> Response:
        """The answer, whole or as a stream. Raises RefusedError before anything is sent."""
        check_room(self.service, self.writer)
        body = self.body
        prompts = await asyncio.to_thread(self._prompts)
        news = [
            most_new(self.writer, len(prompt), body.max_tokens, param="prompt", default=SHORT) for prompt in prompts
        ]
        ask = Ask(prompts=prompts, sampling=sampling_of(body, min(news)), n=body.n or 1, num_top=body.logprobs)
        self.answers = begin(self.service, self.request, self.writer, ask)
        if body.stream:
            return Events(self._chunks(), self.request.scope["state"]["note"])
        return Json(await self._whole())

    def _prompts(self) -> list[list[int]]:
        prompt, tokenizer = self.body.prompt, self.writer.tokenizer
        if self.body.logprobs is not None:
            self.writer.grammars.token_bytes(0)  # opens what tells bytes
        if isinstance(prompt, str):
            return [tokenizer.encode(prompt)]
        rows: list[list[int]] = []
        for part in prompt if not isinstance(prompt[0], int) else [prompt]:
            rows.append(tokenizer.encode(part) if isinstance(part, str) else list(part))
        return rows

    async def _whole(self) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {"index": i, "text": "", "logprobs": None, "finish_reason": None}
            for i in range((self.body.n or 1) * len(self.answers.ask.prompts))
        ]
        likely: list[list[Likely]] = [[] for _ in choices]
        async for i, piece in self.answers:
            choices[i]["text"] += piece.text
            choices[i]["finish_reason"] = piece.finish
            likely[i] += piece.likely
        if self.body.logprobs is not None:
            for choice, row in zip(choices, likely, strict=True):
                choice["logprobs"] = completion_logprobs(row, self.writer.grammars, 0)
        note(self.request, [choice["finish_reason"] for choice in choices])
        return {**self.head, "choices": choices, "usage": await usage_of(self.answers)}

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        with_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        more = {"usage": None} if with_usage else {}
        likely: dict[int, list[Likely]] = {}
        offsets: dict[int, int] = {}
        finishes: list[str | None] = []
        async for i, piece in self.answers:
            likely.setdefault(i, []).extend(piece.likely)
            if not piece.text and piece.finish is None:
                continue
            finishes += [piece.finish] if piece.finish is not None else []
            row, logprobs = likely.pop(i), None
            if self.body.logprobs is not None:
                logprobs = completion_logprobs(row, self.writer.grammars, offsets.get(i, 0))
                offsets[i] = offsets.get(i, 0) + sum(map(len, logprobs["tokens"]))
            choice = {"index": i, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
            yield {**self.head, "choices": [choice], **more}
        note(self.request, finishes)
        usage = await usage_of(self.answers)
        if with_usage:
            yield {**self.head, "choices": [], "usage": usage}


def check_room(service: Service, writer: Writer) -> None:
    """Raises RefusedError 429 if the queue is full, before anything is read."""
    load = writer.load()
    if load.running + load.waiting >= load.max_running + load.max_waiting:
        raise busy(
            f"{load.waiting} requests are waiting for {writer.name} (ask again later)", retry_after=service.wait(writer)
        )


def most_new(writer: Writer, prompt: int, wanted: int | None, *, param: str, default: int | None = None) -> int:
    """The tokens that an answer may have. Raises RefusedError with the counts if they and the prompt exceed the model."""
    most = writer.engine.max_seq_len
    if prompt == 0:
        raise RefusedError(400, f"{param}: is empty", param=param, code="invalid_value")
    if prompt + (wanted or 1) > most:
        why = f"has {prompt} tokens" + (f" and max_tokens asks for {wanted} more" if wanted else "")
        raise RefusedError(
            400, f"{param}: {why}; {writer.name} takes {most}; nothing was cut", param=param, code=TOO_LONG
        )
    return wanted or min(default or most, most - prompt)


def sampling_of(body: ChatRequest | CompletionRequest, new: int) -> Sampling:
    """How to choose tokens; where the request is silent, as OpenAI does."""
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_new_tokens=new,
        temperature=0.0 if temperature < COLDEST else temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else max(body.top_p, NARROWEST),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        stop=tuple(body.stop),
        seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed % MAX_SEED,
    )


def begin(service: Service, request: Request, writer: Writer, ask: Ask) -> Answers:
    """Submit all answers; the request's stack ends what still runs when the request ends, however it does."""
    places = writer.load().max_running + writer.load().max_waiting
    if ask.n * len(ask.prompts) > places:
        why = f"{ask.n * len(ask.prompts)} answers at once are more than the {places} that {writer.name} takes"
        raise RefusedError(400, f"n: {why}", param="n")
    stack: ExitStack = request.scope["state"]["stack"]
    return stack.enter_context(Answers(writer, ask, service.begin(request, writer), service.metrics))


def note(request: Request, finishes: Sequence[str | None]) -> None:
    """Why the answers ended, for the log."""
    request.scope["state"]["note"].finish = ",".join(sorted({finish or "" for finish in finishes}))


async def usage_of(answers: Answers) -> dict[str, Any]:
    """usage, once it is in the ledger."""
    return await answers.bill.usage(answers.prompt_tokens, answers.completion_tokens, cached=answers.cached)
