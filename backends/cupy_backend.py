"""The CuPy backend, on an NVIDIA GPU.

Ops run as they are written, each operation as one of CuPy's own kernels. A Trainer's steps run by the CUDA kernels of
`xnn.backends.kernels.cuda`.

`import cupy` succeeds without a driver, and `cupy.show_config()` can name a cuBLAS that is missing. So the backend
counts as available only after a matrix product and an elementwise kernel have run. Each way of failing has its own
message: `cupy_failures.py`.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import numpy as np

from xnn.backends.base import Backend, Measured
from xnn.backends.communicator import communicator
from xnn.backends.cupy_devices import name_of, versions
from xnn.backends.cupy_failures import (
    check_driver,
    check_number,
    device_error,
    import_array_api,
    import_cupy,
    limit_fault,
    reason,
)
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.kernels.cuda.array_ops import MEMORIES, PEAKS, OpsNamespace
from xnn.backends.numerics import current_numerics
from xnn.errors import BackendUnavailableError, XnnError
from xnn.files import notice
from xnn.options import is_one_of

__all__ = ["CupyBackend"]

_TOGETHER = 2**26  # bytes that are copied to the host with one wait
_SHARE = 64  # and at most this part of the limit that CUPY_GPU_MEMORY_LIMIT sets
_SMALL = 2**16  # bytes that are put side by side on the GPU, to be one copy

_LONG = 1.0  # seconds of compiling that are not worth a word
_COMPILER = os.path.join("cupy", "cuda", "compiler.py")
_told = threading.Event()  # that kernels are compiled


class CupyBackend(Backend):
    """Arrays in a GPU's memory; `xp` is array-api-compat's namespace for CuPy.

    number: of the GPU, from 0. CUDA has a current device in each thread, on which arrays are made and kernels run. It
    becomes this GPU whenever something is asked of the backend or of its arrays; another one may follow at once.
    """

    has_numbers = True
    can_be_lost = True
    memory_advice: ClassVar[str] = "Try a smaller batch_size, or raise CUPY_GPU_MEMORY_LIMIT if it is set."
    room_advice: ClassVar[str] = (
        "raise CUPY_GPU_MEMORY_LIMIT if it is set, end other programs on the GPU, or use XNN_BACKEND=numpy"
    )
    lost_advice: ClassVar[str] = (
        "Start a new process and load the model's last file; if it happens again, see nvidia-smi and run with "
        "kernels='ops'"
    )

    def __init__(self, number: int = 0) -> None:
        self.number, self.name = number, f"cupy:{number}" if number else "cupy"
        # cuBLAS reads this variable when it is first used. Emulated float64 products are not rounded as IEEE 754
        # asks, which exact numerics need. A user who sets the variable to 1 has emulation in fast numerics; the
        # self-check of exact numerics then refuses this backend.
        if current_numerics() == "exact":
            os.environ["CUBLAS_EMULATE_DOUBLE_PRECISION"] = "0"
        os.environ.setdefault("CUBLAS_EMULATE_DOUBLE_PRECISION", "0")
        self._cupy = import_cupy()
        if fault := limit_fault():
            raise BackendUnavailableError(fault)
        check_driver(self._cupy)
        self._several = check_number(self._cupy, number) > 1
        self.probe()
        self._xp = import_array_api()
        self._ops = OpsNamespace(self._xp)
        # A stream for each thread, since a capture takes all that is given to its stream; and pinned memory.
        self._own = threading.local()

    @property
    def address(self) -> str:
        return f"cupy:{self.number}"

    @property
    def cupy(self) -> Any:
        """The module, with this GPU as the current device."""
        self.activate()
        return self._cupy

    @property
    def xp(self) -> Any:
        self.activate()
        return self._xp

    @property
    def math(self) -> Any:
        self.activate()
        return super().math

    @property
    def fast(self) -> Any:
        return self._ops

    def activate(self) -> None:
        if self._several and self._cupy.cuda.runtime.getDevice() != self.number:
            self._cupy.cuda.runtime.setDevice(self.number)

    @staticmethod
    def number_of(array: Any) -> int:
        return int(getattr(array.device, "id", 0))

    @contextmanager
    def guard(self) -> Iterator[None]:
        self.activate()
        with super().guard():
            yield

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        with self.guard():
            if self._several and isinstance(x, self._cupy.ndarray) and self.number_of(x) != self.number:
                x = self._cupy.asnumpy(x)
            return self.cupy.asarray(x, dtype=dtype)

    def to_host(self, x: Any) -> np.ndarray:
        with self.guard():
            return np.asarray(self.cupy.asnumpy(x))

    def to_host_all(self, arrays: Iterable[Any]) -> list[np.ndarray]:
        """Return arrays as NumPy arrays. Waits for the GPU once, and again after each 64 MiB.

        Where CuPy's memory has a limit, it waits after smaller parts.
        """
        done, waiting, size = list[np.ndarray](), list[Any](), 0
        limit = self.cupy.get_default_memory_pool().get_limit()
        together = min(_TOGETHER, limit // _SHARE) if limit else _TOGETHER
        with self.guard():
            for array in arrays:
                given = self.cupy.asarray(array)  # scaled integers become float32
                # A single number gets the shape (1,) from ascontiguousarray.
                waiting.append(self.cupy.ascontiguousarray(given).reshape(given.shape))
                size += array.nbytes
                if size >= together:
                    done += self._copies(waiting)
                    waiting, size = [], 0
            return done + self._copies(waiting)

    def _copies(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Copies of contiguous arrays on the host: all are begun, by way of pinned memory, before the one wait."""
        if 0 < sum(array.nbytes for array in arrays) <= _SMALL:
            return self._joined(arrays)
        starts = np.cumsum([0, *(-(-array.nbytes // 16) * 16 for array in arrays)])
        if not starts[-1]:
            return [np.empty(array.shape, array.dtype) for array in arrays]
        memory, stream = (
            self.cupy.cuda.alloc_pinned_memory(int(starts[-1])),
            self.cupy.cuda.get_current_stream(),
        )
        pinned = np.frombuffer(memory, np.uint8, int(starts[-1]))
        copies = []
        for array, start in zip(arrays, starts, strict=False):
            there = pinned[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            if array.size:
                array.get(stream=stream, out=there, blocking=False)
            copies.append(there)
        stream.synchronize()
        return [there.copy() for there in copies]

    def _joined(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Copies of small contiguous arrays on the host, by one copy of their bytes."""
        flat = [array.reshape(-1).view("uint8") for array in arrays]
        raw, ends = self._cupy.concatenate(flat).get(), np.cumsum([part.size for part in flat])
        parts = zip(np.split(raw, ends[:-1]), arrays, strict=True)
        return [part.copy().view(array.dtype).reshape(array.shape) for part, array in parts]

    def exchanged(self, x: Any, change: Callable[[np.ndarray], object]) -> Any:
        """As `Backend.exchanged`, by way of pinned memory that this thread keeps.

        What a call copies from there to the GPU has arrived before the next call writes to it: that one waits for the
        stream, and so does leaving a `stream` block.
        """
        if not x.size:
            return super().exchanged(x, change)
        with self.guard():
            if (kept := getattr(self._own, "pinned", None)) is None or kept.size < x.nbytes:
                if kept is not None:  # it may be given to another thread
                    self.cupy.cuda.get_current_stream().synchronize()
                memory = self.cupy.cuda.alloc_pinned_memory(x.nbytes)
                kept = self._own.pinned = np.frombuffer(memory, np.uint8, x.nbytes)
            numbers = kept[: x.nbytes].view(x.dtype).reshape(x.shape)
            self.cupy.ascontiguousarray(x).reshape(x.shape).get(out=numbers)
            change(numbers)
            there = self.cupy.empty(x.shape, x.dtype)
            there.set(numbers, self.cupy.cuda.get_current_stream())
            return there

    def explained(self, error: Exception) -> XnnError | None:
        """Return xnn's error for an exception of memory, CUDA or cuBLAS; None for any other exception."""
        advice = self.memory_advice, self.lost_advice
        return super().explained(error) or device_error(self._cupy, error, self.name, *advice)

    def bits(self, x: Any, dtype: str) -> Any:
        return x.view(dtype)

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        array = self.cupy.empty(shape, dtype)
        if like is not None:
            array[...] = like
        return array

    def finite(self, arrays: Sequence[Any]) -> bool:
        """Whether every element is finite: counted by one kernel, where CuPy compiles several for half a minute."""
        kernel = importlib.import_module("xnn.backends.kernels.cuda.finite")
        with self.guard():
            ours = [array for array in arrays if kernel.can_count(array)]
            others = [array for array in arrays if not kernel.can_count(array)]
            return bool(kernel.all_finite(ours)) and super().finite(others)

    def kernels(self, name: str = "auto") -> KernelTable:
        """Return the table of kernels of this name.

        name: "cuda" (kernels in CUDA C++, captured in graphs); "ops" (no kernels); or "auto": "cuda" if cuBLAS can be
            called, else "ops". With several workers the answer is always "ops".

        Raises OptionError for another name, and BackendUnavailableError if "cuda" is asked for and cannot run.
        """
        if communicator() is not None:
            return super().kernels("ops" if is_one_of(name, ("auto", "cuda")) else name)
        if not is_one_of(name, ("auto", "cuda")):
            return super().kernels(name)
        try:
            if current_numerics() == "exact":
                return self._exact_table()
            return importlib.import_module("xnn.backends.kernels.cuda.table").CudaTable()  # type: ignore[no-any-return]
        except BackendUnavailableError:
            if name == "cuda":
                raise
            return KernelTable()

    def _exact_table(self) -> KernelTable:
        package = "xnn.backends.exact.kernels"
        table = importlib.import_module(f"{package}.cuda_table").ExactCudaTable()
        importlib.import_module(f"{package}.cuda_check").check(self)
        return table  # type: ignore[no-any-return]

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run a block's work on a stream of this thread, which can be captured. Waits at both ends."""
        current, own = self.cupy.cuda.get_current_stream(), getattr(self._own, "stream", None)
        if own is None:
            own = self._own.stream = self.cupy.cuda.Stream(non_blocking=True)
        if current == own:
            yield
            return
        current.synchronize()  # this stream would not wait for work on the default one
        with own:
            try:
                yield
            except BaseException:
                with suppress(Exception):  # the first error says more
                    own.synchronize()
                raise
            own.synchronize()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Run a block, and say so once if CuPy is still compiling in it after a second."""
        done = threading.Event()
        watch = threading.Thread(target=_tell_of_compiling, args=(threading.get_ident(), done), daemon=True)
        try:
            watch.start()
            yield
        finally:
            done.set()

    def synchronize(self) -> None:
        with self.guard():
            self.cupy.cuda.get_current_stream().synchronize()

    def memory(self) -> dict[str, int]:
        """Return bytes: `used` by arrays, `peak` taken from the device by CuPy's pools, `total` on the device."""
        pool = self.cupy.get_default_memory_pool()
        used = pool.used_bytes() + sum(memory.pool.used_bytes() for memory in MEMORIES)
        _, total = self.cupy.cuda.runtime.memGetInfo()
        peak = pool.total_bytes() + PEAKS.get(self.number, 0)
        return {"used": int(used), "peak": int(peak), "total": int(total)}

    def free_memory(self) -> int:
        """Return how many bytes arrays can still take, on the GPU and in CuPy's pool, which is emptied."""
        pool = self.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        (free, _), limit = self.cupy.cuda.runtime.memGetInfo(), pool.get_limit()
        free += pool.free_bytes()  # pieces of blocks of which the rest is used
        return int(min(free, limit - pool.used_bytes()) if limit else free)

    @contextmanager
    def measured(self) -> Iterator[Measured]:
        """Measure how much memory CuPy's pools hand out in a block; 0 if arrays do not come from a pool."""
        result, there = Measured(), 0

        class Hook(self.cupy.cuda.MemoryHook):  # type: ignore[misc, name-defined]
            name = "xnn"

            def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
                nonlocal there
                there += mem_size
                result.peak = max(result.peak, there)

            def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
                nonlocal there
                there -= mem_size

        with Hook():
            yield result

    def blas(self) -> str:
        return str(importlib.import_module("xnn.backends.kernels.cuda.cublas").description())

    def describe(self) -> dict[str, str]:
        known = versions(self.cupy)
        return {
            "library": f"cupy {self.cupy.__version__}",
            "device": name_of(self.cupy.cuda.runtime.getDeviceProperties(self.number)),
            "cuda": known["runtime"],
            "driver": known["driver"],
        }

    def probe(self) -> None:
        """Check a 2x2 product (by cuBLAS) and an elementwise kernel (by CUDA's run-time compiler)."""
        cupy = self.cupy
        try:
            a = cupy.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=cupy.float32)
            product = cupy.asnumpy(cupy.matmul(a, a))
        except Exception as error:
            raise BackendUnavailableError(f"cupy: the matrix product failed: {reason(error)}") from error
        try:
            values = cupy.asnumpy(cupy.maximum(a, 2.5) + 1.0)
        except Exception as error:
            raise BackendUnavailableError(f"cupy: compiling a kernel failed: {reason(error)}") from error
        for what, got, right in (
            ("a product", product.tolist(), [[7.0, 10.0], [15.0, 22.0]]),
            ("max(a, 2.5) + 1", values.tolist(), [[3.5, 3.5], [4.0, 5.0]]),
        ):
            if got != right:
                raise BackendUnavailableError(
                    f"cupy: the GPU computed {got} for {what}, which is {right}: "
                    "check the device (nvidia-smi) and reinstall CuPy"
                )


def _tell_of_compiling(thread: int, done: threading.Event) -> None:
    """Print a line when a thread is in CuPy's compiler after a second, once a process. Stops when `done` is set."""
    if done.wait(_LONG):
        return
    while not _is_compiling(thread):
        if done.wait(0.1):
            return
    if not _told.is_set():
        _told.set()
        in_memory = os.environ.get("CUPY_CACHE_IN_MEMORY", "").strip() == "1"
        kept = (
            "only this run has them, since CUPY_CACHE_IN_MEMORY is 1"
            if in_memory
            else "CuPy keeps them for the next run"
        )
        notice(f"xnn: kernels are compiled for this GPU; {kept}")


def _is_compiling(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILER):
            return True
        frame = frame.f_back
    return False
