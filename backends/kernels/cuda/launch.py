"""How a CUDA kernel is compiled and launched: its arguments are prepared once, and a launch allocates nothing."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MOST_BLOCKS", "MOST_THREADS", "THREADS", "TYPES", "WARP", "Launch", "address", "by_element", "compiled", "cupy",
    "driver", "source", "structure",
]  # fmt: skip

_HERE = Path(__file__).parent
#: C++'s names of the types that kernels are compiled for.
TYPES = {
    "float32": "float", "float64": "double", "bool": "bool", "int8": "signed char", "uint8": "unsigned char",
    "int16": "short", "uint16": "unsigned short", "int32": "int", "uint32": "unsigned", "int64": "long long",
    "uint64": "unsigned long long",
}  # fmt: skip
#: The sources whose functions another source calls, beside common.cu.
CALLED = {"persistent": ("gather", "loss", "activations", "updates")}
#: Threads of a block where each has one element; of a warp; and the most of a block.
THREADS, WARP, MOST_THREADS = 256, 32, 1024
#: The most blocks in the second dimension of a grid.
MOST_BLOCKS = 65535
_MAX_DYNAMIC_SHARED_SIZE, _NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 8, 14  # of CUfunction_attribute
_PORTABLE_CLUSTER = 8  # blocks, which every GPU with clusters can run together


def cupy() -> Any:
    """CuPy, which the backend has imported before."""
    return importlib.import_module("cupy")


@cache
def driver() -> Any:
    """CuPy's functions of the CUDA driver."""
    return importlib.import_module("cupy_backends.cuda.api.driver")


def source(file: str, exact: bool = False) -> str:
    """The CUDA C++ of a file of this folder, with what it calls in front of it.

    file: its name without ".cu", or several with blanks between them. exact: whether it is for exact numerics.
    """
    names = [*["exact_numbers"] * exact, "common", *CALLED.get(file, ()), *file.split()]
    return "\n".join((_HERE / f"{name}.cu").read_text() for name in names)


@cache
def compiled(
    file: str, dtype: Any, defined: tuple[tuple[str, str], ...] = (), exact: bool = False, **types: str
) -> Any:
    """Compile a CUDA source of this folder for some types, and return CuPy's module, which is kept for the next call.

    file: as for `source`. dtype: what `real` is, float32 or float64. exact: whether numbers are stored as float32 and
    computed with as in exact numerics; `real` must then be float64. types: further names of types in the source, and
    the dtypes that they stand for. defined: other names, and the text that they stand for.
    """
    chosen = {"real": str(np.dtype(dtype)), **types}
    names = {name: TYPES[kind] for name, kind in chosen.items()} | dict(defined)
    options = ["--std=c++17", "--fmad=false", *(f"-D{name}={text}" for name, text in names.items())]
    options += ["-DEXACT"] * exact
    return cupy().RawModule(code=source(file, exact), options=tuple(options))


def address(array: Any) -> int:
    """The address of an array in the GPU's memory; 0 for None."""
    return 0 if array is None else int(array.data.ptr)


@cache
def _structure(name: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def structure(name: str, **fields: Any) -> Any:
    """A C structure to pass to a kernel: arrays (or None) become pointers, integers int64, floats double.

    A structure inside stays one. The arrays are kept alive by it.
    """
    values = [_argument(value) for value in fields.values()]
    kind = _structure(name, tuple(zip(fields, map(type, values), strict=True)))
    made = kind(*values)
    made.held = list(fields.values())
    return made


def _argument(value: Any) -> Any:
    """An argument of a kernel as a ctypes object."""
    if isinstance(value, (ctypes.Structure, ctypes._SimpleCData)):
        return value
    if isinstance(value, (int, np.integer)):
        return ctypes.c_longlong(int(value))
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(address(value))


class Launch:
    """A kernel, its grid and its arguments; calling it launches the kernel.

    module: from `compiled`. name: of the kernel. grid, block: up to three numbers each. arguments: arrays and None
    become pointers, integers int64, floats double; ctypes objects are passed as they are when the kernel is launched,
    so that a c_longlong may be changed before. stream: where the kernel runs. shared: bytes of dynamic shared memory.
    cluster: blocks of a cluster, as the source says.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        stream: Any,
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        function = module.get_function(name).kernel
        self.name = name
        self.held: Any = (module, function, stream, arguments)
        prepared = [_argument(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(prepared))(*map(ctypes.addressof, prepared))
        self._prepared = prepared, pointers
        sizes = (*grid, 1, 1)[:3] + (*block, 1, 1)[:3]
        self._launch = driver().launchKernel
        if cluster > _PORTABLE_CLUSTER:
            driver().funcSetAttribute(function.ptr, _NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
        if shared:  # the limit is 48 KB until it is raised
            driver().funcSetAttribute(function.ptr, _MAX_DYNAMIC_SHARED_SIZE, shared)
        self._arguments = (function.ptr, *sizes, shared, stream.ptr, ctypes.addressof(pointers), 0)

    def __call__(self) -> None:
        self._launch(*self._arguments)

    def __repr__(self) -> str:
        return f"<launch of {self.name}>"


def by_element(
    module: Any, name: str, size: int, arguments: Sequence[Any], stream: Any, each: int = 1
) -> Any:
    """A launch with a thread for every `each` of `size` elements; None if there are no elements."""
    threads = -(-size // each)
    if not threads:
        return None
    return Launch(module, name, (-(-threads // THREADS),), (THREADS,), arguments, stream)
