"""Numba's compiler as xnn uses it: no fast-math, kept on disk, and made anew where what is on disk is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

__all__ = ["jit", "load"]


def jit(function: Any) -> Any:
    """Compiled when first called; nothing is reordered or fused, and division by zero gives infinity."""
    options = {"error_model": "numpy", "nogil": True}  # a check for division by zero would keep loops scalar
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that Numba may write to: compiled anew in each process
        return numba.njit(**options)(function)


def load(call: Callable[[], Any], compiled: Any) -> None:
    """Run `call`, whose compiled functions are of one file; what is damaged on disk is removed and made again."""
    try:
        call()
    except Exception:
        if not compiled.stats.cache_path:
            raise
        name = Path(compiled.py_func.__code__.co_filename).stem
        for file in Path(compiled.stats.cache_path).glob(f"{name}.*.nb[ic]"):
            file.unlink(missing_ok=True)
        call()
