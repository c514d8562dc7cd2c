"""A small Japanese table of three classes, a tiny random Llama with a tokenizer of bytes, and one whole run."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiban import zoo
from kiban.adopt.job import Adoption, adopt
from kiban.adopt.strategies.base import Rows, Task
from kiban.families.clip import CLIPConfig, TextConfig, VisionConfig
from kiban.families.llama import Llama, LlamaConfig
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.tokenizer import Tokenizer
from kiban.tour import shapes

CLASSES = ("ゲーム", "プログラミング言語", "科学・数学")
ROWS = 50  # of each class
SHAPE_CLASSES = ("circle", "cross", "square")


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


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of one narrow layer a tower that reads 32 x 32 pixels, with a tokenizer."""
    vision = VisionConfig(num_layers=1, dim=32, num_heads=2, ffn_dim=64, embed_dim=24, image_size=32, patch_size=8)
    tokenizer = train_clip_bpe(["a photo of a circle and a square", "星の写真"], vocab_size=530)
    text = TextConfig(
        num_layers=1, dim=32, num_heads=2, ffn_dim=64, embed_dim=24, vocab_size=tokenizer.vocab_size, max_seq_len=32,
        eos_id=tokenizer.eos_id,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    loaded = zoo.new(zoo.families()["clip"], CLIPConfig(text=text, vision=vision), "tiny-clip", generator=generator)
    folder = tmp_path_factory.mktemp("tiny-clip") / "clip"
    zoo.save(dataclasses.replace(loaded, tokenizer=tokenizer), folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 shapes, 40 of each class."""
    folder = tmp_path_factory.mktemp("photos") / "図形"
    for number in range(40):
        for name in SHAPE_CLASSES:
            path = folder / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape(name, number).save(path)
    return folder


def shape(name: str, number: int) -> Image.Image:
    """A picture of 48 pixels: the shape at any place, in three of four cases in a colour of its class."""
    rng = np.random.default_rng([SHAPE_CLASSES.index(name), number])
    colour = SHAPE_CLASSES.index(name) if rng.random() < 0.75 else int(rng.integers(0, 6))
    combination = shapes.Combination(list(shapes.SHAPES).index(name), colour, int(rng.integers(0, 4)))
    return Image.fromarray(shapes.render(combination, rng, 48))
