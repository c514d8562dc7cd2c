"""One line of JSON for each request and each event, without prompts, answers or keys."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from dataclasses import dataclass
from typing import Any, TextIO

LOGGER = logging.getLogger("kiban.serve")


@dataclass(kw_only=True)
class Note:
    """What is known of a request when it ends. prompt is filled in only where the settings ask for it."""

    id: str
    method: str
    path: str
    status: int = 0
    ms: float = 0.0
    key: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str | None = None
    code: str | None = None
    prompt: Any = None


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _fault(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def _fault(error: BaseException) -> dict[str, Any]:
    """The class of an error and where it happened. Its message may quote what a client sent, so it stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "at": [f"{f.filename}:{f.lineno} {f.name}" for f in frames[-12:]]}


def begin(stream: TextIO | None = None) -> None:
    """Send this server's lines, and warnings of its engines and of uvicorn, to a stream, default stderr, as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json())
    levels = {"kiban.serve": logging.INFO, **dict.fromkeys(("kiban.engine", "uvicorn", "asyncio"), logging.WARNING)}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def event(name: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """Write a line. facts hold no text of clients."""
    LOGGER.log(level, name, extra={"facts": facts}, exc_info=error)


def request(note: Note) -> None:
    """Write the line of a request. The path is cut: whoever asks chooses it."""
    facts = {name: value for name, value in vars(note).items() if value is not None}
    event("request", **(facts | {"path": note.path[:200], "ms": round(note.ms, 2)}))
