"""A small Japanese table of three classes, a tiny random Llama with a tokenizer of bytes, and one whole run."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban import zoo
from kiban.adopt.job import Adoption, adopt
from kiban.adopt.strategies.base import Rows, Task
from kiban.families.llama import Llama, LlamaConfig
from kiban.inputs.tokenizer import Tokenizer

CLASSES = ("ゲーム", "プログラミング言語", "科学・数学")
ROWS = 50  # of each class


@pytest.fixture(scope="session")
def small_rows() -> list[tuple[str, str]]:
    """(text, label), 150 rows in the order of the example table."""
    path = Path(__file__).parents[2] / "examples" / "data" / "debian-ja.csv"
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in CLASSES}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if len(found.get(row["区分"], "x" * ROWS)) < ROWS:
                found[row["区分"]].append((row["本文"], row["区分"]))
    return [found[name][i] for i in range(ROWS) for name in CLASSES]


@pytest.fixture(scope="session")
def small_table(small_rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "区分.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("本文", "区分"), *small_rows])
    return path


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(kind="single_label", labels=CLASSES, language="ja", length_p95=300)


@pytest.fixture(scope="session")
def rows(small_rows: list[tuple[str, str]]) -> tuple[Rows, Rows, Rows]:
    """60 rows to train, 15 to validate, 30 to test."""
    parts = (small_rows[:60], small_rows[60:75], small_rows[75:105])
    cut = [
        Rows(inputs=[text for text, _ in part], targets=[CLASSES.index(label) for _, label in part]) for part in parts
    ]
    return cut[0], cut[1], cut[2]


@pytest.fixture(scope="session")
def tiny_llama_folder(byte_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two narrow layers with grouped heads; weights large enough that answers vary with the text."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=258, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64, max_seq_len=2048, norm_eps=1e-5
    )
    module = zoo.initialise(Llama(config), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    loaded = zoo.Loaded(zoo.families()["llama"], config, module, byte_tokenizer, None, (), "tiny-llama", None)
    zoo.save(loaded, folder / "llama")
    return folder / "llama"


@pytest.fixture(scope="session")
def broken_folder(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with one bit of its weights turned over."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(tiny_bert_folder, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@dataclass(frozen=True)
class Reference:
    """A run without interruption, what it was asked, and the stages it told of."""

    run: Adoption
    settings: dict[str, Any]
    stages: list[str]


@pytest.fixture(scope="session")
def reference(
    small_table: Path, tiny_bert_folder: Path, broken_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    stages: list[str] = []
    settings: dict[str, Any] = {
        "text": "本文", "label": "区分", "steps": 6, "seed": 3, "models": [str(tiny_bert_folder), str(broken_folder)],
    }  # fmt: skip
    run = adopt(
        small_table,
        out=tmp_path_factory.mktemp("reference") / "run",
        progress=lambda stage, done, total: stages.append(stage),
        **settings,
    )
    return Reference(run, settings, stages)
