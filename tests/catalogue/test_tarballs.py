"""Pulling from a registry of npm that this test serves: by npm's client and without one, checked, converted, atomic."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from keras_reference import keras, manifest_and_data, random_weights
from kiban import zoo
from kiban.catalogue.entries import Entry, Tarball
from kiban.catalogue.pull import is_pulled, place, pull
from kiban.errors import IntegrityError, ModelNotFoundError
from kiban.weights.resnet_names import MEAN, STD

NAME, VERSION, PARTS = "tiny-resnet", "1.0.0", 3
LABELS = {str(number): name for number, name in enumerate(["tench", "great_white_shark", "cock", "hen", "jay"])}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def package(weights: dict[str, Tensor]) -> tuple[bytes, bytes]:
    """The tarball, and the weights in it."""
    listed, data = manifest_and_data(weights)
    step = -(-len(data) // PARTS)
    members = {f"package/net/part{n + 1}of3.bin": data[n * step : (n + 1) * step] for n in range(PARTS)}
    # As npm sorts them, the parts are not in their order; nothing else may be written or run.
    members = dict(reversed(members.items())) | {
        "package/package.json": json.dumps(
            {"name": NAME, "version": VERSION, "scripts": {"prepare": "exit 1"}}
        ).encode(),
        "package/net/model.json": listed,
        "package/assets/labels.json": json.dumps(LABELS).encode(),
        "package/../../evil": b"x",
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue(), data


@pytest.fixture
def registry(package: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address, which is all that npm sees; kiban's home is empty."""
    tarball = package[0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = f"http://{self.headers['Host']}"
            where = f"/{NAME}/-/{NAME}-{VERSION}.tgz"
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
            facts = {"name": NAME, "version": VERSION, "dist": {"tarball": host + where, "integrity": integrity}}
            told = {"name": NAME, "dist-tags": {"latest": VERSION}, "versions": {VERSION: facts}}
            found = {where: tarball, f"/{NAME}": json.dumps(told).encode()}.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"{}")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", os.devnull)
    monkeypatch.setenv("NPM_CONFIG_FETCH_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["npm", "https"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With npm on this machine, and as on one that has none."""
    if request.param == "https":
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
        assert shutil.which("npm") is None
    elif shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    return str(request.param)


@pytest.fixture
def entry(package: tuple[bytes, bytes], registry: str) -> Entry:
    file, data = package
    tarball = Tarball(
        name=NAME,
        version=VERSION,
        sha256=hashlib.sha256(file).hexdigest(),
        bytes=len(file),
        parts=PARTS,
        beside=("package/net/model.json", "package/assets/labels.json"),
    )
    return Entry(
        name="tiny",
        family="resnet",
        title="t",
        tarball=tarball,
        member="package/net/part{}of3.bin",
        main_file="weights.raw",
        main_sha256=hashlib.sha256(data).hexdigest(),
    )


def leftovers() -> list[str]:
    home = Path(os.environ["KIBAN_HOME"]) / "models"
    return [path.name for path in home.iterdir() if not path.name.endswith(".lock")] if home.exists() else []


def test_what_was_pulled_opens_and_computes_what_keras_does(
    entry: Entry, client: str, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []
    folder = pull(entry, progress=lambda *call: told.append(call))
    assert folder == place(entry) and is_pulled(entry) and leftovers() == ["tiny"]
    assert told[-1] == ("pull tiny", entry.download_bytes, entry.download_bytes)
    files = {"config.json", "kiban.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == files and not list(folder.parents[2].rglob("evil"))
    loaded = zoo.load(folder)
    assert loaded.labels == ("tench", "great white shark", "cock", "hen", "jay")
    pictures = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    pixels = (pictures / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = keras(weights, pictures)
        assert (loaded.module(pixels) - expected).abs().max() < 0.02 * expected.abs().max()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    assert pull(entry) == folder


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda e: replace(e, tarball=replace(e.tarball, sha256="0" * 64)), IntegrityError, "registry"),
        (lambda e: replace(e, tarball=replace(e.tarball, version="2.0.0")), ModelNotFoundError, "npm pack"),
        (lambda e: replace(e, tarball=replace(e.tarball, parts=4)), IntegrityError, "part4of3"),
        (lambda e: replace(e, tarball=replace(e.tarball, beside=("package/no",))), IntegrityError, "package/no"),
        (lambda e: replace(e, main_sha256="0" * 64), IntegrityError, "tiny"),
    ],
    ids=["tarball", "version", "part", "member", "weights"],
)
def test_what_is_not_as_pinned_is_refused_and_leaves_nothing(
    entry: Entry, client: str, change: Callable[[Entry], Entry], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        pull(change(entry))
    assert "\n" not in str(caught.value)
    assert leftovers() == [] and not is_pulled(entry)


def test_no_registry_is_told(entry: Entry, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match="network"):
        pull(entry)


def test_a_registry_that_sends_too_much_is_cut_off(
    entry: Entry, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert entry.tarball is not None
    with pytest.raises(IntegrityError):
        pull(replace(entry, tarball=replace(entry.tarball, bytes=10)))
