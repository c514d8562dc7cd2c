"""Tool calls that a model writes, told from its text."""

from __future__ import annotations

from kiban.serve.tools import Calls


def test_calls_are_told_from_text_however_it_is_cut() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": {"b": "}"}}}\n</tool_call>'
    other = call.replace('"f"', '"g"')
    text = f"前 <tool {call}後{other}<tool_ca"
    for size in (1, 3, 7, 1000):
        calls, shown, made = Calls(["f"]), "", []
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        for i, piece in enumerate(pieces):
            new, found = calls.push(piece, ended=i == len(pieces) - 1)
            shown, made = shown + new, made + found
        assert shown == text.replace(call, "", 1)  # a call of what was not offered is text
        (one,) = made
        assert one["function"] == {"name": "f", "arguments": '{"a": {"b": "}"}}'}
