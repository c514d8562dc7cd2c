"""Sizes and times as people type and read them."""

from __future__ import annotations

import re

from kiban.errors import ConfigError


def as_bytes(text: str, option: str) -> int:
    """4GB, 500MB, 2GiB or plain bytes. Raises ConfigError naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?", text.strip(), flags=re.IGNORECASE)
    if not match:
        raise ConfigError(option, field=text, why="is not a size", hint="for example 4GB")
    unit = (match[2] or "B").upper()
    return int(float(match[1]) * (1024 if "I" in unit else 1000) ** "BKMGT".index(unit[0]))


def as_seconds(text: str, option: str) -> float:
    """90, 90s, 20m or 1.5h in seconds. Raises ConfigError naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(option, field=text, why="is not a time", hint="for example 90s, 20m, 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def as_count(text: str, option: str) -> int:
    """2000, 50k, 100M or 1.5B as a number. Raises ConfigError naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb])?", text.strip(), flags=re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ConfigError(option, field=text, why="is not a number", hint="for example 50M")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[(match[2] or "").lower()])


def shown(size: float | None) -> str:
    """Bytes in MB or GB."""
    if size is None:
        return "unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
