"""What `kiban.load` gives for a model that sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kiban
from colour_clip import COLOURS, NAMES, picture, write_model, write_pictures
from kiban import zoo
from kiban.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> kiban.Model:
    return kiban.load(write_model(tmp_path_factory.mktemp("clip") / "model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    return write_pictures(tmp_path / "photos")


def test_abilities_follow_from_what_a_model_reads(clip: kiban.Model, tiny_bert_folder: Path, tmp_path: Path) -> None:
    assert clip.sees and clip.abilities == ["embed", "classify", "search"]
    for head, labels, abilities in (
        (None, (), ["embed", "search"]),
        ("image_classification", ("a", "b"), ["embed", "classify", "search"]),
    ):
        made = zoo.create("resnet-tiny", head=head, labels=labels, generator=torch.Generator().manual_seed(0))
        zoo.save(made, tmp_path / str(head))
        model = kiban.load(tmp_path / str(head))
        assert model.sees and model.abilities == abilities
        assert model.embed(images=picture("red", 0)).shape == (256,)
    bert = kiban.load(tiny_bert_folder)
    assert not bert.sees
    with pytest.raises(ConfigError, match=r"sees no pictures.*it can: embed"):
        bert.embed(images=picture("red", 0))


def test_pictures_and_texts_are_embedded_in_one_space(clip: kiban.Model, photos: Path) -> None:
    images = clip.embed(images=[picture(name, 9) for name in COLOURS])
    assert images.shape == (3, 24) and images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    for names in NAMES.values():
        assert (images @ clip.embed(names).T).argmax(1).tolist() == [0, 1, 2]
    one, path = clip.embed(images=picture("red", 9)), photos / "red0.png"
    np.testing.assert_allclose(one, images[0], atol=1e-6)
    for source in (path, str(path), path.read_bytes()):
        assert (clip.embed(images=source) == clip.embed(images=[path])[0]).all()
    for arguments in ({}, {"texts": "a", "images": path}):
        with pytest.raises(ConfigError, match="texts or images"):
            clip.embed(**arguments)


def test_pictures_are_classified_one_or_several(clip: kiban.Model, tmp_path: Path) -> None:
    one = clip.classify_images(picture("blue", 1), ["赤", "green", "青"])
    assert max(one, key=one.get) == "青" and sum(one.values()) == pytest.approx(1)
    (tmp_path / "x.png").write_bytes(b"x")
    pictures = [picture("green", 1), tmp_path / "x.png", picture("blue", 1)]
    with pytest.raises(DatasetError, match=r"x\.png"):
        clip.classify_images(pictures, ["赤", "green"])
    told: list[tuple[int, DatasetError]] = []
    green, broken, blue = clip.classify_images(
        pictures, ["赤", "green", "青"], on_broken=lambda *call: told.append(call)
    )
    assert max(green, key=green.get) == "green" and broken is None and blue == pytest.approx(one, abs=1e-5)
    assert told[0][0] == 1 and len(told) == 1
    with pytest.raises(ConfigError, match="labels"):
        clip.classify_images(pictures)


def test_the_prompts_of_a_name_do_not_depend_on_the_others(clip: kiban.Model) -> None:
    """Each is put into those of its own language."""
    scores = [clip.classify_images(picture("red", 3), names) for names in (["赤", "緑"], ["赤", "緑", "blue"])]
    ratios = [found["赤"] / found["緑"] for found in scores]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3)


def test_a_folder_is_searched_and_an_album_searched_again(clip: kiban.Model, photos: Path, tmp_path: Path) -> None:
    found = clip.search_images(photos, "緑", top=3)
    assert {path.stem[:-1] for path, _ in found} == {"green"}
    assert list((tmp_path / "home" / "albums").iterdir())
    album = clip.album(photos)
    assert clip.search_images(album, "緑", top=3) == found
    assert {path.stem[:-1] for path, _ in clip.search_images(album, picture("red", 5), top=3)} == {"red"}
    assert clip.search_images(str(photos), photos / "red0.png", top=1)[0][0] == photos / "red0.png"
    with pytest.raises(ConfigError, match="top"):
        clip.search_images(album, "緑", top=0)
