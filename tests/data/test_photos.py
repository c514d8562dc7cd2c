"""Pictures by folder or by table: which are found, which are told to be broken, and when two are the same."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiban.data.photos import in_folder, in_table, path_column, read_photos
from kiban.data.tables import Table, from_frame, read_table
from kiban.errors import DatasetError


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, seed: int = 0, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **how)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, one with a folder inside, and what is no picture."""
    root = tmp_path / "写真"
    for seed, name in enumerate(("犬/b.png", "犬/子犬/a.JPG", "猫/c.webp", "猫/d.bmp", "猫/e.gif", ".hidden/f.png")):
        put(root / name, seed)
    put(root / "猫" / ".g.png")
    (root / "猫" / "Thumbs.db").write_bytes(b"x")
    (root / "読んで.txt").write_text("x", "utf-8")
    return root


def test_the_topmost_folder_is_the_class(folder: Path) -> None:
    places = in_folder(folder)
    assert [(p.name, p.label, p.line) for p in places] == [
        ("犬/b.png", "犬", 1), ("犬/子犬/a.JPG", "犬", 2), ("猫/c.webp", "猫", 3), ("猫/d.bmp", "猫", 4),
        ("猫/e.gif", "猫", 5),
    ]  # fmt: skip
    found = read_photos(places, folder)
    assert [(p.width, p.height) for p in found.photos] == [(40, 30)] * 5 and not found.bad_rows


def test_a_linked_class_is_followed_and_a_loop_is_not(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "h.png")
    (folder / "鳥").symlink_to(tmp_path / "elsewhere")
    (folder / "犬" / "loop").symlink_to(folder)
    assert [p.name for p in in_folder(folder) if p.label == "鳥"] == ["鳥/h.png"]
    assert len(in_folder(folder)) == 6


def test_pictures_without_classes_are_told(tmp_path: Path, folder: Path) -> None:
    put(tmp_path / "flat" / "a.png")
    with pytest.raises(DatasetError, match=r"no folders that are classes.*a folder of each class"):
        in_folder(tmp_path / "flat")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no pictures"):
        in_folder(tmp_path / "empty")
    put(folder / "loose.png")
    with pytest.raises(DatasetError, match=r"'loose.png'.*not in one.*--on-bad-row skip"):
        read_photos(in_folder(folder), folder)


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels by its header, in a few bytes."""
    data = io.BytesIO()
    Image.new("1", (1, 1)).save(data, "PNG")
    raw = bytearray(data.getvalue())
    raw[16:24] = struct.pack(">II", 20_000, 20_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cut.png", "cut", "is a broken picture"),
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"not a picture at all", "is no PNG, JPEG"),
        ("huge.png", "bomb", "has more than"),
        ("scan.tif", b"II*\0", "is no PNG, JPEG"),
        ("drawing.svg", b"<svg/>", "is no PNG, JPEG"),
    ],
)
def test_a_broken_picture_stops_or_is_set_aside(folder: Path, name: str, content: Any, told: str) -> None:
    whole = (folder / "犬" / "b.png").read_bytes()
    data = (
        {"cut": whole[: len(whole) // 2], "bomb": bomb()}.get(content, content) if isinstance(content, str) else content
    )
    (folder / "猫" / name).write_bytes(data)
    with pytest.raises(DatasetError, match=f"猫/{name}'.*{told}.*--on-bad-row skip"):
        read_photos(in_folder(folder), folder)
    found = read_photos(in_folder(folder), folder, on_bad_row="skip")
    assert len(found.photos) == 5
    assert [(bad.raw, told in bad.why) for bad in found.bad_rows] == [(f"猫/{name}", True)]


def table(folder: Path, rows: list[dict[str, Any]]) -> tuple[Table, Path]:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return read_table(path), path


def test_paths_of_a_table_start_from_its_folder(folder: Path, tmp_path: Path) -> None:
    whole = put(tmp_path / "x.png", 9)
    rows = [{"file": "犬/b.png", "what": "dog"}, {"file": str(whole), "what": "?"}, {"file": "猫/c.webp", "what": None},
            {"file": " 猫/d.bmp ", "what": 3}, {"file": "", "what": "cat"}]  # fmt: skip
    data, path = table(folder, rows)
    places = in_table(data, path, "file", "what")
    assert [(p.path, p.label, p.line) for p in places] == [
        (folder / "犬/b.png", "dog", 1), (whole, "?", 2), (folder / "猫/d.bmp", "3", 4),
    ]  # fmt: skip
    assert len(read_photos(places, path).photos) == 3


def test_a_wrong_path_names_its_line(folder: Path) -> None:
    data, path = table(folder, [{"file": "犬/b.png", "what": "a"}, {"file": "犬/nowhere.png", "what": "b"}])
    with pytest.raises(DatasetError, match=r"list.jsonl, line 2, '犬/nowhere.png': no such file"):
        read_photos(in_table(data, path, "file", "what"), path)
    with pytest.raises(DatasetError, match="holds no picture that can be used"):
        read_photos(in_table(data, path, "file", "what")[1:], path, on_bad_row="skip")


def test_only_a_column_of_names_of_pictures_is_one() -> None:
    rows = [{"a": f"{i}.png", "b": "a text about x.png and more", "c": f"p/{i}.JPEG", "d": i} for i in range(20)]
    data = from_frame(rows)
    assert path_column(data) is None, "two columns could be meant"
    assert path_column(data, "a") == "a" and path_column(data, "c") == "c"
    assert path_column(data, "d") is None
    data = from_frame([{"a": row["a"], "d": row["d"]} for row in rows])
    assert path_column(data) == "a" and path_column(data, "d") is None
    few = from_frame([{"a": "x.png" if i < 5 else "text", "d": i} for i in range(20)])
    assert path_column(few) is None


def waves_differ(a: Any, b: Any) -> int:
    return (a.waves ^ b.waves).bit_count()


def test_copies_share_pixels_and_near_copies_share_waves(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "a" / "1.png", 1)
    put(root / "a" / "2.bmp", 1)
    put(root / "a" / "3.jpg", 1, quality=60)
    picture(1).resize((200, 150)).save(root / "a" / "4.png")
    put(root / "a" / "5.png", 2)
    one, two, three, four, five = read_photos(in_folder(root), root).photos
    assert one.pixels == two.pixels and one.pixels not in (three.pixels, four.pixels, five.pixels)
    assert max(waves_differ(one, other) for other in (two, three, four)) <= 6 < 16 < waves_differ(one, five)


def test_the_digest_tells_names_classes_and_contents(folder: Path) -> None:
    def digest() -> str:
        return read_photos(in_folder(folder), folder).sha256

    first = digest()
    assert digest() == first
    put(folder / "猫" / "c.webp", 77)
    changed = digest()
    (folder / "猫" / "d.bmp").rename(folder / "犬" / "d.bmp")
    assert len({first, changed, digest()}) == 3
