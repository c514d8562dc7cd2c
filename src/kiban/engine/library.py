"""A library that torch's ahead-of-time compiler made, called through its C interface.

torch's own loader holds Python's lock while a library computes, so that a server could tell nobody anything meanwhile;
it also imports the compiler, for seconds and 100 MB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import PYFUNCTYPE, c_char_p, c_size_t, c_void_p, py_object
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Functions of our own: those of ctypes.pythonapi are everybody's, with what anybody says of their arguments.
_POINTER = PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_CAPSULE = PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", ctypes.pythonapi))


class Library:
    """A function of tensors on the CPU that returns one tensor. Only one thread may call it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it does not open."""
        self._path, self._handle = path, c_void_p()
        self._code = ctypes.CDLL(str(path))  # lets go of Python's lock in every call
        try:
            self._run, self._delete = (
                self._code.AOTInductorModelContainerRun,
                self._code.AOTInductorModelContainerDelete,
            )
            make = self._code.AOTInductorModelContainerCreateWithDevice
        except AttributeError as error:
            raise OSError(f"{path}: {error}") from None
        self._check(make(ctypes.byref(self._handle), c_size_t(1), b"cpu", None))

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """As the class says. Raises OSError if it fails; torch says why on stderr."""
        aoti: Any = torch._C._aoti
        handles = [_POINTER(one, None) for one in aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)]
        count, found = len(handles), c_void_p()
        given = (c_void_p * count)(*handles)  # the library takes what they stand for, not the array
        self._check(self._run(self._handle, given, c_size_t(count), ctypes.byref(found), c_size_t(1), None, None))
        result: Tensor = aoti.alloc_tensor_by_stealing_from_void_ptr(_CAPSULE(found, None, None))
        return result

    def close(self) -> None:
        """Let go of its memory; its code stays."""
        self._delete(self._handle)

    def _check(self, failed: int) -> None:
        if failed:
            raise OSError(f"{self._path} fails")
