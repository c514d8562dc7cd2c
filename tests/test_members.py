"""Names of members, JSON files and locks: what a hostile folder may make us open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiban.errors import FormatError, KibanError, LimitError
from kiban.files import exclusive, inside, parse_json, read_json


@pytest.mark.parametrize("name", ["a", "a/b", "a/./b", "日本語/重み.safetensors", "..a", "a..b", ".hidden"])
def test_a_name_inside_is_the_path_of_the_member(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, source=tmp_path) == tmp_path / name


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path, "link/a", source=tmp_path).read_text() == "x"
    (tmp_path / "other").symlink_to(tmp_path)  # the folder itself may be reached through a link
    assert inside(tmp_path / "other", "real/a", source=tmp_path).read_text() == "x"


JSON: dict[str, tuple[bytes, str]] = {
    "a list": (b"[]", "not a JSON object"),
    "nothing": (b"", "line 1: is not JSON"),
    "the third line": (b'{"a": 1,\n"b": 2,\nc}', "line 3: is not JSON"),
    "bad UTF-8": (b'{"a": "\xe3\x81"}', "byte 7: is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte 0: is not UTF-8"),
    "two objects": (b"{}{}", "Extra data"),
    "twice": (b'{"b": 1, "a": {"c": 1, "c": 2}}', "'c': stands twice"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "digits": (b'{"a": %s}' % (b"1" * 5000), "too many digits"),
}


@pytest.mark.parametrize(("data", "message"), JSON.values(), ids=JSON)
def test_what_is_no_json_object_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_json(data, Path("config.json"))


def test_json_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{" + " " * 100 + "}")
    assert read_json(path, max_bytes=102) == {}
    with pytest.raises(LimitError, match="101"):
        read_json(path, max_bytes=101)


def test_json_is_not_read_from_a_folder_a_pipe_or_an_endless_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("no", ".", "pipe", "zero"):
        with pytest.raises(FormatError):
            read_json(tmp_path / name)


HOLD = """
import sys
from pathlib import Path
from kiban.errors import KibanError
from kiban.files import exclusive
with exclusive(Path(sys.argv[1]), error=KibanError("held")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_dropped_when_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(KibanError, match="busy"), exclusive(lock, error=KibanError("busy")):
            raise AssertionError("two hold the lock")
        child.kill()
        child.wait()
    with exclusive(lock, error=KibanError("busy")):
        pass
    with exclusive(lock, error=KibanError("busy")):
        pass
