"""kiban (基盤): choose a foundation model for your own data, make it yours, measure it, use it.

`kiban.load(x)` opens a model, `kiban.adopt(table, text=..., label=...)` runs the main job.
Everything heavy loads on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiban.errors import KibanError

if TYPE_CHECKING:
    from kiban.api import Model as Model
    from kiban.api import load as load

__version__ = "0.1.0"
__all__ = ["KibanError", "Model", "__version__", "adopt", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Model"):
        from kiban import api

        return getattr(api, name)
    if name == "adopt":
        import importlib

        return importlib.import_module("kiban.adopt")
    raise AttributeError(f"module 'kiban' has no attribute {name!r}")
