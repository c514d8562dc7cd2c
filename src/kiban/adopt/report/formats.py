"""Numbers as people read them, in Japanese or English. None is a dash: not measured."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from kiban.adopt.result import Check, Interval

Lang = Literal["ja", "en"]
DASH, MINUS = "–", "−"


def plain(value: float, digits: int = 3) -> str:
    """Significant digits without an exponent, thousands separated: 0.00412, 41.2, 4,120."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded:,.0f}"
    # Decimals that are left after the digits before the point; %g would drop zeros and use exponents.
    magnitude = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    decimals = digits - magnitude
    probe = abs(rounded)
    while 0 < probe < 0.1:
        probe *= 10
        decimals += 1
    return f"{rounded:.{decimals}f}"


@dataclass(frozen=True)
class Formats:
    """Formats of one language. images: what is counted are pictures."""

    lang: Lang
    images: bool = False

    def _pick(self, ja: str, en: str) -> str:
        return ja if self.lang == "ja" else en

    def score(self, value: float | None) -> str:
        """A metric in 0..1."""
        return DASH if value is None else f"{value:.3f}"

    def interval(self, interval: Interval | None, *, signed: bool = False) -> str:
        """The bounds of an interval."""
        if interval is None:
            return DASH
        sign = "+" if signed else ""
        low, high = (f"{bound:{sign}.3f}".replace("-", MINUS) for bound in (interval.low, interval.high))
        return self._pick(f"{low}〜{high}", f"{low} to {high}" if signed else f"{low}–{high}")

    def signed(self, value: float) -> str:
        """A difference."""
        return f"{value:+.3f}".replace("-", MINUS)

    def count(self, value: int | None) -> str:
        """A number of things."""
        return DASH if value is None else f"{value:,}"

    def rows(self, value: int) -> str:
        """A number of rows."""
        thing = "picture" if self.images else "row"
        return self._pick(f"{value:,}{'枚' if self.images else '件'}", f"{value:,} {thing}{'' if value == 1 else 's'}")

    def milliseconds(self, value: float | None) -> str:
        """A latency."""
        return DASH if value is None else self._pick(f"{plain(value)}ミリ秒", f"{plain(value)} ms")

    def seconds(self, value: float | None) -> str:
        """A duration."""
        if value is None:
            return DASH
        if value < 59.5:
            return self._pick(f"{plain(value, 2)}秒", f"{plain(value, 2)} s")
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return self._pick(f"{hours}時間{minutes}分", f"{hours} h {minutes} min")
        return self._pick(f"{minutes}分{seconds:02d}秒", f"{minutes} min {seconds:02d} s")

    def bytes(self, value: float | None) -> str:
        """A size in decimal units, as disks and clouds are sold."""
        if value is None:
            return DASH
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{plain(value / size)} {unit}"
        return f"{value:.0f} B"

    def yen(self, value: float | None) -> str:
        """Yen."""
        return DASH if value is None else self._pick(f"{plain(value, 2)}円", f"¥{plain(value, 2)}")

    def usd(self, value: float | None) -> str:
        """Dollars."""
        return DASH if value is None else f"${plain(value, 2)}"

    def money(self, yen: float | None, usd: float | None) -> str:
        """The currency of the reader."""
        return self.yen(yen) if self.lang == "ja" else self.usd(usd)

    def per_second(self, value: float | None) -> str:
        """A throughput."""
        return DASH if value is None else self._pick(f"{plain(value)}件/秒", f"{plain(value)}/s")

    def percent(self, value: float) -> str:
        """A share in 0..1."""
        return f"{value:.0%}"

    def p_value(self, value: float) -> str:
        """A probability."""
        return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"

    def moment(self, iso: str) -> str:
        """An ISO 8601 time, to the minute; shown as it is if it is none."""
        try:
            time = datetime.datetime.fromisoformat(iso)
        except ValueError:
            return iso
        zone = " UTC" if time.utcoffset() == datetime.timedelta(0) else ""
        date = self._pick(f"{time.year}年{time.month}月{time.day}日", f"{time:%Y-%m-%d}")
        return f"{date} {time:%H:%M}{zone}"

    def checked(self, check: Check) -> str:
        """What was measured for a requirement, in the unit that its name implies."""
        if check.value is None:
            return ""
        name = check.requirement.lower()
        if name.startswith(("p50", "p95", "latency")):
            return self.milliseconds(check.value)
        if name.startswith("cost"):
            return self.usd(check.value) if "$" in name or "usd" in name else self.yen(check.value)
        if name.startswith(("memory", "size")):
            return self.bytes(check.value)
        if name.startswith("lic"):
            return ""
        return self.score(check.value) if 0 <= check.value <= 1 else plain(check.value)
