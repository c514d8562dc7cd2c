"""The registry of families, and the one way to open, make and save a model: a scan of `families/`, no list to keep."""

from kiban.config import Family, Head, Traits
from kiban.zoo.opening import family_of, load
from kiban.zoo.registry import Loaded, create, families, initialise, new, presets
from kiban.zoo.saving import save, save_gguf

__all__ = [
    "Family",
    "Head",
    "Loaded",
    "Traits",
    "create",
    "families",
    "family_of",
    "initialise",
    "load",
    "new",
    "presets",
    "save",
    "save_gguf",
]
