"""/v1/embeddings and /v1/classify, and a chat with a classifier, which answers with the label."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from pydantic_core import to_json
from starlette.responses import Response

from kiban.serve.problems import RefusedError, busy
from kiban.serve.replies import Events, Json
from kiban.serve.schemas import ChatRequest, ClassifyRequest, EmbeddingRequest
from kiban.serve.served import Classifier, Embedder, Reader
from kiban.serve.service import Bill, Service


async def embed(service: Service, request: Request, body: EmbeddingRequest) -> Response:
    """Vectors of length 1, as lists of numbers or in base64 of little-endian float32."""
    model = service.find(body.model, "embed")
    assert isinstance(model, Embedder)
    if body.dimensions not in (None, model.dim):
        raise RefusedError(400, f"dimensions: {model.name} has {model.dim} and no others", param="dimensions")
    _check_room(service, model)
    rows = await asyncio.to_thread(model.tokenizer.encode_batch, body.texts)
    tokens = model.lengths(rows, param="input")
    bill = _begin(service, request, model)
    vectors = np.asarray(await model.batcher(rows), dtype="<f4")  # (N, D)
    if not np.isfinite(vectors).all():
        raise RefusedError(500, "model: computed numbers for this text that are none", code="engine_error")
    data = []
    for i, vector in enumerate(vectors):
        coded = base64.b64encode(vector.tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": coded})
    usage = await bill.usage(tokens)
    # Several times as fast as json, which would hold up all other requests for a millisecond.
    whole = to_json({"object": "list", "model": model.name, "data": data, "usage": usage})
    return Response(whole, media_type="application/json")


async def classify(service: Service, request: Request, body: ClassifyRequest) -> Response:
    """For each text its label and the probability of every label, in the order of the model's labels."""
    model = service.find(body.model, "classify")
    assert isinstance(model, Classifier)
    scores, usage, cut = await _predict(service, request, model, body.texts, param="input", cut=bool(body.truncate))
    data = []
    for i, row in enumerate(scores):
        values = dict(zip(model.labels, row, strict=True))
        best = max(values, key=values.__getitem__)
        data.append({"object": "classification", "index": i, "label": best, "score": values[best], "scores": values})
    return Json({"object": "list", "model": model.name, "data": data, "truncated": cut, "usage": usage})


async def chat_with_classifier(service: Service, request: Request, body: ChatRequest, model: Classifier) -> Response:
    """The label of the last message of the user, as an assistant would say it."""
    for name in ("tools", "response_format", "logprobs"):
        if getattr(body, name):
            raise RefusedError(400, f"{name}: {model.name} answers with a label alone", param=name)
    last = max((i for i, message in enumerate(body.messages) if message.role == "user"), default=-1)
    if last < 0 or not body.messages[last].text:
        raise RefusedError(400, "messages: hold no text of a user to classify", param="messages")
    param = f"messages[{last}].content"
    scores, usage, _ = await _predict(service, request, model, [body.messages[last].text], param=param, cut=False)
    label = model.labels[int(np.argmax(scores[0]))]
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}
    numbers = range(body.n or 1)
    if not body.stream:
        message = {"role": "assistant", "content": label, "refusal": None}
        choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "stop"} for i in numbers]
        return Json({**head, "object": "chat.completion", "choices": choices, "usage": usage})

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        start = {**head, "object": "chat.completion.chunk"}
        for i in numbers:
            delta = {"role": "assistant", "content": label}
            yield {**start, "choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]}
            yield {**start, "choices": [{"index": i, "delta": {}, "logprobs": None, "finish_reason": "stop"}]}
        if body.stream_options is not None and body.stream_options.include_usage:
            yield {**start, "choices": [], "usage": usage}

    return Events(chunks(), request.scope["state"]["note"])


async def _predict(
    service: Service, request: Request, model: Classifier, texts: Sequence[str], *, param: str, cut: bool
) -> tuple[list[list[float]], dict[str, Any], int]:
    """Probabilities, usage, and how many texts lost their end."""
    _check_room(service, model)
    tokens, num_cut = 0, 0
    if model.tokenizer is not None:
        rows = await asyncio.to_thread(model.tokenizer.encode_batch, list(texts))
        if cut and model.max_len is not None:
            num_cut = sum(len(row) > model.max_len for row in rows)
            rows = [row[: model.max_len] for row in rows]  # as the predictor does, which counts for itself
        tokens = model.lengths(rows, param=param)
    bill = _begin(service, request, model)
    scores = [list(map(float, row)) for row in await model.batcher(texts)]
    return scores, await bill.usage(tokens), num_cut


def _check_room(service: Service, model: Reader) -> None:
    load = model.load()
    if load.waiting >= load.max_waiting:
        raise busy(
            f"{load.waiting} requests are waiting for {model.name} (ask again later)", retry_after=service.wait(model)
        )


def _begin(service: Service, request: Request, model: Reader) -> Bill:
    """A bill that is dropped if the request fails."""
    bill = service.begin(request, model)
    request.scope["state"]["stack"].callback(bill.drop)
    return bill
