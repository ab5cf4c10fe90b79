"""CUDA kernels over NumPy arrays, without CuPy.

module = Module(source)                                      CUDA C++, as NVRTC would get it
module["scale"]((4,), (128,), (x, np.float32(2), np.int32(x.size)))      x: a NumPy array, changed in place
with settings(order="random", seed=3): ...                   another order of threads and blocks
Module(source, check=True)                                   races and accesses out of bounds are errors
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from cuda_emulator.cuda_source import compile_source, entry_name
from cuda_emulator.engine_library import Settings, engine

__all__ = ["KernelError", "Module", "settings"]


class KernelError(RuntimeError):
    """A kernel did what a GPU forbids: a race, a divergent barrier, an access out of bounds, a trap."""


_current = Settings()


@contextmanager
def settings(**changes: Any) -> Iterator[None]:
    """Run the kernels of a `with` block with other `Settings`."""
    global _current
    before = _current
    _current = replace(before, **changes)
    _current.apply()
    try:
        yield
    finally:
        _current = before
        before.apply()


class Kernel:
    """One kernel. Arguments are NumPy arrays, which are passed as pointers, and NumPy numbers."""

    def __init__(self, entry: int, name: str, cooperative: bool, check: bool) -> None:
        self.entry, self.name, self.cooperative, self.check = entry, name, cooperative, check

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[np.ndarray | np.generic],
        shared: int = 0,
    ) -> None:
        """Run the kernel. shared: bytes of dynamic shared memory. Raises KernelError for what a GPU forbids."""
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        waiting = iter(pointers)
        held = [next(waiting) if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
        values = (ctypes.c_void_p * max(1, len(held)))(
            *(h.ctypes.data if isinstance(h, np.ndarray) else ctypes.addressof(h) for h in held)
        )
        shape = [(ctypes.c_uint * 3)(*(*map(int, sizes), 1, 1)[:3]) for sizes in (grid, block)]
        known = {(a.ctypes.data, a.nbytes) for a in arrays if a.nbytes and self.check}
        lib = engine()
        with settings(bounds=self.check or _current.bounds):
            for begin, size in known:
                lib.emu_known(ctypes.c_void_p(begin), ctypes.c_size_t(size), 1)
            wrong = lib.emu_launch(
                ctypes.c_void_p(self.entry), values, *shape, ctypes.c_size_t(shared), int(self.cooperative)
            )
            for begin, size in known:
                lib.emu_known(ctypes.c_void_p(begin), ctypes.c_size_t(size), 0)
        if wrong:
            raise KernelError(f"{self.name}: {lib.emu_error().decode()}")


class Module:
    """The kernels of a CUDA source.

    source: CUDA C++.
    options: as NVRTC's, such as "--fmad=false". Default: none.
    names: the kernels; needed for instances of templates, such as "f<float>". Default: every __global__ function.
    cooperative: whether all blocks of a launch run at once, as a grid's barrier needs. Default False.
    check: whether races and accesses outside the arguments' arrays are found. Default False; True is slow.
    """

    def __init__(
        self,
        source: str,
        options: Sequence[str] = (),
        names: Sequence[str] = (),
        cooperative: bool = False,
        check: bool = False,
    ) -> None:
        engine()
        path, kernels = compile_source(source, names, options, check)
        self.library = ctypes.CDLL(str(path))
        self.kernels = {}
        for number, name in enumerate(kernels):
            entry = ctypes.c_char.in_dll(self.library, f"emu_entry_{entry_name(name, number)}")
            self.kernels[name] = Kernel(ctypes.addressof(entry), name, cooperative, check)

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[name]
