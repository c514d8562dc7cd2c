"""Tool calls as Hermes and Qwen models write them: told in the system message, made in `<tool_call>`, answered in
`<tool_response>`. The text is the same whatever the model's template, so any chat model can be asked.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from kiban.generate.constrained import CALL, CALL_END, tool_grammar
from kiban.serve.messages import Chosen, Message, Tool
from kiban.serve.schemas import ChatRequest

WRITTEN = re.compile(
    re.escape(CALL) + r'\{"name": "([A-Za-z0-9_-]+)", "arguments": (\{.*?\})\}' + re.escape(CALL_END), re.DOTALL
)
TOLD = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that may be used for this answer."""
    tools = request.tools or []
    if isinstance(request.tool_choice, Chosen):
        return [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
    return [] if request.tool_choice == "none" else tools


def grammar_of(request: ChatRequest) -> str | None:
    """What the answer may be, if tools may be used."""
    tools = offered(request)
    if not tools:
        return None
    forced = isinstance(request.tool_choice, Chosen) or request.tool_choice == "required"
    functions = {tool.function.name: tool.function.parameters or {"type": "object"} for tool in tools}
    return tool_grammar(functions, forced=forced, several=request.parallel_tool_calls is not False)


def told(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The messages as a chat template takes them: roles and texts."""
    result: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        parts = [message.text] if message.text else []
        for call in message.tool_calls or []:
            name, arguments = json.dumps(call.function.name), call.function.arguments
            parts.append(f'{CALL}{{"name": {name}, "arguments": {arguments}}}{CALL_END}')
        text = "\n".join(parts)
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            if result and result[-1].get("tool"):  # several answers of tools are one turn
                result[-1]["content"] += "\n" + text
                continue
        result.append({"role": role, "content": text, "tool": message.role == "tool"})
    if tools:
        shown = "\n".join(json.dumps(t.model_dump(exclude_none=True), ensure_ascii=False) for t in tools)
        text = TOLD.format(tools=shown)
        if result[0]["role"] == "system":
            result[0]["content"] += "\n\n" + text
        else:
            result.insert(0, {"role": "system", "content": text})
    return [{"role": message["role"], "content": message["content"]} for message in result]


class Calls:
    """Tells calls from text while an answer comes. names: of the tools that were offered; others stay text."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.number = 0
        self._held = ""

    def push(self, text: str, *, ended: bool) -> tuple[str, list[dict[str, Any]]]:
        """The text that can be shown now, and the calls that are whole now, as OpenAI's clients read them."""
        if not self.names:
            return text, []
        self._held += text
        shown, calls = "", []
        while found := WRITTEN.search(self._held):
            if found[1] in self.names:
                calls.append(self._call(found[1], found[2]))
                shown += self._held[: found.start()]
            else:
                shown += self._held[: found.end()]
            self._held = self._held[found.end() :]
        until = len(self._held) if ended else self._begins()
        shown, self._held = shown + self._held[:until], self._held[until:]
        return shown, calls

    def _begins(self) -> int:
        """Where in what is held a call may have begun."""
        whole = self._held.find(CALL)
        if whole >= 0:
            return whole
        for size in range(min(len(CALL) - 1, len(self._held)), 0, -1):
            if CALL.startswith(self._held[-size:]):
                return len(self._held) - size
        return len(self._held)

    def _call(self, name: str, arguments: str) -> dict[str, Any]:
        self.number += 1
        return {
            "index": self.number - 1,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
