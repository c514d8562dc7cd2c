"""`kiban run` with a model that draws."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from kiban import zoo
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.picture_file import read_facts

Kiban = Callable[..., object]


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-tiny, random, with a tokenizer of a few words; token ids stay below its vocabulary."""
    words = train_clip_bpe(["a red apple", "赤いりんご"] * 3, vocab_size=540, max_len=32)
    made = zoo.create("sd-tiny", generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("sd") / "model"
    zoo.save(dataclasses.replace(made, tokenizer=words), folder)
    return folder


def test_a_picture_is_drawn_and_says_how(kiban: Callable, tiny_sd: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    out = tmp_path / "りんご.png"
    command = ("run", str(tiny_sd), "赤いりんご", "-o", str(out), "--steps", "2", "--seed", "7", "--guidance", "3")
    said = kiban(*command)
    assert said.code == 0 and f"{out} (seed 7)" in said.out
    facts = read_facts(out)
    assert (facts["prompt"], facts["seed"], facts["drawing"]["guidance_scale"]) == ("赤いりんご", 7, 3.0)
    assert facts["drawing"]["sampling"]["num_steps"] == 2 and Image.open(out).size == (64, 64)
    first = Image.open(out).tobytes()
    assert "シード 7" in kiban(*command, "--lang", "ja").out and Image.open(out).tobytes() == first


def test_several_pictures_come_with_a_sheet(kiban: Callable, tiny_sd: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    out = tmp_path / "a.png"
    said = kiban(
        "run", str(tiny_sd), "a", "-o", str(out), "--num", "3", "--steps", "1", "--width", "32", "--height", "24", "--json"
    )  # fmt: skip
    rows = json.loads(said.out)
    assert [Path(row["file"]).name for row in rows] == ["a-1.png", "a-2.png", "a-3.png"]
    assert [row["seed"] for row in rows] == [0, 1, 2] == [read_facts(Path(row["file"]))["seed"] for row in rows]
    pictures = [Image.open(row["file"]) for row in rows]
    assert {picture.size for picture in pictures} == {(32, 24)} and pictures[0].tobytes() != pictures[1].tobytes()
    assert Image.open(out).size == (2 * 36 + 4, 2 * 28 + 4) and read_facts(out)["seed"] == [0, 1, 2]


def test_a_part_of_a_picture_is_painted(kiban: Callable, tiny_sd: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    Image.new("RGB", (64, 64), (10, 200, 30)).save(tmp_path / "x.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "m.png")
    files = ("--init", str(tmp_path / "x.png"), "--mask", str(tmp_path / "m.png"))
    assert kiban("run", str(tiny_sd), "a", "-o", str(tmp_path / "o.png"), *files, "--steps", "2").code == 0
    drawn = Image.open(tmp_path / "o.png")
    assert drawn.crop((0, 0, 32, 64)).getcolors() == [(32 * 64, (10, 200, 30))]
    assert len(drawn.crop((32, 0, 64, 64)).getcolors(10**6) or []) > 10
    assert {"picture_sha256", "mask_sha256"} < read_facts(tmp_path / "o.png").keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "-o out.png"),
        (["-o", "out.jpg"], "PNG"),
        (["-o", "no/such/out.png"], "is no folder"),
        (["-o", "out.png", "--steps", "0"], "num_steps"),
        (["-o", "out.png", "--guidance", "-1"], "guidance_scale"),
        (["-o", "out.png", "--sampler", "dim"], "ddim"),
        (["-o", "out.png", "--width", "33"], "multiple of 8"),
        (["-o", "out.png", "--edit", "no.png"], "does not follow instructions"),
        (["-o", "out.png", "--init", "no.png"], "no such file"),
        (["-o", "out.png", "--task", "chat"], "it can: draw"),
        (["-o", "out.png", "--preset", "sd1"], "says itself what it is"),
    ],
)
def test_mistakes_are_told_in_one_line(
    kiban: Callable,  # type: ignore[type-arg]
    tiny_sd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = kiban("run", str(tiny_sd), "a", *arguments)
    assert said.code == 1 and told in said.err and said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_draw_says_so(kiban: Callable, tiny_bert_folder: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    said = kiban("run", str(tiny_bert_folder), "text", "-o", str(tmp_path / "out.png"))
    assert said.code == 1 and "--output" in said.err and "it can: embed" in said.err
    assert "does not draw" in kiban("run", str(tiny_bert_folder), "text", "--num", "2").err
