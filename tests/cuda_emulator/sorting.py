"""Sorting on the emulated GPU, in place of CuPy's module `thrust`: NumPy sorts the device's memory."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuda_emulator.attach import driver

__all__ = ["argsort", "sort"]


def _on_host(pointer: int, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    """The array at an address of the device, which is the host's own memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype).reshape(shape)


def _wait(name: str) -> None:
    """Say that a library call waits for the stream. Raises CuPy's error if the stream captures."""
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    stream = importlib.import_module("cupy.cuda").get_current_stream().ptr
    error = driver().emulated_waits(ctypes.c_void_p(stream), name.encode())
    if error:
        raise runtime.CUDARuntimeError(error)


def sort(dtype: Any, data: int, _: int, shape: Sequence[int]) -> None:
    _wait("THRUST sort")
    values = _on_host(data, dtype, shape)
    values[...] = np.sort(values, axis=-1, kind="stable")


def argsort(dtype: Any, index: int, data: int, _: int, shape: Sequence[int]) -> None:
    _wait("THRUST argsort")
    _on_host(index, np.intp, shape)[...] = np.argsort(_on_host(data, dtype, shape), axis=-1, kind="stable")
