"""Configuration: unknown keys are answered with the closest, Japanese survives YAML, overrides reach inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kiban import errors
from kiban.config import did_you_mean, from_dict, home, override, read_yaml, to_dict, write_yaml
from kiban.errors import ConfigError, KibanError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An example."""

    text_column: str
    seed: int = 0


def test_a_dataclass_round_trips_through_yaml_readably(tmp_path: Path) -> None:
    given, path = Settings(text_column="本文"), tmp_path / "設定.yaml"
    write_yaml(path, to_dict(given))
    assert "本文" in path.read_text(encoding="utf-8")
    assert from_dict(Settings, read_yaml(path)) == given


def test_an_unknown_key_is_answered_with_the_closest_and_missing_ones_are_listed() -> None:
    with pytest.raises(ConfigError, match="did you mean 'text_column'"):
        from_dict(Settings, {"text_colum": "x"})
    with pytest.raises(ConfigError, match="text_column"):
        from_dict(Settings, {"seed": 1})


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"a: [1,\n", b"\xff\xfe", b"!!python/object/apply:os.getcwd []\n"])
def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(path)


def test_overrides_reach_inside_and_leave_the_original_alone() -> None:
    values = {"train": {"lr": 0.1, "name": "x"}, "seed": 0}
    changed = override(values, ["train.lr=1e-3", "seed=7", "train.name=名前"])
    assert changed == {"train": {"lr": 1e-3, "name": "名前"}, "seed": 7}
    assert values == {"train": {"lr": 0.1, "name": "x"}, "seed": 0}
    for wrong, told in (
        ("sead=1", "seed"),
        ("trian.lr=1", "train"),
        ("seed", "name=value"),
        ("seed=[1,", "YAML"),
        ("seed.a=1", "seed"),
    ):
        with pytest.raises(ConfigError, match=told):
            override(values, [wrong])


def test_numbers_in_overrides_are_numbers() -> None:
    assert override({"lr": 0.1}, ["lr=1e-3"]) == {"lr": 0.001}
    assert override({"n": 1}, ["n=null"]) == {"n": None}


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "k"))
    assert home() == tmp_path / "k"
    monkeypatch.delenv("KIBAN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert home() == tmp_path / "kiban"


def test_did_you_mean_lists_all_if_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"


def test_every_error_is_one_line_and_names_its_place() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KibanError)]
    assert len(kinds) >= 12
    for kind in kinds:
        error = kind("表.csv", line=3, offset=17, field="本文", why="is\nempty", hint="drop the row")
        assert str(error) == "表.csv, line 3, byte 17, '本文': is empty (drop the row)"
        assert (error.line, error.offset, error.field) == (3, 17, "本文")
