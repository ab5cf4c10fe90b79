"""Attaches the emulated device to CuPy in this process, and in the Python processes that it starts.

CuPy's wheel has CUDA's run-time linked into its extension modules. At the import of CuPy, a jump to the stand-in is
written over the first bytes of each of the run-time's functions; the modules' symbol tables say where they are. The
driver and cuBLAS are libraries that CuPy loads by name, and loaded stand-ins of these names are found first. Kernels
are compiled by g++ in place of NVRTC. Sorting, whose kernels are machine code in the wheel, is NumPy's (sorting.py).
NumPy is imported only with CuPy, so that a child process without CuPy starts as it would without the device.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cuda_emulator import build, elf
from cuda_emulator.cuda_source import compile_source, entry_name
from cuda_emulator.engine_library import Settings, engine

__all__ = [
    "ERRORS",
    "LATE",
    "Failure",
    "attach",
    "attach_without_gpu",
    "attached",
    "environment",
    "failing",
    "free_memory",
    "late",
    "memory_limit",
    "obstacle",
    "recorded",
]

#: The folder on PYTHONPATH by which child processes attach the device, too.
SITE = Path(__file__).parent / "site"
#: "1" in this variable: races and accesses outside every array are errors of the launch. It is slow.
CHECK = "XNN_EMULATOR_CHECK"
#: CuPy's modules with a run-time that is used.
MODULES = ("cupy_backends.cuda.api.runtime", "cupy.cuda.thrust")

_driver: ctypes.CDLL | None = None
_names: list[bytes] = []  # kept: machine code refers to them


def attached() -> bool:
    """Whether the device is attached to this process."""
    return _driver is not None


def obstacle() -> str:
    """Say why the device cannot be attached in this process, or return "" if it can be, or is."""
    if attached():
        return ""
    if "cupy" in sys.modules:
        return "the emulated GPU must be attached before CuPy is imported"
    return build.obstacle()


def attach() -> None:
    """Attach the device. CuPy must not have been imported yet, and `obstacle` must be ""."""
    global _driver
    if attached():
        return
    engine()
    libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in build.stand_ins()]
    _driver = libraries[0]
    _driver.emulated_log_line.restype = ctypes.c_char_p
    _driver.emulated_log_size.restype = ctypes.c_size_t
    if os.environ.get(CHECK) == "1":
        Settings(bounds=True).apply()
    os.environ.update(environment())
    sys.meta_path.insert(0, _Finder())


def attach_without_gpu() -> str:
    """Attach the device if this machine has no NVIDIA driver. Return why it was not attached, or ""."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        reason = obstacle()
        if not reason:
            attach()
        return reason
    return "" if attached() else "there is an NVIDIA driver"


def environment(attached: bool = True) -> dict[str, str]:
    """The environment of a child process, with the device attached or without it."""
    result = dict(os.environ)
    places = [
        place for place in result.get("PYTHONPATH", "").split(os.pathsep) if place and place != str(SITE)
    ]
    for name in ("CUPY_ACCELERATORS", "CUPY_CACHE_IN_MEMORY"):
        result.pop(name, None)
    if attached:
        places.insert(0, str(SITE))
        result["CUPY_ACCELERATORS"] = ""  # CUB's kernels are machine code
        result["CUPY_CACHE_IN_MEMORY"] = "1"  # compiled kernels are kept by build.py only
        result["XNN_EMULATOR_CACHE"] = str(build.folder().parent)  # also for a child with another HOME
    result["PYTHONPATH"] = os.pathsep.join(places)
    return result


def driver() -> ctypes.CDLL:
    """The stand-in for driver and run-time."""
    assert _driver is not None, "the emulated GPU is not attached"
    return _driver


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record what is asked of the device in a `with` block. The list is filled when the block ends.

    A line is "KERNEL name", "COPY H2D pageable 400", "CUBLAS gemm float32 3x4x5", "GRAPH 12", "MALLOC 512",
    "SYNC stream", or "CAPTURE ..." and "REFUSED ..." for work that a capture took or refused.
    """
    lines: list[str] = []
    lib = driver()
    lib.emulated_log(1)
    try:
        yield lines
    finally:
        count = lib.emulated_log_size()
        lines += [lib.emulated_log_line(ctypes.c_size_t(i)).decode() for i in range(count)]
        lib.emulated_log(0)


def memory_limit(size: int) -> None:
    """Say how many bytes each device has. At the start it is 8 GiB."""
    driver().emulated_memory_limit(ctypes.c_size_t(size))


@contextmanager
def free_memory(size: int) -> Iterator[None]:
    """Leave arrays so many bytes of the current device in a `with` block, whatever ran before.

    CuPy has a new pool there. The usual one may have room in blocks of which a part is used.
    """
    import cupy

    gc.collect()
    before, pool = cupy.get_default_memory_pool(), cupy.cuda.MemoryPool()
    before.free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    try:
        cupy._default_memory_pool = pool
        cupy.cuda.set_allocator(pool.malloc)
        memory_limit(total - free + size)
        yield
    finally:
        memory_limit(total)
        cupy._default_memory_pool = before
        cupy.cuda.set_allocator(before.malloc)


#: The orders of `late`.
LATE = ("oldest first", "newest first")


@contextmanager
def late(order: str) -> Iterator[None]:
    """Let the work of streams run in a `with` block only when something waits for it, and then in this order.

    Two streams without an event between them, where one is needed, give other numbers in one of the orders. The
    streams that are always there (the default ones) run their work at once.

    order: "oldest first": what may run of the oldest stream runs before that of the others; or "newest first".
    """
    driver().emulated_late(1 + LATE.index(order))
    try:
        yield
    finally:
        driver().emulated_late(0)


#: The errors that `failing` knows: CUDA's number, and whether the process can use the device no more.
ERRORS = {
    "out of memory": (2, False),
    "invalid value": (1, False),
    "illegal address": (700, True),
    "device lost": (46, True),
    "memory defect": (214, True),
}


@dataclass
class Failure:
    """What `failing` gives. asked: how many things the block has asked of the device, known when it ends."""

    asked: int = 0


@contextmanager
def failing(number: int = 0, error: str = "device lost") -> Iterator[Failure]:
    """Let one thing that a `with` block asks of the device fail.

    Asked are launches, products, copies, allocations, waits, the begin and the end of a capture, graphs. After an
    error that ends the use of the device everything fails, until the block ends.

    number: which of them fails, counted from 1. 0: none, they are only counted.
    error: a name in ERRORS.
    """
    code, lasts = ERRORS[error]
    driver().emulated_fail(ctypes.c_long(number), code, lasts)
    driver().emulated_asked.restype = ctypes.c_long
    failure = Failure()
    try:
        yield failure
    finally:
        failure.asked = driver().emulated_asked()
        driver().emulated_fail(ctypes.c_long(0), 0, 0)


# Jumps over the functions of the run-time.


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _loaded_at(path: str) -> int:
    """Where a loaded library begins in memory."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(path):
            fields = line.split()
            return int(fields[0].split("-")[0], 16) - int(fields[2], 16)
    raise RuntimeError(f"{path} is not loaded")


def _jump(name: str) -> bytes:
    """Machine code that goes on in the stand-in for a function, or reports that there is none."""
    stand_in = getattr(driver(), f"emulated_{name}", None)
    if stand_in is not None:
        return (
            b"\x48\xb8" + struct.pack("<Q", _address(stand_in)) + b"\xff\xe0"
        )  # movabs rax, address; jmp rax
    _names.append(name.encode())
    text = ctypes.cast(ctypes.c_char_p(_names[-1]), ctypes.c_void_p).value or 0
    return (
        b"\x48\xbf" + struct.pack("<Q", text)  # movabs rdi, name: the first argument
        + b"\x48\xb8" + struct.pack("<Q", _address(driver().emulated_nothing)) + b"\xff\xe0"
    )  # fmt: skip


def _redirect(module: ModuleType) -> None:
    """Write a jump over each function cudaXxx of the run-time in an extension module."""
    path = os.path.realpath(str(module.__file__))
    start = _loaded_at(path)
    for symbol in elf.functions(Path(path)):
        if not (symbol.name.startswith("cuda") and symbol.name[4:5].isupper()):
            continue
        code = _jump(symbol.name)
        if symbol.size < len(code):
            raise RuntimeError(f"{path}: {symbol.name} is too short for a jump")
        _write_code(start + symbol.offset, code)


def _write_code(address: int, code: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    first = address & ~(mmap.PAGESIZE - 1)
    area = ctypes.c_void_p(first), ctypes.c_size_t(address + len(code) - first)
    executable = mmap.PROT_READ | mmap.PROT_EXEC
    if libc.mprotect(*area, executable | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, code, len(code))
    libc.mprotect(*area, executable)


# CuPy's own Python.


def _compile(
    source: str,
    options: Sequence[str] = (),
    arch: str | None = None,
    filename: str = "kern.cu",
    name_expressions: Sequence[str] | None = None,
    *_: Any,
) -> tuple[bytes, dict[str, str] | None]:
    """Compile a kernel by g++: in place of CuPy's function of the same arguments, which calls NVRTC."""
    names = list(name_expressions or ())
    try:
        path, kernels = compile_source(source, names, options, os.environ.get(CHECK) == "1")
    except build.BuildError as error:
        exception = importlib.import_module("cupy.cuda.compiler").CompileException
        raise exception(str(error), source, filename, options, "g++") from None
    mapping = {name: entry_name(name, number) for number, name in enumerate(kernels)} if names else None
    return f"EMULATED:{path}\0".encode(), mapping


class _Loader(importlib.abc.Loader):
    """CuPy's own loader, with what is to be done before and after it."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self.own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _redirect(importlib.import_module(MODULES[0]))  # CuPy calls it while it is imported
        self.own.exec_module(module)
        for name in MODULES[1:]:
            _redirect(importlib.import_module(name))
        compiler: Any = importlib.import_module("cupy.cuda.compiler")
        compiler._compile_using_nvrtc_no_warning = _compile
        compiler._preprocess = lambda *_: "cuda_emulator"  # a part of the key of CuPy's own cache
        sorting = importlib.import_module("cuda_emulator.sorting")
        thrust: Any = importlib.import_module("cupy.cuda.thrust")
        thrust.sort, thrust.argsort = sorting.sort, sorting.argsort
        if os.environ.get(CHECK) == "1":
            module.__dict__["cuda"].set_allocator(None)  # without a pool, each array is a buffer with bounds


class _Finder(importlib.abc.MetaPathFinder):
    """Finds CuPy where Python does, and gives the wheel's own the loader above. A test may have a fake `cupy`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "cupy":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        wheel = build.cupy_folder() / "cupy" / "__init__.py"
        if spec is not None and spec.loader is not None and spec.origin == str(wheel):
            spec.loader = _Loader(spec.loader)
        return spec
