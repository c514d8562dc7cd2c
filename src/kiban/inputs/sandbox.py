"""jinja2 for templates that strangers wrote: an allow-list of what they may touch, and a price on everything they do.

Loops, calls, filters, operators, comparisons, literals and outputs draw steps from one budget, by the size of what they
work on, and no value grows beyond a limit; so a bomb ends in an error instead of hanging the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from kiban.errors import FormatError, LimitError

MAX_TEMPLATE = 256 * 1024  # characters
MAX_STEPS = 500_000  # of one rendering
MAX_SIZE = 4 * 2**20  # characters that a value holds, counted as often as they are held
MAX_ITEMS = 200_000  # likewise
MAX_BITS = 4096  # of an integer
CHARACTERS_A_STEP = 64
# What chat templates use; the rest of jinja2's filters can pad or format without bound.
FILTERS = (
    "abs bool capitalize count d default dictsort e first float int items last length list lower map max min "
    "reject rejectattr reverse safe select selectattr sort string sum title trim unique upper"
).split()
# Of a text these go over its characters one by one, in Python.
ITEM_FILTERS = frozenset("items list map max min reject rejectattr select selectattr sort sum unique join".split())
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
        "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
        "rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset("copy get items keys values".split()),
    list: frozenset("copy count index".split()),
    tuple: frozenset("count index".split()),
}
PLAIN = (str, int, float, bool, type(None), list, tuple, dict, jinja2.Undefined)

_steps_left: ContextVar[int] = ContextVar("steps left")


def start(steps: int = MAX_STEPS) -> Callable[[], None]:
    """Grant steps to what follows in this context; call the result at its end. Nothing metered runs without."""
    token = _steps_left.set(steps)
    return lambda: _steps_left.reset(token)


def _spend(steps: int = 1) -> None:
    left = _steps_left.get() - steps
    if left < 0:
        raise LimitError("chat template", why=f"takes more than {MAX_STEPS} steps")
    _steps_left.set(left)


def _too_large() -> NoReturn:
    raise LimitError("chat template", why="makes a value that is too large")


def _price(value: Any) -> int:
    """Steps for going over a value once."""
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS_A_STEP
    return 1 + (len(value) if isinstance(value, list | tuple | dict) else 0)


def _small(value: Any, *, shown: bool = False) -> Any:
    """The value, if it is not too large. shown: it will be written out, so it must be plain, as its parts must be."""
    size = visited = 0
    stack = [value]
    while stack:
        part = stack.pop()
        visited += 1
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, list | tuple):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(part)
            stack.extend(part.values())
        elif isinstance(part, int) and part.bit_length() > MAX_BITS:
            _too_large()
        elif (shown or part is not value) and not isinstance(part, PLAIN):
            raise FormatError("chat template", why=f"may not write out a {type(part).__name__}")
        if size > MAX_SIZE or len(stack) + visited > MAX_ITEMS:
            _too_large()
    _spend(1 + visited // 4 + size // CHARACTERS_A_STEP)
    return value


@jinja2.pass_context
def _write(_context: Any, value: Any) -> Any:
    """For every output. It takes the context so that jinja2 does not call it on constants while it compiles."""
    return _small(value, shown=True)


def _metered(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend()
        yield value


def _going_over(value: Any) -> Any:
    """For the operands of comparisons and tests."""
    _spend(_price(value))
    return value


def _concat(parts: list[Any]) -> str:
    """`~`. parts were weighed when the list was made."""
    return "".join([str(_small(part, shown=True)) for part in parts])


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = (str(_small(value, shown=True)) for value in (text, old, new))
    if len(text) + (len(text) // max(1, len(old)) + 1) * len(new) > MAX_SIZE:
        _too_large()
    result: str = text.replace(old, new, -1 if count is None else count)
    return result


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts, size = [], 0
    for value in _metered(values):
        part = str(_small(value[attribute] if attribute else value, shown=True))
        size += len(part) + len(d)
        if size > MAX_SIZE:
            _too_large()
        parts.append(part)
    return d.join(parts)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= 16:
        _too_large()
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, size = [], 0
    for part in encoder.iterencode(_small(value, shown=True)):
        size += len(part)
        if size > MAX_SIZE:
            _too_large()
        parts.append(part)
    return "".join(parts)


def _range(*args: int) -> range:
    steps = range(*args)
    _spend(min(len(steps), MAX_STEPS + 1))
    return steps


def _priced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that draws steps for going over its value, once for each step that its arguments take."""

    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja2's own filters may take the environment first

    @wraps(function)
    def priced(*args: Any, **kwargs: Any) -> Any:
        values = [list(_metered(value)) if isinstance(value, Iterator) else value for value in args]
        value = values[place]
        steps = len(value) if isinstance(value, str) and name in ITEM_FILTERS else _price(value)
        for argument in (*values[place + 1 :], *kwargs.values()):
            steps = min(steps * _price(argument), MAX_STEPS + 1)
        _spend(steps)
        result = function(*values, **kwargs)
        return _metered(result) if isinstance(result, Iterator) else _small(result)

    return priced


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with calls and operators that cost."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def wrap_str_format(self, value: Any) -> None:
        """No str.format at all: its field widths have no bound."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return not isinstance(obj, int | float) and super().is_safe_attribute(obj, attr, value)

    def call(self, _context: Any, _function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(_function, "__self__", None)
        for value in (owner, *args, *kwargs.values()):
            _spend(_price(value))
        if isinstance(owner, str) and _function.__name__ == "replace":
            return _replace(owner, *args)
        if isinstance(owner, str) and _function.__name__ == "join":
            return _join(args[0], owner)
        return _small(super().call(_context, _function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend(_price(left) + _price(right))
        sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == "*" and sizes and numbers and sizes[0] * numbers[0] > MAX_SIZE:
            _too_large()
        if (operator == "%" and sizes) or (operator == "**" and (sizes or any(abs(n) > 1000 for n in numbers))):
            raise LimitError("chat template", why=f"may not use {operator} so")
        return _small(super().call_binop(context, operator, left, right))


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Meter(NodeTransformer):
    """Puts a price on what jinja2 would do without asking the environment."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            if node.recursive:
                raise FormatError("chat template", why="may not loop recursively")
            node.iter = _filtered(node.iter, "_metered")
        elif isinstance(node, nodes.Concat):
            return _filtered(_filtered(nodes.List(node.nodes, lineno=node.lineno), "_small"), "_concat")
        elif _makes_value(node):
            return _filtered(node, "_small")
        elif isinstance(node, nodes.Compare | nodes.Operand):
            node.expr = _filtered(node.expr, "_going_over")
        elif isinstance(node, nodes.Test):
            node.node = _filtered(node.node, "_going_over")
        elif isinstance(node, nodes.TemplateData) and len(node.data) > CHARACTERS_A_STEP:
            return nodes.Const(node.data, lineno=node.lineno)  # this goes through _write
        return node


def _makes_value(node: nodes.Node) -> bool:
    """Literals and slices."""
    if isinstance(node, nodes.Tuple):
        return node.ctx == "load"
    return isinstance(node, nodes.List | nodes.Dict) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    )


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    extensions: list[Any] = ["jinja2.ext.loopcontrols", _Generation]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_write)
    filters = {name: environment.filters[name] for name in FILTERS if name in environment.filters}
    filters |= {"replace": _replace, "join": _join, "tojson": _to_json}
    environment.filters = {name: _priced(name, function) for name, function in filters.items()}
    for function in (_metered, _small, _concat, _going_over):
        environment.filters[function.__name__] = function
    environment.globals["range"] = _range
    for unbounded in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(unbounded, None)
    return environment


@lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    """The template with everything in it metered. Raises FormatError if it is none, LimitError if it is too long."""
    if len(template) > MAX_TEMPLATE:
        raise LimitError("chat template", why=f"is longer than {MAX_TEMPLATE} characters")
    environment = _environment()
    try:
        return environment.from_string(_Meter().visit(environment.parse(template)))
    except FormatError:
        raise
    except Exception as error:  # jinja2 and Python's compiler have many ways to refuse
        raise FormatError("chat template", why=f"cannot be read: {error}") from error
