"""Where a model's files are: on this machine, in the catalogue, or on the hub."""

from __future__ import annotations

from pathlib import Path

from kiban.catalogue.entries import entries, find
from kiban.catalogue.pull import pull
from kiban.config import Progress
from kiban.errors import ModelNotFoundError
from kiban.weights.pipeline_folder import INDEX

SMALL = ["*.json", "*tokenizer.model", "*vocab.txt", "*merges.txt", "*.jinja"]


def locate(source: str | Path, progress: Progress) -> Path:
    """The folder or file that source names, fetched if need be. Raises ModelNotFoundError with the closest name."""
    path = Path(source)
    if path.exists():
        return path
    name = str(source)
    if name in entries():
        return pull(find(name), progress=progress)
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    find(name)  # raises, with the closest name
    raise ModelNotFoundError(name, why="is neither a catalogue name, a folder, a file nor a hub id")


def _from_hub(name: str) -> Path:
    """Fetch from the hub what we read, and never a pickle. Honours HF_HOME, HF_HUB_OFFLINE and HF_TOKEN."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=SMALL))
        # Beside a system's parts lie all of them in one file, and copies in other precisions: tens of GB.
        parts = (folder / INDEX).is_file()
        weights, not_used = (
            (["*/*.safetensors"], ["*.fp16.*", "safety_checker/*"]) if parts else (["*.safetensors"], [])
        )
        return Path(snapshot_download(name, allow_patterns=[*SMALL, *weights], ignore_patterns=not_used))
    except (OSError, ValueError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        hint = "check the id and the network; a catalogue name (see `kiban models`) or a folder works without one"
        raise ModelNotFoundError(name, why=f"could not be fetched from the hub: {error}", hint=hint) from error
