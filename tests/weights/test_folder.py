"""Model folders: whole or not at all, every file accounted for, no name that leads out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban.errors import FormatError, IntegrityError
from kiban.files import read_json, sha256_of, staged_folder, verify_folder, write_manifest
from kiban.weights.folder import write_folder
from kiban.weights.safetensors import read_folder_tensors

FILES: dict[str, str | bytes] = {
    "tokenizer.json": '{"版": 1}',
    "1_Pooling/config.json": b"{}",
    "deep/er/kiban.json": "{}",
    "README.md": "# 説明\n",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that kiban wrote."""
    path = tmp_path / "run" / "model"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    write_folder(path, tensors=tensors, config={"名": "値"}, files=FILES, manifest={"strategy": "test"})
    return path


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_written_folder_holds_everything_and_nothing_else_is_left(model: Path) -> None:
    assert files_of(model) == {"config.json", "model.safetensors", "kiban.json", *FILES}
    assert read_json(model / "config.json") == {"名": "値"}
    assert torch.equal(read_folder_tensors(model)["a"], torch.arange(6.0).view(2, 3))
    assert (model / "README.md").read_bytes() == "# 説明\n".encode()
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_the_manifest_covers_every_file_but_itself(model: Path) -> None:
    from kiban import __version__

    manifest = read_json(model / "kiban.json")
    assert manifest["files"].keys() == files_of(model) - {"kiban.json"}
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": sha256_of(model / name), "bytes": (model / name).stat().st_size}
    assert (manifest["strategy"], manifest["kiban_version"]) == ("test", __version__)
    verify_folder(model)


def test_a_folder_without_tensors_is_written_without_weights(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", tensors={}, config={}, files={}, manifest={})
    assert files_of(tmp_path / "a") == {"config.json", "kiban.json"}


def test_any_flipped_bit_in_any_file_is_noticed(model: Path) -> None:
    for name in sorted(files_of(model) - {"kiban.json"}):
        path = model / name
        data = path.read_bytes()
        for bit in range(0, 8 * len(data), 37):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with pytest.raises(IntegrityError, match=path.name):
                verify_folder(model)
        path.write_bytes(data)
    verify_folder(model)


def test_no_flipped_bit_in_the_manifest_raises_anything_but_our_errors(model: Path) -> None:
    path = model / "kiban.json"
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 5):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with contextlib.suppress(FormatError, IntegrityError):
            verify_folder(model)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "1_Pooling/config.json", "README.md"])
def test_a_file_that_is_not_as_it_was_is_named(model: Path, name: str, change: Callable[[Path], Any]) -> None:
    change(model / name)
    with pytest.raises(IntegrityError, match=Path(name).name):
        verify_folder(model)


EXTRA = ["more.safetensors", "model.safetensors.index.json", "tokenizer.model", "spiece.model", "vocab.txt"]
EXTRA += ["tokenizer_config.json", "chat_template.jinja", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", EXTRA)
def test_a_file_that_would_be_opened_without_being_in_the_manifest_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=f"{name}: is not one of the files"):
        verify_folder(model)


@pytest.mark.parametrize(
    "name", ["notes.txt", "eval.json", ".gitattributes", "plot.png", "checkpoints/model.safetensors"]
)
def test_a_file_that_nobody_opens_may_be_added(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"{}")
    verify_folder(model)


def test_weights_put_before_the_shards_of_a_folder_are_noticed(tmp_path: Path) -> None:
    from kiban.weights.safetensors import tensor_bytes, write_safetensors

    with staged_folder(tmp_path / "model") as staged:
        write_safetensors(staged, {"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
        write_manifest(staged, {})
    verify_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(tensor_bytes({"a": torch.zeros(4), "b": torch.zeros(4)}))
    with pytest.raises(IntegrityError):
        verify_folder(tmp_path / "model")


def test_a_folder_of_others_is_not_checked(model: Path) -> None:
    (model / "kiban.json").unlink()
    (model / "more.safetensors").write_bytes(b"")
    verify_folder(model)


MANIFESTS = [
    "",
    "{",
    "[]",
    "{}",
    '{"files": []}',
    '{"files": null}',
    '{"files": {}, "files": {}}',
    '{"files": {"": {}}}',
]
MANIFESTS += ['{"files": {"../x": {}}}', '{"files": {"/etc/passwd": {}}}']


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_of_another_form_is_refused(model: Path, manifest: str) -> None:
    (model / "kiban.json").write_text(manifest)
    with pytest.raises(FormatError):
        verify_folder(model)


@pytest.mark.parametrize("facts", [None, 1, [], {}, {"sha256": None}, {"sha256": 1}, {"sha256": ""}])
def test_a_manifest_that_states_no_hash_verifies_nothing(model: Path, facts: Any) -> None:
    (model / "kiban.json").write_text(json.dumps({"files": {"config.json": facts}}))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        verify_folder(model)
