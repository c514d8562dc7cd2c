"""Readers of the markups that manuals and books come in. They return paragraphs of plain text, unwrapped.

html and mallard also return the kind of every block, so that a page and its translation can be aligned. Program
listings are left out: the corpora are for language.
"""

from __future__ import annotations

import html as html_module
import re
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import NamedTuple
from xml.etree import ElementTree

WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000"  # kana, kanji and their punctuation
KANA_KANJI = re.compile("[\u3041-\u30ff\u4e00-\u9fff]")


class Block(NamedTuple):
    """One paragraph, heading, list item or cell: its kind (a tag), its id in the page ("" if none) and its text."""

    kind: str
    id: str
    text: str


def unwrap(text: str) -> str:
    """Join hard-wrapped lines: nothing between two wide characters, a space elsewhere; runs of spaces become one."""
    text = re.sub(rf"(?<=[{WIDE}])[ \t\r]*\n\s*(?=[{WIDE}])", "", text.replace("\xa0", " ").replace("\u200b", ""))
    text = re.sub(r"[ \t\r\n\f\v]+", " ", text)
    # Some translations put a space after every 。 because their tools wrapped lines there.
    text = re.sub(rf"(?<=[。、．，！？」）]) (?=[{WIDE}])", "", text)
    # A space beside hiragana is a trace of wrapping, or of a macro for bold type: 「扱 えない」, 「ファイル を」.
    return re.sub(r"(?<=[ぁ-ん]) (?=[ぁ-んァ-ヶー一-龥])|(?<=[ァ-ヶー一-龥]) (?=[ぁ-ん])", "", text).strip(" ")


def wide_share(text: str) -> float:
    """Share of kana and kanji among the letters and digits of a text, 0 to 1."""
    letters = sum(map(str.isalnum, text))
    return len(KANA_KANJI.findall(text)) / letters if letters else 0.0


BLOCKS = frozenset(
    "p h1 h2 h3 h4 h5 h6 li dt dd td th div section article blockquote caption title summary body tr table ul ol dl "
    "center hr address figure".split()
)
DROPPED = frozenset(
    "head script style nav header footer aside noscript pre svg button textarea sup select form".split()
)
DROPPED_CLASSES = frozenset(
    # of DocBook, texinfo, Sphinx, LibreOffice, Apache, SiSU; "p.code": only of <p>
    "navheader navfooter toc nav_table list-of-figures list-of-tables list-of-examples figure informalfigure mediaobject "
    "headerlink section-number sphinxsidebar related footer contents-treeview programlisting screen highlight "
    "indexterm footnotes footnote legalnotice revhistory copyright_date howtoget pcode embedded_block relatedtopics "
    "docnav permalink toplang bottomlang prev-next-area onthispage tiny tiny_left verbatim p.code menu".split()
)
DROPPED_IDS = frozenset("banner title quickview footer tocframe languages highlighting-settings".split())
VOID = frozenset("br img hr input meta link col area base wbr param source embed".split())
NUMBER = re.compile(
    r"(第 ?\d+ ?[章部節]|付録 ?[A-Z]|Chapter \d+|Appendix [A-Z]|[A-Z]\.|([A-Z]\.)?\d+(\.\d+)*\.?)[\s.:：]+"
)


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.text: list[str] = []
        self.kind, self.id = "body", ""
        self.cells = 0  # of the row so far
        self.dropping, self.depth = "", 0  # inside of which dropped element, and how many of its name are open

    def flush(self, kind: str = "body", id: str = "") -> None:
        text = unwrap("".join(self.text))
        if text:
            self.blocks.append(Block(self.kind, self.id, text))
        self.text, self.kind, self.id = [], kind, id

    @staticmethod
    def unwanted(tag: str, values: dict[str, str | None]) -> bool:
        classes = (values.get("class") or "").split()
        named = DROPPED_CLASSES.intersection(classes) or DROPPED_CLASSES.intersection(
            f"{tag}.{name}" for name in classes
        )
        return tag in DROPPED or bool(named) or values.get("id") in DROPPED_IDS

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if self.dropping:
            self.depth += tag == self.dropping
        elif tag not in VOID and self.unwanted(tag, values):
            self.dropping, self.depth = tag, 1
            if tag in BLOCKS or tag in ("pre", "table"):
                self.flush()
        elif tag == "tr":
            self.flush()
            self.cells = 0
        elif tag in ("td", "th"):
            self.cells += 1
            self.flush("td" if self.cells == 1 else "td+")
        elif tag in ("p", "div") and self.kind.startswith("td") and not "".join(self.text).strip():
            self.id = values.get("id") or ""  # the first paragraph of a cell
        elif tag in BLOCKS:
            self.flush(tag, values.get("id") or "")
        elif tag == "br":
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.dropping:
            self.depth -= tag == self.dropping
            self.dropping = self.dropping if self.depth else ""
        elif tag in BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.dropping:
            self.text.append(data)


def html(source: str, start: str = "") -> list[Block]:
    """The blocks of an HTML page, from the first occurrence of start on; section numbers of headings are removed.

    Kinds are names of tags; "td" is the first cell of a row, "td+" a further one.
    """
    parser = _Html()
    at = source.find(start)
    parser.feed(source[max(at, 0) :])
    parser.close()
    parser.flush()
    heads = ("h1", "h2", "h3", "h4", "h5", "h6")
    return [b._replace(text=NUMBER.sub("", b.text, count=1)) if b.kind in heads else b for b in parser.blocks]


EMPTY_LINK = "\ufffc"


def mallard(source: str) -> list[Block]:
    """The blocks of a Mallard page (GNOME help), without sentences that only point to a title elsewhere."""
    blocks: list[Block] = []

    def walk(node: ElementTree.Element) -> None:
        tag = node.tag.rpartition("}")[2]
        if tag in ("title", "p"):
            for link in node.iter():
                if link.tag.endswith("}link") and not "".join(link.itertext()).strip():
                    link.text = EMPTY_LINK
            text = re.sub(f"[^.。]*{EMPTY_LINK}[^.。]*[.。]?\\)?", "", "".join(node.itertext()))
            blocks.append(Block("title" if tag == "title" else "p", "", unwrap(text)))
        elif tag not in ("info", "links", "code", "screen"):
            for child in node:
                walk(child)

    walk(ElementTree.fromstring(source))
    return [block for block in blocks if block.text]


def markdown(source: str) -> list[str]:
    """The paragraphs of a Markdown file, listings and tables left out, links reduced to their text."""
    source = re.sub(r"\A---\n.*?\n---\n", "", source.replace("\r", ""), flags=re.S)
    source = re.sub(r"<!--.*?-->", "", source, flags=re.S)
    source = re.sub(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", "\n", source, flags=re.S | re.M)
    source = re.sub(r"^\[[^\]]+\]:.*$", "", source, flags=re.M)  # link definitions
    source = re.sub(r"!\[[^\]]*\]\([^)]*\)|!\[[^\]]*\]\[[^\]]*\]", "", source)
    for _ in range(2):  # a link may hold brackets
        source = re.sub(r"\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1", source)
        source = re.sub(r"\[([^\[\]]+)\]\[[^\[\]]*\]", r"\1", source)
    source = re.sub(r"<(https?://[^>]+)>", r"\1", source)
    source = re.sub(r"</?[A-Za-z][^>\n]*>", "", source)
    source = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#[\w-]+\}", "", source)
    blocks: list[list[str]] = [[]]
    listing = False
    for line in source.split("\n"):
        bare = line.strip()
        indented = line.startswith(("    ", "\t")) and not re.match(r"\s*([-*+]|\d+\.)\s", line)
        listing = indented and (listing or not blocks[-1])  # an indented line after a blank one begins a listing
        if listing:
            continue
        if not bare or re.fullmatch(r"[-=*_|: ]{3,}", bare) or bare.startswith("|"):
            blocks.append([])
            continue
        if re.match(r"(#{1,6}\s*|[-*+]\s+|\d+\.\s+|>)", bare):
            blocks.append([])
        bare = re.sub(r"^(#{1,6}\s*|[-*+]\s+|>\s?)+", "", bare)
        bare = re.sub(r"\s#+$", "", bare)
        blocks[-1].append(bare)
    text = (unwrap("\n".join(block)) for block in blocks)
    plain = (re.sub(r"(\*\*|__|`+)(.+?)\1", r"\2", t) for t in text)
    plain = (html_module.unescape(re.sub(r"(?<![\w*])\*(?![\s*])([^*]+)\*", r"\1", t)) for t in plain)
    return [re.sub(r"\\([\\`*_{}\[\]()#+.!<>-])", r"\1", t) for t in plain if t]


def aozora(source: str) -> str:
    """Text of Aozora Bunko without ruby, notes and the frame that the library put around it."""
    body = re.split(r"^-{20,}$", source.replace("\r", ""), flags=re.M)[-1]
    body = re.split(r"^底本：", body, flags=re.M)[0]
    body = re.sub(r"《[^》]*》", "", body)
    body = re.sub(r"［＃[^］]*見出し］", "", re.sub(r"［＃\d*[０-９]*字下げ］", "", body))
    return re.sub(r"※?［＃[^］]*］|｜", "", body)


def mo(data: bytes) -> Iterator[tuple[str, str]]:
    """(message, translation) of a compiled gettext catalogue; of plural forms the first."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    _, count, source, target = struct.unpack(f"{order}4I", data[4:20])
    for index in range(count):
        texts = []
        for table in (source, target):
            length, at = struct.unpack_from(f"{order}2I", data, table + 8 * index)
            texts.append(data[at : at + length].split(b"\0")[0].decode("utf-8", "replace"))
        yield texts[0].rpartition("\x04")[2], texts[1]
