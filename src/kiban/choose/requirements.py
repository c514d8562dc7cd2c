"""Requirements as people write them: `p95<300ms, cost<50円/1k, macro_f1>0.8, memory<2GB, license=commercial`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kiban.config import did_you_mean
from kiban.errors import RequirementError

Comparison = Literal["<", ">", "="]


class Measurements(Protocol):
    """What a requirement is held against; None where nothing was measured."""

    p50_ms: float | None
    p95_ms: float | None
    cost_per_1k_yen: float | None
    cost_per_1k_usd: float | None
    peak_memory_bytes: int | None
    model_bytes: int | None
    rows_per_second: float | None
    commercial_use: bool | None


@dataclass(frozen=True)
class Quantity:
    """A thing that can be required: where its value is found, which side is good, and its units by factor."""

    attribute: str
    better: Comparison
    units: Mapping[str, float]


BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
MILLISECONDS = {"": 1.0, "MS": 1.0, "S": 1000.0, "SEC": 1000.0, "ミリ秒": 1.0, "秒": 1000.0}
SHARE = {"": 1.0, "%": 0.01}
YEN = dict.fromkeys(("円/1K", "¥/1K", "YEN/1K", "JPY/1K", "円/1000件", "円/千件", "円"), 1.0)
USD = dict.fromkeys(("$/1K", "USD/1K", "ドル/1K", "$", "USD", "ドル"), 1.0)
QUANTITIES = {
    "accuracy": Quantity("accuracy", ">", SHARE),
    "macro_f1": Quantity("macro_f1", ">", SHARE),
    "p50": Quantity("p50_ms", "<", MILLISECONDS),
    "p95": Quantity("p95_ms", "<", MILLISECONDS),
    "cost": Quantity("cost_per_1k_yen", "<", YEN),
    "memory": Quantity("peak_memory_bytes", "<", BYTES),
    "size": Quantity("model_bytes", "<", BYTES),
    "throughput": Quantity("rows_per_second", ">", {"": 1.0, "/S": 1.0, "ROWS/S": 1.0, "件/秒": 1.0}),
    "license": Quantity("commercial_use", "=", {}),
}
ALIASES = {
    "f1": "macro_f1",
    "macro-f1": "macro_f1",
    "正解率": "accuracy",
    "費用": "cost",
    "コスト": "cost",
    "メモリ": "memory",
    "メモリー": "memory",
    "サイズ": "size",
    "licence": "license",
    "ライセンス": "license",
}
KEYS = {  # of the dict form
    "accuracy": "accuracy>{}",
    "macro_f1": "macro_f1>{}",
    "p50_ms": "p50<{}ms",
    "p95_ms": "p95<{}ms",
    "cost_yen_per_1k": "cost<{}円/1k",
    "cost_usd_per_1k": "cost<{}$/1k",
    "memory_bytes": "memory<{}B",
    "size_bytes": "size<{}B",
    "rows_per_second": "throughput>{}",
    "license": "license={}",
}


@dataclass(frozen=True)
class Requirement:
    """One requirement. limit is in the unit of attribute; text is what the user wrote."""

    text: str
    name: str
    attribute: str
    comparison: Comparison
    limit: float
    inclusive: bool

    def value(self, measured: Any) -> float | None:
        """The measured value: of an interval its middle, of a yes or no 1 or 0; None if there is none."""
        found = getattr(measured, self.attribute)
        found = getattr(found, "value", found)
        return None if found is None else float(found)

    def met_by(self, measured: Any) -> bool:
        """True if the value is known and on the right side of the limit."""
        value = self.value(measured)
        if value is None:
            return False
        if self.comparison == "=" or (self.inclusive and value == self.limit):
            return value == self.limit
        return value < self.limit if self.comparison == "<" else value > self.limit


def parse(text: str | Mapping[str, Any]) -> tuple[Requirement, ...]:
    """Requirements from a text, or from a dict such as {"p95_ms": 300}. Full-width characters and 、 are understood.

    Raises RequirementError that quotes the part that is wrong.
    """
    if isinstance(text, Mapping):
        for key in text:
            if key not in KEYS:
                raise RequirementError(str(key), why="unknown requirement", hint=did_you_mean(str(key), KEYS))
        return tuple(_one(KEYS[key].format(value)) for key, value in text.items())
    clean = unicodedata.normalize("NFKC", text).replace("、", ",").replace("≦", "<=").replace("≤", "<=")
    clean = clean.replace("≧", ">=").replace("≥", ">=")
    clean = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", clean)  # 1,000
    return tuple(_one(part.strip()) for part in clean.split(",") if part.strip())


def _one(part: str) -> Requirement:
    match = re.fullmatch(r"([^\s<>=\d]+\d*)\s*(<=|>=|<|>|=)\s*(.+)", part)
    if not match:
        raise RequirementError(part, why="is not a requirement", hint="for example p95<300ms or macro_f1>0.8")
    name, sign, rest = match[1].lower(), match[2], match[3].strip()
    name = ALIASES.get(name, name)
    if name not in QUANTITIES:
        raise RequirementError(part, field=match[1], why="unknown", hint=did_you_mean(name, [*QUANTITIES, *ALIASES]))
    quantity = QUANTITIES[name]
    if sign[0] != quantity.better:
        raise RequirementError(
            part, why=f"{name} needs {quantity.better!r}", hint="a limit on the good side decides nothing"
        )
    if name == "license":
        if rest.lower() not in ("commercial", "商用", "商用可"):
            raise RequirementError(part, why="only license=commercial can be required")
        return Requirement(part, name, quantity.attribute, "=", 1.0, True)
    number = re.fullmatch(r"([$¥]?)\s*(\d+(?:\.\d+)?|\.\d+)\s*(.*)", rest)
    if not number:
        raise RequirementError(part, why=f"{rest!r} is not a number with a unit")
    unit = (number[1] + number[3]).replace(" ", "").upper()
    attribute, units = quantity.attribute, quantity.units
    if name == "cost" and unit in USD:
        attribute, units = "cost_per_1k_usd", USD
    if unit not in units:
        known = ", ".join(u.lower() for u in (*units, *(USD if name == "cost" else ())) if u)
        raise RequirementError(part, field=number[3], why="unknown unit", hint=f"known: {known}")
    return Requirement(part, name, attribute, quantity.better, float(number[2]) * units[unit], sign.endswith("="))
