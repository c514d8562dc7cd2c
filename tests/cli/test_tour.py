"""`kiban tour`: the list, a run with its table and bars, taken up again as JSON, and what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from kiban.cli.tour import tour_command
from kiban.errors import ConfigError

Command = Callable[..., tuple[str, str]]


@pytest.fixture
def tour(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with these arguments: what it wrote to stdout and stderr."""
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    app = typer.Typer(rich_markup_mode=None)
    app.command()(tour_command)

    def call(*arguments: str) -> tuple[str, str]:
        app(list(arguments), standalone_mode=False)
        said = capsys.readouterr()
        return said.out, said.err

    return call


def test_the_list_names_what_there_is(tour: Command) -> None:
    assert "gpt" in tour()[0] and "learned from its prompt" in tour()[0]
    assert "例だけから課題を学ぶ" in tour("--lang", "ja")[0]
    (found,) = [e for e in json.loads(tour("--json")[0]) if e["name"] == "gpt"]
    assert "16 hidden tables" in found["shows"]


def test_a_run_shows_table_bars_and_plot_and_is_taken_up_again(tour: Command, tmp_path: Path) -> None:
    folder = tmp_path / "見学"
    out, _ = tour("gpt", "--quick", "--seeds", "1", "--out", str(folder))
    for words in ("exact Bayes", "answers dealt round", "rise from 0 to 16 shots", "at least 45", "--quick", "missed"):
        assert words in out, words
    assert f"Plot: {folder / 'plots' / 'gpt.png'}" in out and (folder / "plots" / "gpt.png").is_file()
    before = (folder / "seeds" / "seed-0.json").stat().st_mtime_ns
    record = json.loads(tour("gpt", "--quick", "--seeds", "1", "--out", str(folder), "--json")[0])
    assert record["exhibit"] == "gpt" and record["quick"] and not record["passed"]
    assert record["measures"]["gpt_16"]["value"] > 57 > 16 > record["measures"]["dealt_16"]["value"]
    assert (folder / "seeds" / "seed-0.json").stat().st_mtime_ns == before
    assert "未達" in tour("gpt", "--quick", "--seeds", "1", "--out", str(folder), "--lang", "ja")[0]
    with pytest.raises(ConfigError, match="other settings"):
        tour("gpt", "--out", str(folder))


def test_interrupted_it_says_how_to_go_on(tour: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kiban.train.trainer.Trainer.run", interrupt)
    _, err = tour("gpt", "--quick", "--out", str(tmp_path / "a run"))
    assert f"kiban tour gpt --quick --out '{tmp_path / 'a run'}'" in err


def test_what_is_not_on_the_tour_is_told(tour: Command) -> None:
    with pytest.raises(ConfigError, match="did you mean 'gpt'"):
        tour("gtp")
