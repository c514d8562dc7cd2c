"""Text into sentences, Japanese and English, by their marks."""

from __future__ import annotations

import re

MAX_QUOTED = 200  # characters between two brackets within which no sentence ends; a longer quotation is text of its own

BRACKETS = dict(zip("「『（(【［[〈《〔“", "」』）)】］]〉》〕”", strict=True))
BRACKET = re.compile("[" + re.escape("".join((*BRACKETS, *BRACKETS.values()))) + "]")
END = re.compile(r"(?P<marks>[。｡！？!?．.]+)(?P<closers>[」』）)】］\]〉》〕”’\"']*)")
# What is said may go on behind a quotation: 「はい。」と答えた。
GOES_ON = re.compile(r"[とをがにのは、，,・]|って|など")
JAPANESE = re.compile(r"[\u3005-\u30ff\u3400-\u9fff\uff66-\uff9f]")
LAST_WORD = re.compile(r"[\w.'’]*\Z")
INITIALS = re.compile(r"[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z]")  # J. Austen; U.S.; e.g.
TITLES = frozenset("Mr Mrs Ms Dr Prof St Mt Gen Col Capt Lt Sgt Rep Sen Gov Rev Hon cf vs approx al".split())
BEFORE_NUMBERS = frozenset("No Nos Fig Figs Eq Sec Ch Vol pp p".split())


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces around them. A line end always ends one.

    Japanese ones end with 。！？ and the brackets that close behind them, English ones with a mark and a space; neither ends
    within brackets, after a title (Dr.), an initial or the number of a list.
    """
    found = []
    for line in text.splitlines():
        start = 0
        quoted = _quoted(line)
        for match in END.finditer(line):
            end = match.end()
            if not any(first < end <= last for first, last in quoted) and _ends(line, start, match):
                found.append(line[start:end])
                start = end
        found.append(line[start:])
    return [stripped for sentence in found if (stripped := sentence.strip())]


def _quoted(line: str) -> list[tuple[int, int]]:
    """(place of the opening, place of the closing) of pairs of brackets that stand close enough."""
    pairs, opened = [], list[tuple[str, int]]()
    for match in BRACKET.finditer(line):
        bracket, at = match[0], match.start()
        if bracket in BRACKETS:
            opened.append((BRACKETS[bracket], at))
        elif any(closing == bracket for closing, _ in opened):
            while opened[-1][0] != bracket:  # never closed
                opened.pop()
            first = opened.pop()[1]
            if at - first <= MAX_QUOTED:
                pairs.append((first, at))
    return pairs


def _ends(line: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence that began at start ends with this mark."""
    marks, closers, after = match["marks"], match["closers"], line[match.end() :]
    before = line[match.start() - 1 : match.start()]
    if not after.strip():
        return True
    if any(mark in "。｡" for mark in marks):
        return not (closers and GOES_ON.match(after))
    if not after[0].isspace():
        # Without a space only Japanese ends here: not 3.14, Node.js, Yahoo!ニュース.
        return bool(JAPANESE.match(before)) and not after[0].isdigit() and not (closers and GOES_ON.match(after))
    follows = after.lstrip(" \t\u3000\"'“‘([")[:1]
    if follows.islower():
        return False
    return marks != "." or not _abbreviated(line[start : match.start()], follows)


def _abbreviated(sentence: str, follows: str) -> bool:
    """Whether the full stop behind this belongs to its last word, or to the number of a list."""
    word = LAST_WORD.findall(sentence)[0]
    if word in BEFORE_NUMBERS:
        return follows.isdigit()
    number_of_list = word.isdigit() and sentence.strip() == word
    return word in TITLES or bool(INITIALS.fullmatch(word)) or number_of_list
