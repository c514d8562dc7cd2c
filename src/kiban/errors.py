"""Every error that a user can cause. One line, what is wrong, where, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class KibanError(Exception):
    """Base of all errors a user can cause.

    what: the file, name or sentence that the error is about. line counts from 1, offset is in bytes from 0,
    field names a key or column. why says what is wrong, hint what to do next.
    """

    def __init__(
        self,
        what: str | Path,
        *,
        line: int | None = None,
        offset: int | None = None,
        field: str | None = None,
        why: str = "",
        hint: str = "",
    ) -> None:
        self.what, self.line, self.offset, self.field, self.why, self.hint = str(what), line, offset, field, why, hint
        where = [str(what)]
        if line is not None:
            where.append(f"line {line}")
        if offset is not None:
            where.append(f"byte {offset}")
        if field is not None:
            where.append(f"{field!r}")
        message = ", ".join(where) + (f": {why}" if why else "") + (f" ({hint})" if hint else "")
        super().__init__(" ".join(message.split()))


class ConfigError(KibanError):
    """A setting is unknown, out of range or contradicts another."""


class FormatError(KibanError):
    """A file is not what its format promises."""


class LimitError(KibanError):
    """Input is larger than the limit that protects this process."""


class UnsafeFormatError(KibanError):
    """A file could run code when opened (a pickle); it is never opened."""


class IntegrityError(KibanError):
    """A file does not have the sha256 that its manifest or the catalogue states."""


class DatasetError(KibanError):
    """The user's data cannot be used as asked."""


class CheckpointError(KibanError):
    """A checkpoint cannot be written, or none can be read."""


class NonFiniteError(KibanError):
    """Training produced NaN or infinity."""


class BudgetError(KibanError):
    """The time or memory granted does not suffice for the work asked."""


class ModelNotFoundError(KibanError):
    """No catalogue entry, folder or file answers to this name."""


class BusyError(KibanError):
    """A queue is full; asking again later may work. retry_after: seconds to wait."""

    def __init__(self, what: str | Path, *, retry_after: float = 1.0, **where: Any) -> None:
        super().__init__(what, **where)
        self.retry_after = retry_after


class ClosedError(BusyError):
    """A server is closing, or has failed; another may take its place."""

    def __init__(self, what: str | Path, *, retry_after: float = 10.0, **where: Any) -> None:
        super().__init__(what, retry_after=retry_after, **where)


class RequirementError(KibanError):
    """A requirement such as `p95<300ms` cannot be read."""
