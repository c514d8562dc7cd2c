"""Albums: every picture of a folder once through the model, then from what was kept, as long as that is true."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from colour_clip import picture, write_pictures
from kiban import zoo
from kiban.errors import ConfigError, DatasetError
from kiban.evaluate import album as module
from kiban.evaluate.album import Album, open_album, picture_files
from kiban.evaluate.pictures import Seeing, embed_images, fingerprint, seeing
from kiban.families.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from kiban.families.resnet import ResNetConfig, build
from kiban.weights.safetensors import read_safetensors


def small_clip(seed: int = 0, *, quick_gelu: bool = True) -> CLIP:
    shape = {"num_layers": 1, "dim": 16, "num_heads": 2, "ffn_dim": 32, "embed_dim": 12, "quick_gelu": quick_gelu}
    config = CLIPConfig(
        text=TextConfig(vocab_size=50, max_seq_len=8, eos_id=49, **shape),
        vision=VisionConfig(image_size=16, patch_size=8, **shape),
    )
    model = zoo.initialise(CLIP(config), torch.Generator().manual_seed(seed)).eval()
    assert isinstance(model, CLIP)
    return model


@pytest.fixture
def model() -> CLIP:
    return small_clip()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine pictures of an hour ago, so that their times are to be trusted."""
    folder = write_pictures(tmp_path / "写真")
    for path in folder.rglob("*.png"):
        age(path)
    return folder


def age(path: Path, seconds: float = 3600) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each batch put through the model; the model runs."""
    counts: list[int] = []
    real = module.embed_pixels

    def counting(model: Seeing, pixels: Tensor) -> Tensor:
        counts.append(len(pixels))
        return real(model, pixels)

    monkeypatch.setattr(module, "embed_pixels", counting)
    return counts


@pytest.fixture
def opened(photos: Path, model: CLIP, tmp_path: Path) -> Callable[..., Album]:
    def run(**changes: Any) -> Album:
        arguments = {"model": model, "folder": photos, "store": tmp_path / "store", **changes}
        return open_album(arguments.pop("model"), arguments.pop("folder"), **arguments)

    return run


def the_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "store").iterdir()
    return file


def test_an_album_holds_all_pictures_in_order_and_finds_the_nearest(
    opened: Callable[..., Album], photos: Path, model: CLIP
) -> None:
    told: list[tuple[str, int, int | None]] = []
    (photos / "notes.txt").write_text("x", encoding="utf-8")
    (photos / ".hidden").mkdir()
    picture("red", 1).save(photos / ".hidden" / "a.png")
    picture("red", 1).save(photos / "OLD.JPG", "JPEG")
    album = opened(progress=lambda *call: told.append(call))
    assert list(album.paths) == sorted(album.paths) and len(album.paths) == 10 and album.left_out == ()
    expected = embed_images(model, album.paths)
    torch.testing.assert_close(album.vectors, expected, atol=1e-6, rtol=0)
    assert told[-1] == ("pictures", 10, 10)
    found = album.nearest(expected[4].numpy(), most=3)
    assert found[0] == (album.paths[4], pytest.approx(1, abs=1e-6))
    cosines = (expected @ expected[4]).sort(descending=True).values[:3].tolist()
    assert [cosine for _, cosine in found] == pytest.approx(cosines, abs=1e-6)
    assert len(album.nearest(expected[4].numpy(), most=99)) == 10
    with pytest.raises(ConfigError, match="top"):
        album.nearest(expected[4].numpy(), most=0)


def test_a_second_time_no_file_is_read(
    opened: Callable[..., Album], embedded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = opened()
    written = the_file(tmp_path).stat().st_mtime_ns

    def reading(path: Path) -> bytes:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(module, "_read", reading)
    second = opened()
    assert embedded == [9] and torch.equal(first.vectors, second.vectors) and first.paths == second.paths
    assert the_file(tmp_path).stat().st_mtime_ns == written


def test_a_new_file_is_read_again_until_its_time_can_be_trusted(
    opened: Callable[..., Album], embedded: list[int], photos: Path
) -> None:
    """Changed within the same tick of the clock and of the same size, a picture would look the same from outside."""
    path = photos / "new.bmp"
    picture("red", 1).save(path)
    known = path.stat()
    before = opened().vectors
    picture("blue", 2).save(path)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert path.stat().st_size == known.st_size
    after = opened().vectors
    assert embedded == [10, 1] and (before != after).any(1).sum() == 1


def test_pictures_that_were_moved_touched_or_doubled_are_known_by_their_content(
    opened: Callable[..., Album], embedded: list[int], photos: Path
) -> None:
    before = opened()
    (photos / "red0.png").rename(photos / "海" / "moved.png")
    age(photos / "red1.png", 60)
    shutil.copy(photos / "green0.png", photos / "double.png")
    after = opened()
    assert embedded == [9] and len(after.paths) == 10
    place = {path.name: vector for path, vector in zip(after.paths, after.vectors)}
    old = {path.name: vector for path, vector in zip(before.paths, before.vectors)}
    assert torch.equal(place["moved.png"], old["red0.png"]) and torch.equal(place["double.png"], old["green0.png"])


def test_a_changed_picture_is_embedded_anew_and_a_lost_one_forgotten(
    opened: Callable[..., Album], embedded: list[int], photos: Path, model: CLIP, tmp_path: Path
) -> None:
    opened()
    picture("blue", 999).save(photos / "red0.png")
    (photos / "red1.png").unlink()
    album = opened()
    assert embedded == [9, 1] and len(album.paths) == 8
    torch.testing.assert_close(album.vectors, embed_images(model, album.paths), atol=1e-6, rtol=0)
    assert len(read_safetensors(the_file(tmp_path))["vectors"]) == 8


@pytest.mark.parametrize("change", ["weights", "activation"])
def test_another_model_sees_for_itself(
    opened: Callable[..., Album], embedded: list[int], model: CLIP, change: str
) -> None:
    other = small_clip(quick_gelu=change != "activation")
    if change == "weights":
        with torch.no_grad():
            other.vision.patches.conv.weight[0, 0, 0, 0] += 1e-3  # type: ignore[union-attr, index]
    first, second = opened(), opened(model=other)
    assert embedded == [9, 9] and not torch.equal(first.vectors, second.vectors)
    assert torch.equal(opened(model=other).vectors, second.vectors) and embedded == [9, 9]


def test_a_fingerprint_is_that_of_what_sees() -> None:
    one, same = small_clip(), small_clip()
    with torch.no_grad():
        same.text.embed.weight.add_(1)
    assert fingerprint(one) == fingerprint(same)
    prints = []
    for stride_first in (True, False):
        net = build(ResNetConfig(num_blocks=(1, 1, 1, 1), width=8, stride_first=stride_first))
        net.initialise(torch.Generator().manual_seed(0))
        prints.append(fingerprint(net))
    assert prints[0] != prints[1]


def test_what_was_kept_is_made_anew_wherever_it_is_damaged(
    opened: Callable[..., Album], embedded: list[int], tmp_path: Path
) -> None:
    right = opened().vectors
    data = the_file(tmp_path).read_bytes()
    cases = [data[:size] for size in range(0, len(data), 97)]
    for at in range(0, len(data), 53):
        cases.append(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    for case in cases:
        the_file(tmp_path).write_bytes(case)
        embedded.clear()
        assert torch.equal(opened().vectors, right)
        assert embedded in ([9], []) and (embedded or case[8:] != data[8:])
        assert the_file(tmp_path).read_bytes() == data or not embedded


def test_a_search_that_is_broken_off_keeps_what_it_did_and_what_was_there(
    opened: Callable[..., Album], embedded: list[int], photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(progress=stop)
    assert embedded == [4, 4]
    opened()
    assert embedded == [4, 4, 1]
    for path in picture_files(photos)[:2]:
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        opened(progress=lambda stage, done, total: stop(stage, 8, total))
    assert len(read_safetensors(the_file(tmp_path))["vectors"]) == 9
    opened()
    assert embedded == [4, 4, 1]


def test_a_long_search_keeps_what_it_did_from_time_to_time(
    opened: Callable[..., Album], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "KEEP_SECONDS", 0)
    counts: list[int] = []
    opened(progress=lambda *call: counts.append(len(read_safetensors(the_file(tmp_path))["vectors"])))
    assert counts == [4, 8, 9]


def test_a_store_that_cannot_be_written_is_done_without(opened: Callable[..., Album], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert len(opened(store=tmp_path / "file").paths) == 9


def test_broken_pictures_are_named_and_left_out(opened: Callable[..., Album], photos: Path) -> None:
    (photos / "a壊.png").write_bytes(b"no picture")
    (photos / "empty.gif").write_bytes(b"")
    album = opened()
    assert len(album.paths) == 9
    assert ["a壊.png" in str(album.left_out[0]), "empty.gif" in str(album.left_out[1])] == [True, True]
    for path in album.paths:
        path.unlink()
    with pytest.raises(DatasetError, match=r"no picture that can be read.*a壊\.png") as caught:
        opened()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_picture_that_may_not_be_read_is_named(opened: Callable[..., Album], photos: Path) -> None:
    (photos / "red0.png").chmod(0)
    assert "permissions" in str(opened().left_out[0])


def test_folders_without_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    for path, told in ((tmp_path / "no", "no such folder"), (tmp_path, "holds no picture")):
        with pytest.raises(DatasetError, match=told):
            picture_files(path)
    (tmp_path / "x").write_text("x", encoding="utf-8")
    with pytest.raises(DatasetError, match="is not a folder"):
        picture_files(tmp_path / "x")


def test_a_model_without_eyes_is_told() -> None:
    with pytest.raises(ConfigError, match=r"words.*no embeddings of pictures.*--reads image"):
        seeing(torch.nn.Linear(2, 2), name="words")
