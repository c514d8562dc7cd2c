"""Personal data and adult matter in texts, found by patterns; digits may be full-width, as Japanese forms have them.

Patterns find what has the form of such data: they miss names and addresses, and take some harmless numbers along.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

_DASH = r"[-‐‑–−ー－. ]"
# Digits and letters before and behind would make it another thing; Japanese letters stand there without a space.
# Quantifiers are bounded, and nothing begins within a run, so that no text takes long.
_APART = r"(?<![0-9０-９A-Za-z.-])"
_END = r"(?![0-9０-９A-Za-z]|-[0-9０-９])"
EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}[@＠][A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
PHONE = re.compile(
    rf"""{_APART}(?:
        (?:[+＋]81{_DASH}?(?:[(（][0０][)）])?|[0０])\d{{1,4}}{_DASH}\d{{1,4}}{_DASH}\d{{3,4}}  # 03-1234-5678, +81-90-...
      | [0０]\d{{1,4}}[(（]\d{{1,4}}[)）]{_DASH}?\d{{4}}                       # 03(1234)5678
      | [(（][0０]\d{{1,4}}[)）]{_DASH}?\d{{1,4}}{_DASH}\d{{4}}                # (03)1234-5678
      | [0０][5-9５-９][0０]\d{{8}}                                            # 09012345678
      | [+＋][1-9]\d{{0,2}}{_DASH}?[(（]?\d{{1,4}}[)）]?(?:{_DASH}\d{{2,4}}){{2,4}}  # +1 (555) 010-9999
      | [(（]?[2-9]\d\d[)）]?{_DASH}[2-9]\d\d{_DASH}\d{{4}}                     # (555) 210-9999
    ){_END}""",
    re.VERBOSE,
)
NUMBER = re.compile(rf"(?<![0-9０-９A-Za-z.,-])\d{{4}}(?:{_DASH}?\d{{4}}){{2,3}}{_END}")
ADULT = re.compile(
    r"無修正動画|無修正|アダルト(?:動画|サイト|ビデオ)|エロ(?:動画|画像|漫画|アニメ|サイト)|中出し|フェラチオ|オナニー|手コキ|"
    r"デリヘル|ソープランド|風俗嬢|援助交際|セフレ|AV女優|ＡＶ女優|素人娘|巨乳|爆乳|潮吹き|肉棒|クンニ|パイズリ|"
    r"\b(?:porn(?:o|hub|star)?s?|xxx|blowjobs?|handjobs?|cumshots?|gangbang|milfs?|hentai|deepthroat|"
    r"nude (?:girls|pics|teens)|sex (?:cams?|chat|tapes?)|hardcore sex|escort girls?|big (?:tits|boobs)|creampie)\b",
    re.IGNORECASE,
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with <email>, <phone> and <number> in place of such data, and how many of each.

    A number is one of 12 digits with the check digit of a My Number, or of 16 with that of a payment card.
    """
    found: Counter[str] = Counter()

    def put(name: str, fits: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            if not fits(match[0]):
                return match[0]
            found[name] += 1
            return f"<{name}>"

        return replaced

    if "@" in text or "＠" in text:
        text = EMAIL.sub(put("email", lambda _: True), text)
    text = NUMBER.sub(put("number", _is_personal_number), text)
    return PHONE.sub(put("phone", _is_phone), text), found


def num_adult(text: str) -> int:
    """How often a text uses words of adult sites."""
    return sum(1 for _ in ADULT.finditer(text))


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if c.isdecimal()]


def _is_phone(text: str) -> bool:
    number = len(_digits(text))
    return 8 <= number <= 15 if text[0] in "+＋" else number in (10, 11)


def _is_personal_number(text: str) -> bool:
    digits = _digits(text)
    return is_my_number(digits) if len(digits) == 12 else is_card(digits)


def is_my_number(digits: list[int]) -> bool:
    """Whether 12 digits end in the check digit of a Japanese Individual Number (Ordinance 85 of 2014, article 5)."""
    weights = [6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2]
    rest = sum(digit * weight for digit, weight in zip(digits[:11], weights, strict=True)) % 11
    return digits[11] == (0 if rest <= 1 else 11 - rest)


def is_card(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of a payment card (Luhn 1960), which begins with 3 to 6."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 3 <= digits[0] <= 6 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0
