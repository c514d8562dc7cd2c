"""Folders of one file or of shards: what an index may say, and where it may lead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban.errors import FormatError, KibanError, ModelNotFoundError, UnsafeFormatError
from kiban.weights.safetensors import read_folder_tensors, tensor_bytes, write_safetensors


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal names, types and values."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder of three shards, and what is in it."""
    tensors = {f"層.{i}": torch.full((10,), float(i)) for i in range(5)}
    home = tmp_path / "home" / "model"
    home.mkdir(parents=True)
    write_safetensors(home, tensors, max_shard_bytes=80)
    return home, tensors


def index_of(home: Path, change: Callable[[dict[str, str]], Any]) -> None:
    """Change the weight map of a folder."""
    path = home / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    change(index["weight_map"])
    path.write_text(json.dumps(index), "utf-8")


def test_shards_read_as_they_were_written(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    home, tensors = sharded
    assert len(list(home.glob("*.safetensors"))) == 3
    assert same(read_folder_tensors(home), tensors)
    index = json.loads((home / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == 200
    assert all(path.stat().st_size < 400 for path in home.glob("*.safetensors"))


def test_one_shard_needs_no_index_and_a_tensor_above_the_limit_gets_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    tensors = {"a": torch.ones(1), "b": torch.ones(100), "c": torch.ones(1).bfloat16()}
    write_safetensors(tmp_path / "one", tensors)
    write_safetensors(tmp_path / "two", tensors, max_shard_bytes=8)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    assert len(list((tmp_path / "two").glob("*.safetensors"))) == 3
    assert same(read_folder_tensors(tmp_path / "one"), tensors)
    assert same(read_folder_tensors(tmp_path / "two"), tensors)


OUTSIDE = [
    "../outside.safetensors",
    "./../outside.safetensors",
    "a/../../outside.safetensors",
    "..\\outside",
    "",
    "a\0b",
]
OUTSIDE += ["/etc/passwd", "C:\\x", "C:x", "link.safetensors", "sub/outside.safetensors", "loop", "x" * 5000, "\ud800"]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name)[:20])
def test_an_index_that_leads_out_of_its_folder_is_refused(sharded: tuple[Path, dict[str, Tensor]], name: str) -> None:
    home, _ = sharded
    (home.parent / "outside.safetensors").write_bytes(tensor_bytes({"secret": torch.ones(1)}))
    (home / "link.safetensors").symlink_to(home.parent / "outside.safetensors")
    (home / "sub").symlink_to(home.parent)
    (home / "loop").symlink_to(home / "loop")
    index_of(home, lambda places: places.update(secret=name))
    with pytest.raises(FormatError, match=r"index\.json"):
        read_folder_tensors(home)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_out_of_the_folder_is_refused_under_the_usual_names_too(
    sharded: tuple[Path, dict[str, Tensor]], name: str
) -> None:
    home, _ = sharded
    (home / name).unlink(missing_ok=True)
    (home.parent / "outside").write_bytes(tensor_bytes({"secret": torch.ones(1)}))
    (home / name).symlink_to("../outside")
    with pytest.raises(FormatError, match="link"):
        read_folder_tensors(home)


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_bytes(tensor_bytes({"a": torch.ones(2)}))
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert torch.equal(read_folder_tensors(snapshot)["a"], torch.ones(2))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../blobs/abc"}}')
    with pytest.raises(FormatError, match="leads out"):  # a link of the hub leads there, an index must not
        read_folder_tensors(snapshot)


INDEXES: dict[str, Callable[[dict[str, str]], Any]] = {
    "a missing shard": lambda places: places.update({"層.0": "model-00009-of-00003.safetensors"}),
    "a tensor that no shard holds": lambda places: places.update(more="model-00001-of-00003.safetensors"),
    "a tensor in another shard": lambda places: places.update({"層.0": "model-00003-of-00003.safetensors"}),
    "a tensor that the index lacks": lambda places: places.pop("層.0"),
    "itself": lambda places: places.update(more="model.safetensors.index.json"),
    "the folder": lambda places: places.update(more="."),
    "a number": lambda places: places.update(more=1),  # type: ignore[call-overload]
    "a list": lambda places: places.update(more=["model-00001-of-00003.safetensors"]),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES)
def test_an_index_that_does_not_say_what_the_shards_hold_is_refused(
    sharded: tuple[Path, dict[str, Tensor]], change: Callable[[dict[str, str]], Any]
) -> None:
    index_of(sharded[0], change)
    with pytest.raises(FormatError):
        read_folder_tensors(sharded[0])


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}', "", "{"])
def test_an_index_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match=r"index\.json"):
        read_folder_tensors(tmp_path)


def test_an_index_that_names_a_pickle_is_refused(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    home, _ = sharded
    (home / "a.bin").write_bytes(b"any")
    index_of(home, lambda places: places.update(more="a.bin"))
    with pytest.raises(UnsafeFormatError):
        read_folder_tensors(home)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here.")
    with pytest.raises(ModelNotFoundError):
        read_folder_tensors(tmp_path)


def test_a_failure_of_the_library_to_write_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(KibanError, match=r"model\.safetensors"):
        write_safetensors(tmp_path, {"a": torch.ones(1)})
