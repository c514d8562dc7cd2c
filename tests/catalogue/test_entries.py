"""The catalogue is consistent in itself and with the families."""

from __future__ import annotations

import re

import pytest

from kiban import zoo
from kiban.catalogue.entries import entries, find
from kiban.errors import ModelNotFoundError

PRESETS = {
    "minilm-l6": "minilm-l6",
    "smollm2-135m-instruct": "smollm2-135m",
    "qwen2.5-coder-1.5b-instruct": "qwen2.5-coder-1.5b",
    "resnet-50-imagenet": "resnet-50",
}
CLASSES = {"resnet-50-imagenet": 1000}  # of those that have a classifier


@pytest.mark.parametrize("name", entries())
def test_an_entry_is_complete_and_its_facts_have_a_source_and_a_date(name: str) -> None:
    entry = entries()[name]
    assert entry.family in zoo.families()
    assert entry.reads and entry.writes and entry.year
    assert ("text" in entry.reads) == bool(entry.languages) == bool(entry.context)
    registry = "npm" if entry.tarball else "PyPI"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry.checked) and (registry in entry.source or entry.folder)
    packages = [*entry.wheels, *([entry.tarball] if entry.tarball else [])]
    hashes = [entry.main_sha256, *(package.sha256 for package in packages)]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes) and len(set(hashes)) == len(hashes)
    assert [bool(entry.folder), bool(entry.wheels), bool(entry.tarball)].count(True) == 1
    assert entry.folder or entry.download_bytes == sum(package.bytes for package in packages) > 10**6
    assert entry.licence != "unknown" and entry.commercial_use is not None
    traits = zoo.families()[entry.family].traits
    assert set(entry.reads) == traits.reads and set(entry.writes) == traits.writes


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_parameters_are_those_of_the_architecture(name: str, preset: str) -> None:
    labels = tuple(map(str, range(CLASSES.get(name, 0))))
    head = "image_classification" if labels else None
    made = zoo.create(preset, head=head, labels=labels, device="meta")
    assert entries()[name].parameters == made.num_parameters


def test_every_entry_has_its_parameters_checked() -> None:
    # Of those in the repository test_folder_entries.py counts the weights.
    assert set(PRESETS) == {name for name, entry in entries().items() if not entry.folder}


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(ModelNotFoundError, match="minilm-l6"):
        find("minilm-16")
