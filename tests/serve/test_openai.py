"""OpenAI's own client drives every route, over a real connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import openai
import pytest

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "tells", "parameters": PERSON}}
OTHER = {"type": "function", "function": {"name": "other"}}
HELLO = [{"role": "user", "content": "こんにちは"}]


@pytest.fixture
def client(live: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_with_their_abilities(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"lm", "tiny-encoder", "adopt-words", "tiny-chat"}
    assert models["adopt-words"].labels == ["動物", "請求"]  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny-chat").abilities == ["chat", "generate"]  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_completion_is_the_models_own_greedy_answer(client: openai.OpenAI, live: Any) -> None:
    from kiban.api import load

    answer = client.completions.create(model="lm", prompt="このパッケージは", max_tokens=24, temperature=0)
    expected = load("kiban-lm-ja-en").generate("このパッケージは", max_new_tokens=24)
    assert answer.choices[0].text == expected and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 24
    assert answer.usage.cost > 0 and answer.usage.currency == "JPY"  # type: ignore[attr-defined]


def test_a_stream_is_the_same_answer_in_whole_characters(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "lm", "prompt": "このパッケージは", "max_tokens": 40, "seed": 3}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert not any("\ufffd" in chunk.choices[0].text for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_seeds_repeat_answers_and_n_counts_them_up(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "lm", "prompt": "The", "max_tokens": 12}
    three = [choice.text for choice in client.completions.create(**ask, n=3, seed=5).choices]
    assert len(set(three)) > 1
    assert [client.completions.create(**ask, seed=5 + i).choices[0].text for i in range(3)] == three


def test_stop_texts_end_an_answer_and_are_left_out(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "lm", "prompt": "このパッケージは", "max_tokens": 24, "temperature": 0}
    full = client.completions.create(**ask).choices[0].text
    stop = full[6:9]
    stopped = client.completions.create(**ask, stop=stop).choices[0]
    assert stopped.text == full[: full.index(stop)] and stopped.finish_reason == "stop"


def test_logprobs_name_the_chosen_token_and_the_likeliest(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="lm", prompt="The", max_tokens=8, temperature=0, logprobs=3).choices[0]
    assert choice.logprobs is not None and choice.logprobs.top_logprobs is not None
    assert choice.logprobs.tokens is not None and "".join(choice.logprobs.tokens) == choice.text
    for token, logprob, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values()) <= 0
    chat = client.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, seed=0
    )
    content = chat.choices[0].logprobs
    assert content is not None and content.content is not None and len(content.content) == 4
    assert all(len(entry.top_logprobs) == 2 and entry.bytes for entry in content.content)


def test_chat_streams_and_counts(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny-chat", "messages": HELLO, "max_completion_tokens": 30, "seed": 1}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    prompt = "<|im_start|>user\nこんにちは<|im_end|>\n<|im_start|>assistant\n"  # three bytes a character
    tokens = len(prompt.encode()) - 2 * len("<|im_start|>") - len("<|im_end|>") + 3
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == tokens


def test_answers_fit_a_schema_even_of_a_model_that_knows_nothing(client: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(model="tiny-chat", messages=HELLO, response_format=schema, n=3, seed=0)
    for choice in answer.choices:
        found = json.loads(choice.message.content or "")
        assert set(found) == {"name", "age"} and 0 <= found["age"] <= 99 and choice.finish_reason == "stop"
    several = [choice.message.content for choice in answer.choices]
    assert len(set(several)) == 3


def test_a_forced_tool_is_called_with_arguments_that_fit(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    ask: dict[str, Any] = {
        "model": "tiny-chat", "messages": HELLO, "tools": [WEATHER, OTHER], "tool_choice": choice, "seed": 2,
    }  # fmt: skip
    answer = client.chat.completions.create(**ask).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls or []
    assert call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"name", "age"}  # type: ignore[union-attr]
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    (streamed,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert streamed.function is not None and streamed.function.arguments == call.function.arguments  # type: ignore[union-attr]
    # What the assistant and the tool said goes back in.
    messages: list[Any] = [*HELLO, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "晴れ"}]
    follow = client.chat.completions.create(model="tiny-chat", messages=messages, tools=[WEATHER], max_tokens=8)  # type: ignore[list-item]
    assert follow.choices[0].finish_reason in ("length", "stop")


def test_embeddings_are_unit_vectors_in_both_codings(client: openai.OpenAI) -> None:
    texts = ["猫", "犬が走る", "a database"]
    coded = client.embeddings.create(model="tiny-encoder", input=texts)  # base64, which the client decodes
    plain = client.embeddings.create(model="tiny-encoder", input=texts, encoding_format="float")
    a, b = (np.array([row.embedding for row in answer.data]) for answer in (coded, plain))
    assert a.shape == (3, 32) and np.allclose(a, b, atol=1e-6) and np.allclose((a**2).sum(-1), 1, atol=1e-5)


def test_classes_come_by_route_and_as_a_chat(client: openai.OpenAI, live: Any) -> None:
    answer = live.post("/v1/classify", {"model": "adopt-words", "input": ["猫が好き", "請求書の再発行"]}).json()
    assert [row["label"] for row in answer["data"]] == ["動物", "請求"]
    assert all(abs(sum(row["scores"].values()) - 1) < 1e-6 for row in answer["data"])
    messages: Any = [{"role": "system", "content": "分類"}, {"role": "user", "content": "請求書の再発行"}]
    chat = client.chat.completions.create(model="adopt-words", messages=messages)
    assert chat.choices[0].message.content == "請求"
    chunks = client.chat.completions.create(model="adopt-words", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "請求"


def test_async_client_streams_many_at_once(live: Any) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.completions.create(model="lm", prompt="The", max_tokens=16, seed=seed, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in (1, 2, 3, 1, 2, 3)))

    found = asyncio.run(many())
    assert found[:3] == found[3:] and len(set(found)) == 3
    assert live.idle() < 5
