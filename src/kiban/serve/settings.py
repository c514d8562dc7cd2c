"""How a server behaves. All limits have defaults that hold for a small machine."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from kiban.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of what clients may cost before they are served. Times in seconds, sizes in bytes.

    stall: without a byte that a client takes of its answer. linger: for the rest of a body that was refused.
    """

    header: float = 10.0
    body: float = 30.0
    stall: float = 30.0
    linger: float = 5.0
    keep_alive: float = 30.0
    max_body: int = 4 * 2**20
    max_bodies: int = 64 * 2**20  # of all requests that are being read
    max_header: int = 32 * 2**10
    max_headers: int = 100
    max_connections: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError("limits", field=name, why=f"{value!r} is out of range")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """keys: file of the keys, None for a server that is open to this machine. price_per_hour: of the machine.

    ledger: file that keeps what each key used; None for memory alone. drain: seconds that running answers have after
    SIGTERM. log_prompts: write what is asked into the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    ledger: Path | None = None
    price_per_hour: float | None = None
    currency: str = "JPY"
    drain: float = 30.0
    log_prompts: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < 1e9:
            raise ConfigError("price_per_hour", why=f"{self.price_per_hour!r} is out of range")
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", why=f"{self.port} is out of range", hint="0 to 65535")
        if not 0 <= self.drain <= 3600:
            raise ConfigError("drain", why=f"{self.drain} is out of range", hint="0 to 3600 seconds")
        if self.keys is None and not is_loopback(self.host):
            hint = "`kiban serve --new-key NAME --keys keys.json` makes one; then give --keys keys.json"
            raise ConfigError("host", field=self.host, why="other machines could reach it without a key", hint=hint)


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
