"""Entries whose weights lie in kiban's repository: found there, told how to get elsewhere, never fetched with pip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kiban import zoo
from kiban.adopt.candidates import fetch
from kiban.adopt.strategies.base import Candidate
from kiban.catalogue import client
from kiban.catalogue import pull as module
from kiban.catalogue.entries import Entry, entries
from kiban.catalogue.pull import is_pulled, place, pull
from kiban.cli.models import models_app
from kiban.errors import ModelNotFoundError
from kiban.files import sha256_of

NAME = "kiban-encoder-ja-en"
IN_REPOSITORY = [entry for entry in entries().values() if entry.folder]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation without the repository around it."""
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any, **options: Any) -> None:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(client, "run", asked)


def test_an_entry_has_wheels_or_a_folder_and_ours_is_one_with_a_folder() -> None:
    assert NAME in [entry.name for entry in IN_REPOSITORY]
    assert all(bool(entry.wheels or entry.tarball) != bool(entry.folder) for entry in entries().values())
    assert all(entry.download_bytes == 0 for entry in IN_REPOSITORY)


@pytest.mark.parametrize("entry", IN_REPOSITORY, ids=lambda entry: entry.name)
def test_the_weights_lie_in_the_checkout_and_are_those_that_the_catalogue_pins(entry: Entry) -> None:
    assert is_pulled(entry) and pull(entry) == place(entry) == Path(__file__).parents[2] / entry.folder
    weights = pull(entry.name) / entry.main_file
    assert sha256_of(weights) == entry.main_sha256
    assert weights.stat().st_size <= 40_000_000
    assert zoo.load(entry.name).num_parameters == entry.parameters


def test_without_the_repository_the_user_is_told_what_to_do_in_one_line(elsewhere: Path) -> None:
    entry = entries()[NAME]
    assert not is_pulled(entry)
    with pytest.raises(ModelNotFoundError, match="clone") as caught:
        zoo.load(NAME)
    assert "\n" not in str(caught.value) and entry.folder in str(caught.value)
    assert list(elsewhere.iterdir()) == []
    found, skipped = fetch([Candidate(strategy="linear_head", model=NAME)])
    assert found == [] and "clone" in skipped[0].reason


def test_a_folder_without_the_weights_is_not_there(elsewhere: Path) -> None:
    entry = replace(entries()[NAME], folder="weights/x")
    (elsewhere / entry.folder).mkdir(parents=True)
    assert not is_pulled(entry)
    (elsewhere / entry.folder / entry.main_file).write_bytes(b"weights")
    assert is_pulled(entry) and pull(entry) == elsewhere / "weights" / "x"


def test_the_list_of_models_shows_it_as_here() -> None:
    table = CliRunner().invoke(models_app, ["--language", "ja", "--writes", "embedding", "--lang", "en"])
    line = next(line for line in table.output.splitlines() if NAME in line)
    assert table.exit_code == 0 and "✓" in line
    facts = json.loads(CliRunner().invoke(models_app, ["show", NAME, "--json"]).output)
    assert facts["wheels"] == [] and facts["folder"] == f"weights/{NAME}" and facts["download_bytes"] == 0
