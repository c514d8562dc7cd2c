"""Readers of manual pages: documents, and pairs of a page and its translation."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator

from texts.archives import Archives
from texts.documents import Document, Reader, prose
from texts.markup import Block
from texts.pairs import CODE, Pair, Pairs, plausible, same_names
from texts.roff import roff


def manual(package: str, folder: str, language: str) -> Reader:
    """A reader of the manual pages of a package. Of several names for the same page the first is kept."""

    def read(archives: Archives) -> Iterator[Document]:
        for name, data in archives.members(package, rf"{folder}/man\d/.*\.gz"):
            source = gzip.decompress(data).decode("utf-8", "replace")
            text = prose([block.text for block in roff(source)], language)
            yield Document(name.rsplit("/", 1)[1].removesuffix(".gz"), text, page_licence(source))

    return read


# What a manual page says about itself; the first match counts. LICENSE_START tags are those of the Linux man-pages project.
PAGE_LICENCES = (
    (r"LICENSE_START\(PUBLIC_DOMAIN", "public domain"),
    (r"LICENSE_START\(VERBATIM|make and distribute verbatim copies of this manual", "Linux-man-pages-copyleft"),
    (r"LICENSE_START\(BSD_3", "BSD-3-Clause"),
    (r"LICENSE_START\(BSD_4|Redistribution and use in source and binary.*All advertising materials", "BSD-4-Clause"),
    (r"LICENSE_START\(BSD|Redistribution and use in source and binary forms", "BSD"),
    (r"LICENSE_START\(MIT|Permission is hereby granted, free of charge|Permission to use, copy, modify", "MIT"),
    (r"Free Documentation License", "GFDL"),
    (r"(Lesser|Library) General Public", "LGPL"),
    (r"LICENSE_START\(GPLv2\+|General Public License.{,120}version 2.{,60}any later|GPLv2\+", "GPL-2+"),
    (r"General Public License.{,120}version 3.{,60}any later|GPLv3\+", "GPL-3+"),
    (r"GNU General Public|GNU 一般公衆|\bGPL", "GPL"),
    (r"Apache License", "Apache-2.0"),
)


def page_licence(source: str) -> str:
    """The licence that the comments or the text of a manual page name; "various (DFSG-free)" if none."""
    flat = re.sub(r"\s+", " ", re.sub(r"\n['.]?\\\"", " ", source))
    if found := re.search(r"SPDX-License-Identifier: ([\w.+-]+)", flat):
        return found[1]
    return next((name for pattern, name in PAGE_LICENCES if re.search(pattern, flat)), "various (DFSG-free)")


HEADS = {
    "名前": "NAME", "名称": "NAME", "説明": "DESCRIPTION", "返り値": "RETURN VALUE", "戻り値": "RETURN VALUE",
    "エラー": "ERRORS", "注意": "NOTES", "バグ": "BUGS", "バージョン": "VERSIONS", "オプション": "OPTIONS",
    "準拠": "STANDARDS", "ファイル": "FILES", "環境変数": "ENVIRONMENT", "例": "EXAMPLES", "使用例": "EXAMPLES",
    "歴史": "HISTORY", "警告": "CAVEATS",
}  # fmt: skip


def manual_pages(archives: Archives) -> Pairs:
    """Manual pages section by section, where a section has as many paragraphs of each kind on both sides.

    The Japanese pages translate an earlier edition, so a pair also has to share its names and numbers.
    """
    for package in ("manpages", "manpages-dev"):
        english = dict(archives.members(package, r"usr/share/man/man\d/.*\.gz"))
        japanese = "manpages-ja-dev" if package == "manpages-dev" else "manpages-ja"
        for name, data in archives.members(japanese, r"usr/share/man/ja/man\d/.*\.gz"):
            if (other := english.get(name.replace("/ja/", "/"))) is None:
                continue
            source = gzip.decompress(data).decode("utf-8", "replace")
            sides = [sections(roff(text)) for text in (source, gzip.decompress(other).decode("utf-8", "replace"))]
            for head, left in sides[0].items():
                right = sides[1].get(HEADS.get(head, ""), [])
                if [block.kind for block in left] == [block.kind for block in right]:
                    for a, b in zip(left, right):
                        pair = Pair(a.text, b.text, page_licence(source))
                        if same_names(a.text, b.text) and same_names(b.text, a.text, CODE) and plausible(pair):
                            yield pair


def sections(blocks: list[Block]) -> dict[str, list[Block]]:
    """The blocks of a manual page by heading."""
    found: dict[str, list[Block]] = {}
    head = ""
    for block in blocks:
        if block.kind == "h1":
            head = block.text
        else:
            found.setdefault(head, []).append(block)
    return found
