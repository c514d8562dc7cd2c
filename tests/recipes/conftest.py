"""A small corpus of real text, Japanese and English."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 package descriptions, half of them Japanese, as JSON lines."""
    root = Path(__file__).parent.parent.parent / "examples" / "data"
    path = tmp_path_factory.mktemp("corpus") / "descriptions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for name, column in (("debian-ja.csv", "本文"), ("debian-en.csv", "text")):
            with (root / name).open(encoding="utf-8-sig", newline="") as table:
                for row in list(csv.DictReader(table))[:300]:
                    file.write(json.dumps({"text": row[column]}, ensure_ascii=False) + "\n")
    return path
