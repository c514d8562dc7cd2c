"""Model folders in the layout of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kiban.files import inside, staged_folder, write_manifest
from kiban.weights.safetensors import write_safetensors


def write_folder(
    path: Path,
    *,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    files: Mapping[str, str | bytes],
    manifest: Mapping[str, Any],
) -> None:
    """Write a model folder atomically: config.json, model.safetensors, other files, kiban.json. path must be new."""
    with staged_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
        for name, content in files.items():
            member = inside(folder, name, source=path)
            member.parent.mkdir(parents=True, exist_ok=True)
            member.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        if tensors:
            write_safetensors(folder, tensors)
        write_manifest(folder, manifest)
