"""Grammars: what may be written is exactly what fits, and compiling ends in time."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from byte_tokenizer import chat_tokenizer
from kiban.errors import ConfigError
from kiban.generate.constrained import CALL, CALL_END, Following, Grammars, schema_grammar, tool_grammar
from kiban.generate.stoppable import Trial

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "名": {"enum": ["東", "西"]}},
    "required": ["x", "名"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammars]:
    tokenizer, trial = chat_tokenizer(tmp_path_factory.mktemp("bytes")), Trial()
    yield Grammars(tokenizer, tokenizer.vocab_size + 5, trial)
    trial.close()


def _write(grammars: Grammars, found: Following, seed: int, forced: str = "") -> str:
    """An answer of random tokens among those allowed, after a forced beginning."""
    chance, ids = random.Random(seed), []
    tokenizer = grammars.tokenizer
    begin = tokenizer.encode(forced)
    for step in range(400):
        allowed = found.allowed()
        assert allowed.shape == (grammars.vocab_size,) and bool(allowed.any())
        places = allowed.nonzero().flatten().tolist()
        id = begin[step] if step < len(begin) else chance.choice(places)
        assert id in places
        found.advance(id)
        ids.append(id)
        if id in tokenizer.eos_ids:
            break
    return tokenizer.decode(ids)


def _call(text: str) -> Any:
    """The first call in a text."""
    return json.loads(text.partition(CALL)[2].partition(CALL_END)[0])


def test_random_tokens_make_json_that_fits(grammars: Grammars) -> None:
    texts = {_write(grammars, grammars.constraint(schema_grammar(POINT), field="x"), seed) for seed in range(20)}
    for text in texts:
        found = json.loads(text)
        assert list(found) == ["x", "名"] and -9 <= found["x"] <= 9 and found["名"] in ("東", "西")
    assert len(texts) > 5


def test_a_state_belongs_to_one_answer(grammars: Grammars) -> None:
    one, two = (grammars.constraint(schema_grammar(POINT), field="x") for _ in range(2))
    before = two.allowed()
    one.advance(grammars.tokenizer.encode("{")[0])
    assert not bool((one.allowed() == before).all()) and bool((two.allowed() == before).all())


def test_tools_that_were_not_offered_cannot_be_written(grammars: Grammars) -> None:
    """Reliability 26."""
    functions = {"weather": POINT, "stop": {"type": "object", "properties": {}, "additionalProperties": False}}
    for seed in range(6):
        text = _write(
            grammars, grammars.constraint(tool_grammar(functions, forced=True, several=False), field="tools"), seed
        )
        assert text.startswith(CALL) and text.endswith(CALL_END) and _call(text)["name"] in functions
    free = tool_grammar(functions, forced=False, several=False)
    begin = '好き <tool_call>\n{"name": "'
    found = grammars.constraint(free, field="tools")
    for id in grammars.tokenizer.encode(begin):
        found.advance(id)
    follow = [grammars.tokenizer.decode([id]) for id in found.allowed().nonzero().flatten().tolist()]
    assert sorted(follow) == ["s", "w"]
    text = _write(
        grammars, grammars.constraint(free, field="tools"), 0, begin + 'stop", "arguments": {}}\n</tool_call>'
    )
    assert _call(text) == {"name": "stop", "arguments": {}}


def test_compiling_is_stopped_and_the_next_one_works() -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": f".*{i}.*"} for i in range(3000)}}
    trial = Trial(seconds=0.05)
    try:
        assert trial.error(schema_grammar({"type": "string"})) == ""
        begun = time.monotonic()
        assert "takes more than 0.05 s" in trial.error(schema_grammar(many))
        assert time.monotonic() - begun < 5
        trial.seconds = 30.0
        assert trial.error(schema_grammar({"type": "string"})) == ""
    finally:
        trial.close()


def test_one_of_is_refused_with_what_to_write(grammars: Grammars) -> None:
    with pytest.raises(ConfigError, match=r"response_format: .*write anyOf"):
        grammars.constraint(
            schema_grammar({"oneOf": [{"type": "string"}, {"type": "string"}]}), field="response_format"
        )


def test_bytes_of_tokens_are_told(grammars: Grammars) -> None:
    ids = grammars.tokenizer.encode("日")
    assert b"".join(grammars.token_bytes(id) or b"" for id in ids) == "日".encode() and len(ids) == 3
