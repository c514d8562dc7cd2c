"""Chat templates that come with a model, rendered where they can do no harm and cannot run for ever.

A template is untrusted code. It runs in jinja2's immutable sandbox with a budget: every step of a loop and every call
draws from it, and no text grows beyond a limit, so a bomb ends in an error instead of hanging the process.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kiban.errors import FormatError, LimitError

MAX_TEMPLATE = 256 * 1024  # characters
MAX_STEPS = 100_000  # loop steps and calls of one rendering
MAX_TEXT = 16 * 2**20  # characters
# What chat templates use; the rest of jinja2's filters can pad or format without bound.
FILTERS = (
    "abs bool capitalize count d default dictsort e first float int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim unique upper"
).split()
PADDING_METHODS = {"ljust", "rjust", "center", "zfill", "format", "format_map", "expandtabs", "translate"}

T = TypeVar("T")

_steps_left: ContextVar[int] = ContextVar("steps left")


def _spend(steps: int = 1) -> None:
    left = _steps_left.get() - steps
    if left < 0:
        raise LimitError("chat template", why=f"takes more than {MAX_STEPS} steps")
    _steps_left.set(left)


def _metered(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend()
        yield value


def _small(value: T) -> T:
    if isinstance(value, str | list | tuple) and len(value) > MAX_TEXT:
        raise LimitError("chat template", why="makes a text that is too long")
    return value


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    if (len(text) // max(1, len(old)) + 1) * len(new) > MAX_TEXT:
        raise LimitError("chat template", why="makes a text that is too long")
    result: str = text.replace(old, new, -1 if count is None else count)
    return result


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts, size = [], 0
    for value in _metered(values):
        part = str(value[attribute] if attribute else value)
        size += len(part) + len(d)
        if size > MAX_TEXT:
            raise LimitError("chat template", why="makes a text that is too long")
        parts.append(part)
    return d.join(parts)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 16) if indent else None)


def _range(*args: int) -> range:
    steps = range(*args)
    _spend(min(len(steps), MAX_STEPS + 1))
    return steps


def _refuse(message: str) -> None:
    raise FormatError("chat template", why=f"does not accept these messages: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with calls and operators that cost."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call(self, _context: Any, _function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _spend()
        if isinstance(getattr(_function, "__self__", None), str):
            name = getattr(_function, "__name__", "")
            if name in PADDING_METHODS:
                raise LimitError("chat template", why=f"may not call {name}")
            if name == "replace":
                return _replace(_function.__self__, *args)
            if name == "join":
                return _join(args[0], _function.__self__)
        return _small(super().call(_context, _function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend()
        sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == "*" and sizes and numbers and sizes[0] * numbers[0] > MAX_TEXT:
            raise LimitError("chat template", why="makes a text that is too long")
        if (operator == "%" and sizes) or (operator == "**" and (sizes or any(abs(n) > 1000 for n in numbers))):
            raise LimitError("chat template", why=f"may not use {operator} so")
        return _small(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters = {name: environment.filters[name] for name in FILTERS if name in environment.filters}
    environment.filters |= {
        "replace": _replace,
        "join": _join,
        "tojson": _to_json,
        "_metered": _metered,
        "_small": _small,
    }
    environment.globals |= {"range": _range, "raise_exception": _refuse, "strftime_now": _now}
    for unbounded in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(unbounded, None)
    return environment


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """The template with every loop metered and every concatenation bounded."""
    if len(template) > MAX_TEMPLATE:
        raise LimitError("chat template", why=f"is longer than {MAX_TEMPLATE} characters")
    environment = _environment()
    try:
        tree = environment.parse(template)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_metered", [], [], None, None, lineno=loop.lineno)
        for assignment in tree.find_all((nodes.Assign, nodes.Output)):
            _bound_texts(assignment)
        return environment.from_string(tree)
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        raise FormatError("chat template", why=f"cannot be read: {error}") from error


def _bound_texts(node: nodes.Node) -> None:
    """Check the length of whatever `~` builds and `set` keeps: a text that doubles in a loop grows fast."""
    if isinstance(node, nodes.Assign):
        node.node = nodes.Filter(node.node, "_small", [], [], None, None, lineno=node.lineno)
    for concat in node.find_all(nodes.Concat):
        last = concat.nodes[-1]
        concat.nodes[-1] = nodes.Filter(last, "_small", [], [], None, None, lineno=concat.lineno)


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, special: Mapping[str, str]
) -> str:
    """The prompt text of messages. special: bos_token, eos_token ... as the template names them.

    Raises FormatError if the template is broken or refuses the messages, LimitError if it does too much.
    """
    compiled = _compile(template)
    token = _steps_left.set(MAX_STEPS)
    try:
        parts, size = [], 0
        values = {"messages": [dict(m) for m in messages], "add_generation_prompt": add_generation_prompt}
        for part in compiled.generate(**values, **special):
            size += len(part)
            if size > MAX_TEXT:
                raise LimitError("chat template", why="makes a text that is too long")
            parts.append(part)
        return "".join(parts)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError, MemoryError, OverflowError) as error:
        raise FormatError("chat template", why=f"fails on these messages: {error}") from error
    finally:
        _steps_left.reset(token)
