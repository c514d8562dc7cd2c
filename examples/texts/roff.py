"""Manual pages (roff with the man or mdoc macros) as paragraphs of plain text; it covers what the pages of JM use."""

from __future__ import annotations

import re
from collections.abc import Iterator

from texts.markup import Block, unwrap, wide_share

CHARS = {
    "aq": "'", "bu": "•", "co": "©", "rg": "®", "tm": "™", "ha": "^", "ti": "~", "lq": "“", "rq": "”", "oq": "‘",
    "cq": "’", "dq": '"', "em": "—", "en": "–", "rs": "\\", "mi": "−", "hy": "-", "+-": "±", "de": "°", "eq": "=",
    "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "<-": "←", "mu": "×", "di": "÷", "ga": "`", "aa": "´", "sc": "§",
    "**": "*", "pl": "+", "sl": "/", "ba": "|", "or": "|", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "⟨",
    "ra": "⟩", "ua": "↑", "da": "↓", "12": "½", "14": "¼", "at": "@", "sh": "#", "Do": "$", "fm": "′", "*m": "μ",
    "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", "'e": "é", "`e": "è", "~n": "ñ", "/o": "ø", "ff": "ff", "fi": "fi",
    "fl": "fl", "u2026": "…", "ul": "_", "ru": "_", "if": "∞", "dg": "†", "dd": "‡", "Fo": "«", "Fc": "»",
}  # fmt: skip
STRINGS = {"lq": "“", "rq": "”", "R": "®", "Tm": "™", "Aq": "'", "Lq": "“", "Rq": "”", 'L"': "“", 'R"': "”"}
SINGLE = {
    "-": "-",
    " ": " ",
    "~": " ",
    "0": " ",
    "e": "\\",
    "\\": "\\",
    "'": "'",
    "`": "`",
    ".": ".",
    "t": " ",
    '"': '"',
}
ESCAPE = re.compile(
    r"\\(?:f(?:\(..|\[[^\]]*\]|.)|s(?:[-+]?\d{1,2}|\[[^\]]*\])|[hvwoDXLlbCNASHZ]'[^']*'|n[-+]?(?:\(..|\[[^\]]*\]|.)"
    r"|k(?:\(..|.)|[mMF]\[[^\]]*\]|\*(?:\((?P<s2>..)|\[(?P<sn>[^\]]*)\]|(?P<s1>.))"
    r"|\((?P<c2>..)|\[(?P<cn>[^\]]*)\]|(?P<c1>.|$))"
)
BREAKS = frozenset("PP LP P sp br RS RE HP IP TP TQ SH SS Pp Sh Ss Bl El It Lp bp in ti ce Dl D1".split())
LISTINGS = {"nf": "fi", "EX": "EE", "Bd": "Ed", "TS": "TE", "Vb": "Ve", "EQ": "EN", "PS": "PE", "DS": "DE", "CS": "CE"}
FONTS = frozenset("B I SM SB R C CW BI BR IB IR RB RI OP UE ME SH SS HP".split())
ALTERNATING = frozenset("BI BR IB IR RB RI UE ME".split())
HEADINGS = {"SH": "h1", "Sh": "h1", "SS": "h2", "Ss": "h2"}
BULLETS = frozenset("• o * - – + · #".split())
CLOSING = frozenset(". , : ; ) ] ? ! 。 、 ） 」".split())
QUOTES = {"Dq": "“”", "Sq": "‘’", "Ql": "‘’", "Pq": "()", "Bq": "[]", "Aq": "<>", "Op": "[]", "Qq": '""', "Brq": "{}"}
OPENERS = {"Oo": "[", "Ao": "<", "Do": "“", "Po": "(", "So": "‘", "Bo": "["}
CLOSERS = {"Oc": "]", "Ac": ">", "Dc": "”", "Pc": ")", "Sc": "’", "Bc": "]"}
WORDS = {"Ux": "UNIX", "Bx": "BSD", "Fx": "FreeBSD", "Nx": "NetBSD", "Nd": "-", "Ap": "'", "At": "AT&T UNIX"}
INLINE = frozenset("Ar Ic Li Em Sy Pa Va Dv Ev Cm Tn No Fa Ft Vt Er An Ad Ms Fd Lk Mt Sx Cd Fn It Sh Ss D1 Dl".split())


def arguments(line: str) -> list[str]:
    """The arguments of a macro: double quotes hold spaces, a doubled one inside is a quote."""
    found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\ |\S)+)', line)
    return [bare or quoted.replace('""', '"') for quoted, bare in found]


def logical_lines(source: str) -> Iterator[str]:
    """Input lines without comments, macro definitions and the branches of .if that a terminal does not take."""
    lines = iter(re.sub(r'\\".*', "", re.sub(r"\\\n", "", source.replace("\r", ""))).split("\n"))
    taken = True  # by the last .ie
    for line in lines:
        name, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") and line[1:] else ("", "", "")
        if name in ("de", "de1", "am", "ig"):
            end = f".{rest.split()[-1]}" if len(rest.split()) > (name != "ig") else ".."
            for skipped in lines:
                if skipped.strip() == end or skipped.strip() == ("." + end[1:] if end != ".." else ".."):
                    break
        elif name in ("if", "ie", "el"):
            if name == "el":
                holds = not taken
            else:
                holds = bool(re.match(r"\s*(n\b|n\\\{|!t\b|\\n\(\.g|!\\n\(\.x|1\b)", rest))
                taken = holds if name == "ie" else taken
                rest = re.sub(r"^\s*!?('[^']*'[^']*'|\"[^\"]*\"[^\"]*\"|\([^ ]*\)|\S+?(?=\\\{)|\S+)\s*", "", rest)
            body, depth = [re.sub(r"\\[{}]", "", rest)], rest.count("\\{") - rest.count("\\}")
            while depth > 0 and (inner := next(lines, None)) is not None:
                depth += inner.count("\\{") - inner.count("\\}")
                body.append(re.sub(r"\.?\\\}|\\\{", "", inner))
            if holds:
                yield from logical_lines("\n".join(filter(None, body)))
        elif line.strip() not in (".", "'", ""):
            yield line
        elif not line.strip():
            yield ""


def mdoc(words: list[str], name: str) -> str:
    """The text of an mdoc line, its callable macros resolved. name: what .Nm stands for."""
    out, glue, closing, flag = "", True, "", False  # glue: no space before the next word
    for index, word in enumerate(words):
        text = word
        if word in QUOTES:
            text, closing = QUOTES[word][0], QUOTES[word][1] + closing
        elif word in OPENERS or word in CLOSERS or word in WORDS:
            text = OPENERS.get(word) or CLOSERS.get(word) or WORDS.get(word, "")
        elif word == "Ns":
            glue = True
            continue
        elif word == "Fl":
            flag = True
            if index + 1 < len(words) and words[index + 1] not in CLOSING:
                continue
            text, flag = "-", False
        elif word == "Nm":
            if index + 1 < len(words) and words[index + 1] not in CLOSING and words[index + 1] not in INLINE:
                continue
            text = name
        elif word == "Ar" and (index + 1 == len(words) or words[index + 1] in CLOSING):
            text = "file ..."
        elif word in INLINE or word in ("Pf", "Xr", "Xo", "Xc"):
            flag = flag and word not in INLINE
            continue
        elif flag:
            text = f"-{word}"
        if word in CLOSING and closing and index == len(words) - 1:
            text, closing, glue = closing + word, "", True
        section = index >= 2 and words[index - 2] == "Xr" and re.fullmatch(r"\d\w*", word)
        tight = glue or word in CLOSING or section or text in CLOSERS.values()
        out += ("" if tight else " ") + (f"({word})" if section else text)
        glue = word in QUOTES or word in OPENERS or word in "([" or (index > 0 and words[index - 1] == "Pf")
    return out + closing


class _Page:
    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.kind = "p"
        self.lines: list[str] = []
        self.strings = dict(STRINGS)
        self.name = ""
        self.joined = False  # the last line ended in \c

    def expand(self, text: str, depth: int = 0) -> str:
        def one(found: re.Match[str]) -> str:
            groups = found.groupdict()
            string = groups["s2"] or groups["sn"] or groups["s1"]
            if string:
                return self.expand(self.strings.get(string, ""), depth + 1) if depth < 5 else ""
            return CHARS.get(groups["c2"] or groups["cn"] or "", "") or SINGLE.get(groups["c1"] or "", "")

        return ESCAPE.sub(one, text)

    def flush(self) -> None:
        text = unwrap("\n".join(self.lines))
        if text and text not in BULLETS and not text.startswith(("||", "&&")):  # of feature test macros
            self.blocks.append(Block(self.kind, "", text))
        self.lines, self.joined, self.kind = [], False, "p"

    def add(self, text: str) -> None:
        if self.joined and self.lines:
            self.lines[-1] += text
        else:
            self.lines.append(text)
        self.joined = False

    def listing(self, lines: list[str]) -> None:
        """Keep what is Japanese in a listing (a figure's words, a list without macros), a line a paragraph."""
        for line in lines:
            if line[:1] not in (".", "'") and wide_share(text := self.expand(line)) > 0.5 and len(text) > 20:
                self.flush()
                self.add(text)
        self.flush()

    def macro(self, name: str, rest: str) -> None:
        if name in BREAKS:
            self.flush()
            self.kind = HEADINGS.get(name, "p")
        if name in ("ds", "ds1"):
            key, _, value = rest.strip().partition(" ")
            self.strings[key] = value.lstrip(" ").removeprefix('"')
        elif name == "IP":
            tag = unwrap(self.expand((arguments(rest) or [""])[0]))
            self.lines = [tag] if re.fullmatch(r"[(\[]?\w{1,3}[.)\]:]", tag) else []
            if tag and not self.lines and tag not in BULLETS:
                self.blocks.append(Block("dt", "", tag))
        elif name in FONTS:
            words = arguments(rest)
            if name == "OP":
                words = ["[", " ".join(words), "]"]
            self.text("".join(words) if name in ALTERNATING or name == "OP" else " ".join(words))
        elif name == "Nm" and not self.name:
            self.name = unwrap(self.expand((arguments(rest) or [""])[0]))
            self.add(self.name)
        elif name in INLINE or name in QUOTES or name in OPENERS or name in CLOSERS or name in WORDS or name in (
            "Nm", "Fl", "Xr", "Pf", "Ns", "Op",
        ):  # fmt: skip
            words = [unwrap(self.expand(word)) for word in arguments(rest)]
            self.add(mdoc([name, *words], self.name))
        if name in HEADINGS and rest.strip():
            self.flush()

    def text(self, line: str) -> None:
        if not line.strip():
            return
        ends = line.endswith("\\c")
        self.add(self.expand(line))
        self.joined = ends


def roff(source: str) -> list[Block]:
    """The paragraphs of a manual page; of listings and tables only what is Japanese prose."""
    page = _Page()
    tag = False  # the next line is the tag of .TP
    lines = logical_lines(source)
    for line in lines:
        name, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", "")
        if name in LISTINGS:
            end = "." + LISTINGS[name]
            inside = []
            for inner in lines:
                if inner.split(" ")[0] == end or inner[:3] in (".SH", ".Sh"):
                    break
                inside.append(inner)
            page.listing(inside)
            if inside and inner[:3] in (".SH", ".Sh"):
                page.macro(inner[1:3], inner[4:])
            continue
        if name:
            page.macro(name, rest)
        elif line[:1] in (".", "'") and line[1:2] in (" ", ""):
            continue
        else:
            if not line or line[0] == " ":
                page.flush()
            page.text(line)
        if tag and page.lines:
            page.kind = "dt"
            page.flush()
            tag = False
        if page.kind in ("h1", "h2") and page.lines:
            page.flush()  # the heading stood on the line after .SH
        tag = name in ("TP", "TQ") or (tag and not name)
    page.flush()
    return page.blocks
