"""Readers of parallel text, Japanese and English, for get_text.py."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from build_debian import paragraphs as records
from texts.archives import Archives
from texts.markup import KANA_KANJI, Block, html, mallard, mo, unwrap, wide_share


class Pair(NamedTuple):
    """A text and its translation. licence: "" stands for the licence of the source."""

    ja: str
    en: str
    licence: str = ""


Pairs = Iterator[Pair]

# Debian packages whose catalogues hold many whole sentences: the licence that their copyright file states for the program
# (a catalogue carries the licence of its program), and megabytes.
CATALOGUES = {
    "ardour-data": ("GPL-2+", 3.8), "aptitude-common": ("GPL-2+", 1.8), "audacity-data": ("GPL-2+", 2.4),
    "binutils-common": ("GPL-3+", 2.5), "blender-data": ("GPL-2+", 31.4), "cinnamon-l10n": ("GPL-2+", 3.3),
    "claws-mail-i18n": ("GPL-3+", 1.5), "coreutils": ("GPL-3+", 2.9), "darktable": ("GPL-3+", 6.3),
    "denemo-data": ("GPL-3+", 9.7), "digikam-data": ("GPL-2+", 11.0), "evolution-common": ("LGPL-2 or LGPL-3", 8.5),
    "freeciv-data": ("GPL-2+", 20.1), "gcc-12-locales": ("GPL-3+", 1.8), "gimp-data": ("GPL-3+", 14.2),
    "gnucash-common": ("GPL-2+", 5.2), "gnupg-l10n": ("GPL-3+", 1.1), "gramps": ("GPL-2+", 6.7),
    "grass-core": ("GPL-2+", 6.2), "gwyddion-common": ("GPL-2+", 0.8), "inkscape": ("GPL", 20.6),
    "kicad": ("GPL-3+", 44.6), "krita-l10n": ("GPL and LGPL", 3.0), "libc-l10n": ("LGPL-2.1+", 0.7),
    "libgtk-3-common": ("LGPL-2+", 3.9), "libreoffice-l10n-ja": ("MPL-2.0", 0.8), "lilypond": ("GPL-3+", 2.9),
    "mercurial-common": ("GPL-2+", 2.8), "minetest-data": ("LGPL-2.1+", 3.6), "mutt": ("GPL-2+", 1.9),
    "phpmyadmin": ("GPL-2", 4.8), "picard": ("GPL-2+", 1.4), "postgresql-15": ("PostgreSQL", 17.1),
    "pspp": ("GPL-3+", 5.9), "r-base-core": ("GPL-2+", 26.0), "subversion": ("Apache-2.0", 1.0),
    "util-linux-locales": ("GPL-2+", 1.2), "vlc-l10n": ("GPL-2+", 6.4), "weechat-core": ("GPL-3+", 1.0),
    "wesnoth-1.16-data": ("GPL-2+", 146),
}  # fmt: skip


def plausible(pair: Pair) -> bool:
    """Whether the two can be translations of each other: languages, lengths, and nothing left in English."""
    ja, en = pair.ja, pair.en
    if not KANA_KANJI.search(ja) or KANA_KANJI.search(en) or not re.search(r"[A-Za-z]{2}", en):
        return False
    if max(len(ja), len(en)) > 1_200 or wide_share(ja) < 0.25 or re.search(r"(?:[A-Za-z,'()-]+ ){9}", ja):
        return False
    return len(en) < 20 or 0.7 <= len(en) / len(ja) <= 6


FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
LATIN = re.compile(r"[A-Za-z]{3,}|\d+")  # of a Japanese text: names, commands, numbers
CODE = re.compile(r"[A-Z][A-Z0-9_]{2,}|\w+(?=\(\))|\d+")  # of an English text: what a translator leaves alone


def same_names(text: str, other: str, names: re.Pattern[str] = LATIN) -> bool:
    """Whether most names and numbers of a text are in the other one too; aligned by mistake if not."""
    words = names.findall(text.translate(FULL_WIDTH))
    lower = other.translate(FULL_WIDTH).lower()
    return sum(word.lower() in lower for word in words) >= 0.6 * len(words)


def catalogue(package: str) -> Callable[[Archives], Pairs]:
    """A reader of the gettext catalogues of a package."""

    def read(archives: Archives) -> Pairs:
        for _, data in archives.members(package, r".*/ja/LC_MESSAGES/[^/]*\.mo"):
            for en, ja in mo(data):
                pair = message(en, ja)
                if pair is not None and plausible(pair):
                    yield pair

    return read


TAG = re.compile(
    r"</?(a|abbr|b|big|br|code|div|em|font|h\d|hr|i|img|li|nobr|ol|p|pre|small|span|strong|sub|sup|tt|u|ul)"
    r"( [^<>]*)?/?>",
    re.I,
)


def message(en: str, ja: str) -> Pair | None:
    """A message without access keys, markup and context; None for one that is mostly markup or placeholders."""
    if "translator-credits" in en or re.search(r"[\x00-\x08]|\\[a-z]{2}|\{\{|\$\{?\w+|&[a-z]+;|@\w+@", en + ja):
        return None
    if re.search(r"[(（][_&~][A-Za-z0-9][)）]", ja):
        ja = re.sub(r"\s*[(（][_&~][A-Za-z0-9][)）]", "", ja)
        en = re.sub(r"[_&~](?=\w)", "", en, count=1)
    en, ja = (unwrap(re.sub(r"^[\s*・-]*[*・-] ?(?=\w)|%[<>]", "", TAG.sub("", text))) for text in (en, ja))
    placeholders = re.findall(r"%[-+#0 ]*\d*\$?[.\d]*[hlzjL]*[a-zA-Z]|%\d|%\(\w+\)\w|\{\w*\}|<\w+>", en)
    if len(placeholders) > 3 or len("".join(placeholders)) > 0.3 * len(en) or en.count("|") > 1:
        return None
    return Pair(ja, en)


def descriptions(archives: Archives) -> Pairs:
    """Debian's package descriptions, paragraph by paragraph, where both sides have the same number of them."""
    texts: dict[str, dict[str, str]] = {}
    for language in ("ja", "en"):
        field = f"Description-{language}"
        texts[language] = {
            record["Description-md5"]: record[field]
            for file in archives.indices()[f"Translation-{language}"]
            for record in records(file)
            if field in record
        }
    for md5, japanese in texts["ja"].items():
        if md5 not in texts["en"] or "<trans>" in japanese:
            continue
        ja, en = described(japanese), described(texts["en"][md5])
        if len(ja) == len(en):
            yield from filter(plausible, map(Pair, ja, en))


def described(description: str) -> list[str]:
    """Synopsis, paragraphs and list items of a description, each unwrapped."""
    synopsis, _, rest = description.partition("\n")
    parts: list[str] = []
    for block in re.split(r"\n\s*\.\s*(?=\n|$)", "\n" + rest):
        # A line with two spaces is verbatim: a list item begins with a mark, other such lines continue it.
        items = re.split(r"\n\s*(?=[-*o+•] )", block)
        parts += [re.sub(r"^\s*[-*o+•] +", "", unwrap(re.sub(r"(?m)^ +", "", item))) for item in items if item.strip()]
    return [synopsis.strip(), *parts]


def by_id(ja: list[Block], en: list[Block]) -> Pairs:
    """Blocks of the same id."""
    other = {block.id: block.text for block in en if block.id}
    for block in ja:
        if block.id in other:
            yield Pair(block.text, other[block.id])


def by_order(ja: list[Block], en: list[Block]) -> Pairs:
    """Blocks in order, heading by heading, where a section has the same kinds of block in both languages."""
    sections: list[list[list[Block]]] = []
    for blocks in (ja, en):
        parts: list[list[Block]] = [[]]
        for block in blocks:
            if block.kind in ("h1", "h2", "h3", "h4", "h5", "title"):
                parts.append([])
            parts[-1].append(block)
        sections.append(parts)
    if [part[0].kind for part in sections[0] if part] != [part[0].kind for part in sections[1] if part]:
        return
    for left, right in zip(*sections):
        if [block.kind for block in left] == [block.kind for block in right]:
            yield from (Pair(a.text, b.text) for a, b in zip(left, right) if same_names(a.text, b.text))


def two_sides(
    ja: tuple[str, str],
    en: tuple[str, str],
    align: Callable[[list[Block], list[Block]], Pairs] = by_order,
    start: str = "",
) -> Callable[[Archives], Pairs]:
    """A reader of the pages of two packages that translate each other.

    ja, en: package, and a pattern with one group: what a page and its translation have in common in their names.
    """

    def read(archives: Archives) -> Pairs:
        sides: list[dict[str, str]] = []
        for package, pattern in (ja, en):
            found = archives.members(package, pattern)
            sides.append({re.sub(pattern, r"\1", name): data.decode("utf-8", "replace") for name, data in found})
        for name in sorted(sides[0].keys() & sides[1].keys()):
            blocks = [mallard(side[name]) if name.endswith(".page") else html(side[name], start) for side in sides]
            yield from filter(plausible, align(*blocks))

    return read


def gnome(archives: Archives) -> Pairs:
    """GNOME help, whose translations keep the structure of the English pages."""
    yield from two_sides(
        ("gnome-user-docs", r"usr/share/help/ja/(.*\.page)"), ("gnome-user-docs", r"usr/share/help/C/(.*\.page)")
    )(archives)


# Words of the sentences that do not belong into a model for everyone; the English side decides, as the Japanese is
# machine-translated from it.
ADULT = re.compile(
    r"\b(\w*sex\w*|\w*porn\w*|nude|naked|nipple\w*|breasts?|boobs?|tits?|cocks?|dicks?|penis\w*|vagina\w*|pussy|cunts?"
    r"|cum(ming)?|orgasm\w*|erotic\w*|\w*fuck\w*|rape\w*|rapist\w*|masturbat\w*|slut\w*|\w*whores?|horny|anal|bdsm"
    r"|fetish\w*|aroused|arousal|clit\w*|ejaculat\w*|erection\w*|testicle\w*|bitch\w*|nigg\w*|fag\w*|moan(s|ed|ing)?"
    r"|panties|thrust\w*|lesbian\w*|incest\w*|condom\w*|prostitut\w*|escort\w*|milf|wank\w*|buttocks|groin|\w*shit\w*"
    r"|ass(hole)?s?|\w*tit(ty|ties)|blow ?jobs?|whore\w*|hookers?|virgin(s|ity)?|genital\w*|coitus|hoes?|lecher\w*|STDs?"
    r"|fondl\w*|get(ting)? (hard|laid)|got laid|lust\w*|stripp\w+|lingerie|hentai|kink\w*)\b",
    re.I,
)


WEB = re.compile(r"</|\[\[|\||\*\*|https?:|www\.|\]\(|==")  # leftovers of web and wiki pages


def nlp_corpus(archives: Archives) -> Pairs:
    """Sentences of nlp-corpus with the machine translation of ja-corpus, joined on the md5 of the English one."""
    english = {
        hashlib.md5(text.encode()).hexdigest(): text
        for _, data in archives.members("nlp-corpus", r"package/builds/doc-\d+\.json")
        for text in json.loads(data)
    }
    for _, data in archives.members("ja-corpus", r"package/builds/doc-\d+\.json"):
        for ja, md5 in json.loads(data):
            en = english.get(md5, "")
            pair = Pair(unwrap(ja), unwrap(en))
            if en and not ADULT.search(en) and not WEB.search(ja + en) and plausible(pair):
                yield pair


def law(archives: Archives) -> Pairs:
    """Terms and example phrases of the dictionary of the Japanese Law Translation project."""
    for _, data in archives.members("japanese-law-translation", r"package/dist/j2e\.json"):
        for term, entry in json.loads(data).items():
            for translation in entry["translations"]:
                texts = [(term, translation["phrase"])]
                texts += [(example["ja"], example["en"]) for example in translation["examples"]]
                # The word "true" became a boolean on the way from YAML to JSON.
                yield from filter(plausible, (Pair(unwrap(ja), unwrap(en)) for ja, en in texts if isinstance(en, str)))
