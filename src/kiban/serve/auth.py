"""Who may ask: bearer keys in a file that holds their sha256, never the keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kiban.config import from_dict
from kiban.errors import ConfigError, KibanError
from kiban.files import exclusive, read_json, write_text
from kiban.serve import logs
from kiban.serve.problems import RefusedError

PREFIX = "sk-kiban-"
NAME = re.compile(r"[\w.@-]{1,64}")
MAX_KEYS = 10_000
LOOK = 1.0  # seconds between two looks at the file


@dataclass(frozen=True, kw_only=True)
class Key:
    """A client. None means no limit. monthly_budget: in the server's currency, by the calendar month in UTC.

    sees_all: whether it is told what other keys use.
    """

    name: str
    sha256: str
    requests_per_minute: int | None = None
    concurrent: int | None = None
    monthly_budget: float | None = None
    sees_all: bool | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "concurrent"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError("key", field=name, why=f"{value!r} is not a whole number above 0")
        if not isinstance(self.sees_all, bool | None):
            raise ConfigError("key", field="sees_all", why=f"{self.sees_all!r} is neither true nor false")
        budget = self.monthly_budget
        if budget is not None and (type(budget) not in (int, float) or not 0 <= budget < math.inf):
            raise ConfigError("key", field="monthly_budget", why=f"{budget!r} is not an amount")
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            raise ConfigError("key", field="name", why="is not 1 to 64 letters, digits or any of . @ _ -")
        if not (isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise ConfigError("key", field=self.name, why="its sha256 is not 64 hexadecimal digits")


OPEN = Key(name="local", sha256="0" * 64)  # everybody, on a server without keys


class Keys:
    """The keys of a server; none at all makes it open. With a path, what changes in the file holds a second later."""

    def __init__(self, keys: Sequence[Key] | None, path: Path | None = None, *, priced: bool = True) -> None:
        """priced: whether budgets have a price to count by."""
        self.keys = None if keys is None else tuple(keys)
        self._path, self._priced, self._looked = path, priced, time.monotonic()
        self._stamp = None if path is None else _stamp(path)

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return self.keys is None

    def client(self, authorization: Sequence[bytes]) -> Key:
        """Whose key the Authorization headers bring. Raises RefusedError 401."""
        if self.keys is None:
            return OPEN
        if self._path is not None and time.monotonic() - self._looked >= LOOK:
            self._look(self._path)
        scheme, _, token = authorization[0].partition(b" ") if len(authorization) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(token.strip()).hexdigest()
        # All are compared, each in constant time, so that the time tells nothing about any of them.
        matches = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        if scheme.lower() == b"bearer" and token.strip() and matches:
            return matches[0]
        message = "a key is missing or wrong; send it as `Authorization: Bearer sk-...`"
        headers = {"www-authenticate": "Bearer"}
        raise RefusedError(401, message, code="invalid_api_key", kind="authentication_error", headers=headers)

    def _look(self, path: Path) -> None:
        """Read the file again if it changed; one that cannot be used leaves the keys as they were."""
        self._looked, stamp = time.monotonic(), _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.keys = tuple(_checked(path, priced=self._priced))
        except (KibanError, OSError) as error:
            logs.event("keys not read", level=logging.ERROR, why=str(error))
        else:
            logs.event("keys read", number=len(self.keys))


def read_keys(path: Path, *, priced: bool = True) -> Keys:
    """The keys of a file. priced: as in `Keys`. Raises ConfigError or FormatError."""
    if not path.is_file():
        raise ConfigError(path, why="is missing", hint=f"`kiban serve --new-key NAME --keys {path}` begins one")
    return Keys(_checked(path, priced=priced), path, priced=priced)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _checked(path: Path, *, priced: bool) -> list[Key]:
    keys = _read(path)
    if not priced and any(key.monthly_budget is not None for key in keys):
        hint = "add --price-per-hour, what this machine costs"
        raise ConfigError("monthly_budget", why="needs a price to count by", hint=hint)
    return keys


def _read(path: Path) -> list[Key]:
    values = read_json(path)
    rows = values.get("keys")
    if set(values) != {"keys"} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(path, why='is not {"keys": [{"name": ..., "sha256": ...}, ...]}')
    if len(rows) > MAX_KEYS:
        raise ConfigError(path, why=f"has {len(rows):,} keys", hint=f"at most {MAX_KEYS:,}")
    keys = [from_dict(Key, row) for row in rows]
    for field in ("name", "sha256"):
        if len({getattr(key, field) for key in keys}) < len(keys):
            raise ConfigError(path, field=field, why="two keys have the same")
    return keys


def new_key(path: Path, name: str) -> str:
    """Add a client to a file, which is made if it is missing; returns the key, which is kept nowhere."""
    token = PREFIX + secrets.token_urlsafe(32)
    key = Key(name=name, sha256=hashlib.sha256(token.encode()).hexdigest())
    taken = ConfigError(path, why="is being written by another process", hint="try again")
    with exclusive(path.with_name(path.name + ".lock"), seconds=10, error=taken):
        keys = _read(path) if path.exists() else []
        if any(known.name == name for known in keys):
            raise ConfigError(path, field=name, why="there is a key of this name", hint="delete its line to revoke it")
        rows = [{k: v for k, v in asdict(one).items() if v is not None} for one in [*keys, key]]
        write_text(path, json.dumps({"keys": rows}, ensure_ascii=False, indent=1) + "\n")
    path.chmod(0o600)
    return token
