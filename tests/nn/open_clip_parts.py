"""Parts of open_clip for comparison, without torchvision, of which its models use one class that we don't test."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn


@cache
def part(name: str) -> Any:
    """A module of open_clip, such as "modified_resnet"; the test is skipped where open_clip is not installed."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    importlib.import_module("transformers")  # which open_clip imports, and which must not take the stub for torchvision
    bare = ModuleType("open_clip_parts_of")  # a package of the same files whose __init__ imports nothing
    bare.__path__ = [str(Path(spec.origin).parent)]
    misc = ModuleType("torchvision.ops.misc")
    vars(misc)["FrozenBatchNorm2d"] = nn.Identity
    stubs = {"torchvision": ModuleType("torchvision"), "torchvision.ops": ModuleType("torchvision.ops")}
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for stub, module in {**stubs, "torchvision.ops.misc": misc}.items():
                patch.setitem(sys.modules, stub, module)
        patch.setitem(sys.modules, bare.__name__, bare)
        return importlib.import_module(f"{bare.__name__}.{name}")
