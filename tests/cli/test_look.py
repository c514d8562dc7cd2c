"""`kiban run` with a model that sees: pictures told by names, and a folder of them searched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from colour_clip import COLOURS, NAMES, picture, write_model, write_pictures
from kiban import zoo
from kiban.inputs.picture_file import read_facts

Kiban = Callable[..., object]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet that embeds."""
    folder = tmp_path_factory.mktemp("resnet") / "model"
    zoo.save(zoo.create("resnet-tiny", generator=torch.Generator().manual_seed(0)), folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    return write_pictures(tmp_path / "写真")


@pytest.mark.parametrize(("lang", "labels"), [("ja", "赤、緑，青"), ("en", "red, green,blue"), ("en", "red,緑,blue")])
def test_pictures_are_told_by_names_in_both_languages(
    kiban: Callable,  # type: ignore[type-arg]
    clip: Path,
    photos: Path,
    lang: str,
    labels: str,
) -> None:
    command = ("run", str(clip), "classify", str(photos), "--labels", labels, "--lang", lang)
    rows = json.loads(kiban(*command, "--json").out)
    names = [part.strip() for part in labels.replace("、", ",").replace("，", ",").split(",")]
    wanted = dict(zip(COLOURS, names, strict=True))
    assert len(rows) == 9
    for row in rows:
        assert next(iter(row["labels"])) == wanted[Path(row["file"]).stem[:-1]]
        assert sum(row["labels"].values()) == pytest.approx(1) and set(row["labels"]) == set(names)
    said = kiban(*command)
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0].split() == ["絵" if lang == "ja" else "picture", "1", "2", "3"]
    assert len(lines) == 10 and all(names[0] in line for line in lines if "red0" in line)


def test_several_named_pictures_may_be_given(kiban: Callable, clip: Path, photos: Path) -> None:  # type: ignore[type-arg]
    files = [str(photos / "red0.png"), str(photos / "green1.png")]
    rows = json.loads(kiban("run", str(clip), "classify", *files, "--labels", "red,green", "--json").out)
    assert [(row["file"], next(iter(row["labels"]))) for row in rows] == list(zip(files, ["red", "green"], strict=True))
    same = kiban("run", str(clip), *files, "--task", "classify", "--labels", "red,green", "--json")
    assert json.loads(same.out) == rows


@pytest.mark.parametrize(("query", "colour"), [(n, c) for lang in NAMES for n, c in zip(NAMES[lang], COLOURS)])
def test_a_folder_is_searched_by_words(
    kiban: Callable,  # type: ignore[type-arg]
    clip: Path,
    photos: Path,
    query: str,
    colour: str,
) -> None:
    rows = json.loads(kiban("run", str(clip), "search", str(photos), query, "--top", "3", "--json").out)
    assert [Path(row["file"]).stem for row in rows] == sorted(
        (f"{colour}{n}" for n in range(3)), key=[Path(row["file"]).stem for row in rows].index
    )
    scores = [row["similarity"] for row in rows]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 1.001


@pytest.mark.parametrize("model", ["clip", "backbone"])
def test_a_folder_is_searched_by_a_picture(
    kiban: Callable,  # type: ignore[type-arg]
    photos: Path,
    tmp_path: Path,
    model: str,
    request: pytest.FixtureRequest,
) -> None:
    picture("blue", 77).save(tmp_path / "query.jpg")
    command = ("run", str(request.getfixturevalue(model)), "search", str(photos))
    rows = json.loads(kiban(*command, str(tmp_path / "query.jpg"), "--top", "3", "--json").out)
    assert {Path(row["file"]).parent.name for row in rows} == {"海"}
    first = json.loads(kiban(*command, str(photos / "red1.png"), "--top", "1", "--json").out)
    assert first == [{"file": str(photos / "red1.png"), "similarity": pytest.approx(1, abs=1e-5)}]


def test_a_sheet_shows_what_was_found(kiban: Callable, clip: Path, photos: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    sheet = tmp_path / "見つけた.png"
    said = kiban("run", str(clip), "search", str(photos), "緑", "--top", "4", "-o", str(sheet), "--lang", "ja")
    lines = said.out.splitlines()
    assert lines[0].split() == ["類似度", "絵"] and len(lines) == 6 and lines[-1] == f"一覧: {sheet}"
    facts = read_facts(sheet)
    assert facts["search"] == "緑" and len(facts["found"]) == 4
    assert Image.open(sheet).size == (2 * 30 + 4, 2 * 24 + 4)
    with Image.open(sheet) as image:
        r, g, b = image.convert("RGB").getpixel((14, 12))  # type: ignore[misc]
    assert g > r + 60 and g > b + 60


def test_a_second_search_reads_what_the_first_one_kept(
    kiban: Callable,  # type: ignore[type-arg]
    clip: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("run", str(clip), "search", str(photos), "red", "--json")
    first = kiban(*command)
    assert len([*(tmp_path / "home" / "albums").glob("*.safetensors")]) == 1

    def again(*arguments: object) -> None:
        raise AssertionError("a picture went through the model again")

    monkeypatch.setattr("kiban.evaluate.album.embed_pixels", again)
    assert kiban(*command).out == first.out


@pytest.mark.parametrize(("lang", "word"), [("ja", "除外"), ("en", "Left out")])
def test_a_broken_picture_of_a_folder_is_named_and_left_out(
    kiban: Callable,  # type: ignore[type-arg]
    clip: Path,
    photos: Path,
    lang: str,
    word: str,
) -> None:
    (photos / "壊れた.jpg").write_bytes(b"\xff\xd8\xff")
    for words in (("search", str(photos), "red"), ("classify", str(photos), "--labels", "red,blue")):
        said = kiban("run", str(clip), *words, "--lang", lang)
        assert said.code == 0 and said.err.startswith(word) and said.err.count("壊れた.jpg") == 1
        assert "red0.png" in said.out and "壊れた" not in said.out
    alone = kiban("run", str(clip), "classify", str(photos / "壊れた.jpg"), "--labels", "red,blue")
    assert alone.code == 1 and "壊れた.jpg" in alone.err and alone.err.count("\n") == 1


def test_a_model_with_classes_of_its_own_needs_no_labels(kiban: Callable, photos: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    made = zoo.create("resnet-tiny", head="image_classification", labels=("犬", "cat"), generator=torch.Generator())
    zoo.save(made, tmp_path / "model")
    rows = json.loads(kiban("run", str(tmp_path / "model"), "classify", str(photos / "red0.png"), "--json").out)
    assert set(rows[0]["labels"]) == {"犬", "cat"} and sum(rows[0]["labels"].values()) == pytest.approx(1)
    said = kiban("run", str(tmp_path / "model"), "classify", str(photos), "--labels", "red")
    assert said.code == 1 and "2 classes of its own" in said.err and said.err.count("\n") == 1


def test_a_picture_is_embedded(kiban: Callable, clip: Path, backbone: Path, photos: Path) -> None:  # type: ignore[type-arg]
    for model, width in ((clip, 24), (backbone, 256)):
        vector = json.loads(kiban("run", str(model), str(photos / "red0.png"), "--json").out)
        assert len(vector) == width and sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    assert len(json.loads(kiban("run", str(clip), "赤い車", "--json").out)) == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["classify", "{photos}"], "labels: are missing"),
        (["classify", "{photos}", "--labels", " ,"], "names no class"),
        (["classify", "{photos}", "--labels", "red,red"], "each another one"),
        (["classify", "--labels", "red,blue"], "no picture given"),
        (["classify", "{photos}/no.png", "--labels", "red,blue"], "no such file"),
        (["classify", "{photos}/words.txt", "--labels", "red,blue"], "no PNG, JPEG"),
        (["classify", "{photos}/empty", "--labels", "red,blue"], "holds no picture"),
        (["classify", "{photos}", "--labels", "red,blue", "--top", "2"], "--top"),
        (["classify", "{photos}", "--labels", "red,blue", "-o", "{photos}/x.png"], "--output"),
        (["search", "{photos}"], "a folder and what to look for"),
        (["search", "{photos}", ""], "a folder and what to look for"),
        (["search", "{photos}", "a", "red", "car"], "a folder and what to look for"),
        (["search", "{photos}/no", "red"], "no such folder"),
        (["search", "{photos}/red0.png", "red"], "is not a folder"),
        (["search", "{photos}/empty", "red"], "holds no picture"),
        (["search", "{photos}", "no.png"], "no such file"),
        (["search", "{photos}", "red", "--labels", "red"], "--labels"),
        (["search", "{photos}", "red", "-o", "{photos}/x.jpg"], "PNG"),
        (["search", "{photos}", "red", "--steps", "3"], "--steps"),
        (["red", "--labels", "red"], "--labels"),
        (["red", "car"], "put the whole text in quotes"),
        (["red", "--task", "generate"], "it can: embed, classify, search"),
    ],
)
def test_mistakes_are_told_in_one_line(
    kiban: Callable,  # type: ignore[type-arg]
    clip: Path,
    photos: Path,
    words: list[str],
    told: str,
) -> None:
    (photos / "empty").mkdir()
    (photos / "words.txt").write_text("red", encoding="utf-8")
    said = kiban("run", str(clip), *(word.format(photos=photos) for word in words))
    assert said.code == 1 and told in said.err and said.err.count("\n") == 1
    assert not (photos / "x.png").exists()


def test_models_that_cannot_do_it_say_so(
    kiban: Callable,  # type: ignore[type-arg]
    backbone: Path,
    tiny_bert_folder: Path,
    photos: Path,
) -> None:
    for words in (("classify", str(photos)), ("search", str(photos), "red")):
        said = kiban("run", str(tiny_bert_folder), *words)
        assert said.code == 1 and "sees no pictures" in said.err and "--reads image" in said.err
        assert said.err.count("\n") == 1
    assert "reads no text" in kiban("run", str(backbone), "search", str(photos), "red").err
    assert "it can: embed, search" in kiban("run", str(backbone), "classify", str(photos), "--labels", "a,b").err


def test_a_text_may_be_the_name_of_a_verb(kiban: Callable, tiny_bert_folder: Path) -> None:  # type: ignore[type-arg]
    assert len(json.loads(kiban("run", str(tiny_bert_folder), "search", "--json").out)) == 32


def test_help_shows_examples(kiban: Callable) -> None:  # type: ignore[type-arg]
    said = kiban("run", "--help")
    assert "classify photo.jpg" in said.out and '"赤い車"' in said.out and "--labels" in said.out
