"""The main job: a table in, a measured decision and a ready model out.

`kiban.adopt(...)` is both this package and a function, as in `kiban.adopt("tickets.csv", text="本文", label="区分")`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that can be called: the folder `adopt/` and the verb `kiban.adopt` share one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from kiban.adopt.job import adopt

        return adopt(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
