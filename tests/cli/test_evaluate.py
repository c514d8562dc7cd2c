"""`kiban eval`: the formats of a model side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_all_formats_are_measured_on_the_sample(kiban: Callable, tiny_llama_folder: Path) -> None:  # type: ignore[type-arg]
    said = kiban("eval", str(tiny_llama_folder), "--json")
    found = {one["format"]: one for one in json.loads(said.out)["formats"]}
    assert list(found) == ["fp32", "bf16", "int8", "int4"]
    assert found["bf16"]["num_bytes"] < found["fp32"]["num_bytes"]
    for one in found.values():
        assert one["speed"] > 0 and one["times"] > 0 and set(one["fidelity"]) == {"ja", "en"}
    for language in ("ja", "en"):
        kl = {name: one["fidelity"][language]["kl"][0] for name, one in found.items()}
        assert abs(kl["fp32"]) < kl["bf16"] < kl["int4"]
        assert found["fp32"]["fidelity"][language]["top1"] == [1, 1, 1]
        assert len({one["fidelity"][language]["tokens"] for one in found.values()}) == 1


def test_one_format_on_a_text_in_japanese(kiban: Callable, tiny_llama_folder: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    text = tmp_path / "手紙.txt"
    text.write_text("拝啓 春の候、皆様にはますますご健勝のこととお喜び申し上げます。" * 20, encoding="utf-8")
    said = kiban("eval", str(tiny_llama_folder), "--format", "int4", "--on", str(text), "--lang", "ja")
    head, *rows = said.out.splitlines()
    assert said.code == 0 and "パープレキシティ" in head and "KL" in said.err
    assert len(rows) == 1 and rows[0].split()[0] == "int4" and " ja " in rows[0]


@pytest.mark.parametrize(
    ("name", "why"), [("tiny_bert_folder", "not a model that writes"), ("tiny_llama_folder", "two tok")]
)
def test_what_cannot_be_measured_is_told_in_one_line(
    kiban: Callable,  # type: ignore[type-arg]
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    why: str,
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a", encoding="utf-8")
    said = kiban("eval", str(request.getfixturevalue(name)), "--on", str(text))
    assert said.code == 1 and why in said.err and len(said.err.splitlines()) == 1


def test_an_unknown_format_is_refused(kiban: Callable, tiny_llama_folder: Path) -> None:  # type: ignore[type-arg]
    said = kiban("eval", str(tiny_llama_folder), "--format", "int3")
    assert said.code == 2 and "int4" in said.err
