"""What a request costs on a machine that is paid by the hour."""

from __future__ import annotations

from dataclasses import dataclass

from kiban.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Price of the machine, and the exchange rate."""

    yen_per_hour: float
    yen_per_usd: float

    def __post_init__(self) -> None:
        if self.yen_per_hour < 0 or self.yen_per_usd <= 0:
            raise ConfigError("prices", why="yen_per_hour must be 0 or more and yen_per_usd above 0")


def cost_per_thousand(seconds_per_request: float, prices: Prices) -> tuple[float, float]:
    """Yen and US dollars for 1,000 requests that keep the machine busy for seconds_per_request each."""
    yen = 1000 * seconds_per_request * prices.yen_per_hour / 3600
    return yen, yen / prices.yen_per_usd
