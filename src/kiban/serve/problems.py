"""What a client is told when it does not get what it asked for: OpenAI's error object, with the field named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from kiban.config import did_you_mean
from kiban.errors import BusyError, ClosedError, KibanError, LimitError, ModelNotFoundError, NonFiniteError

TOO_LONG = "context_length_exceeded"


class RefusedError(KibanError):
    """A refusal with its HTTP status. param: the field of the request; code: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would call it with the message alone."""
        more: dict[str, Any] = {"code": self.code, "param": self.param, "kind": self.kind, "headers": self.headers}
        return partial(RefusedError, **more), (self.status, str(self))

    @cached_property
    def raw(self) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body of the answer."""
        body = encode(self.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        return [(name.encode(), value.encode()) for name, value in headers.items()], body

    def body(self) -> dict[str, Any]:
        """{"error": {...}}, as OpenAI's clients read it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def busy(message: str, *, retry_after: float, code: str = "rate_limit_exceeded") -> RefusedError:
    """429: the same request may be fine in retry_after seconds."""
    seconds = str(max(1, math.ceil(retry_after)))
    return RefusedError(429, message, code=code, kind="rate_limit_error", headers={"retry-after": seconds})


def closing() -> RefusedError:
    """503 of a server that takes nothing new and ends."""
    return RefusedError(503, "the server is shutting down", code="server_shutdown", headers={"retry-after": "10"})


def refusal_of(error: KibanError, *, param: str | None = None) -> RefusedError:
    """The refusal that an error of ours amounts to."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ClosedError):
        return RefusedError(503, str(error), code="unavailable", headers={"retry-after": f"{error.retry_after:.0f}"})
    if isinstance(error, BusyError):
        return busy(str(error), retry_after=error.retry_after)
    if isinstance(error, ModelNotFoundError):
        return RefusedError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, NonFiniteError):
        return RefusedError(500, str(error), code="engine_error")
    return RefusedError(400, str(error), code=TOO_LONG if isinstance(error, LimitError) else None, param=param)


def invalid(errors: Sequence[Mapping[str, Any]], known: Sequence[str]) -> RefusedError:
    """400 for a body that does not fit its schema, by pydantic's list of errors. known: the fields there are."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return RefusedError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', 'cannot be read')}")
    field = first.get("ctx", {}).get("field")  # of a check that looks at several
    param = _path([*first["loc"], field] if field else first["loc"])
    if not param:
        return RefusedError(400, "the body has to be a JSON object, with content-type application/json")
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(param, known) if "." not in param else "leave it out"
        return RefusedError(400, f"{param}: unknown field ({hint})", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return RefusedError(400, f"{param}: is missing", param=param, code="missing_required_parameter")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return RefusedError(400, f"{param}: {first['msg']}{more}", param=param, code="invalid_value")


def _path(location: Sequence[str | int]) -> str:
    """messages[0].content for ("body", "messages", 0, "~text", "content"); ~ marks the branches of our unions."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("~"):
            path += f".{part}" if path else part
    return path


def encode(value: Any) -> bytes:
    """JSON as it goes out: UTF-8, never escaped to ASCII. A lone surrogate, which UTF-8 has not, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
