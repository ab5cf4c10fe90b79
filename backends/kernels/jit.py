"""Numba's compiler with xnn's settings: no fast-math, machine code cached on disk, damaged cache files replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

__all__ = ["jit", "load"]


def jit(function: Any) -> Any:
    """Compile a function at its first call. No operations are reordered or fused; x / 0 is infinity."""
    # Numba's own error model would test for division by zero, and so keep loops from using SIMD instructions.
    options = {"error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that Numba can write to: each process compiles again
        return numba.njit(**options)(function)


def load(call: Callable[[], Any], compiled: Any) -> None:
    """Run `call`, so that its compiled functions are loaded; if that fails, delete their cache files and try again.

    compiled: one of the functions. All of them are in one file, and Numba names the cache files after it.
    """
    try:
        call()
    except Exception:
        if not compiled.stats.cache_path:
            raise
        name = Path(compiled.py_func.__code__.co_filename).stem
        for file in Path(compiled.stats.cache_path).glob(f"{name}.*.nb[ic]"):
            file.unlink(missing_ok=True)
        call()
