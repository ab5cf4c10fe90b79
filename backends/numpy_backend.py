"""The NumPy backend, the default one, on the CPU. `xp` is NumPy itself, an Array API namespace since version 2."""

from __future__ import annotations

import importlib
import importlib.util
import math
import platform
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn.backends.base import Backend, Measured
from xnn.backends.communicator import communicator
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.memory import free_memory, peak_resident_bytes
from xnn.backends.numerics import current_numerics
from xnn.backends.random import Stream
from xnn.errors import BackendUnavailableError, MissingExtraError
from xnn.options import is_one_of

__all__ = ["NumpyBackend"]


class NumpyBackend(Backend):
    """Arrays in host memory; matrix products by the BLAS that NumPy was built with."""

    name = "numpy"
    is_host = True
    memory_advice = "Try a smaller batch_size, or close other programs."
    room_advice = "close other programs, or use a smaller model"

    def __init__(self) -> None:
        self.xp = np

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        return np.asarray(x, dtype=dtype)

    def to_host(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def finite(self, arrays: Sequence[Any]) -> bool:
        return all(bool(np.isfinite(a).all()) for a in arrays)

    def stacked(self, numbers: Sequence[Any]) -> np.ndarray:
        return np.array(numbers, np.float64)

    def bits(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).view(dtype)

    def memory(self) -> dict[str, int]:
        """Return the peak resident memory of the process: NumPy does not count its own."""
        peak = peak_resident_bytes()
        return {"used": peak, "peak": peak, "total": 0}

    def free_memory(self) -> int:
        return free_memory()

    @contextmanager
    def measured(self) -> Iterator[Measured]:
        """Measure how much memory Python and NumPy take in a block, which runs slower meanwhile."""
        result, began = Measured(), not tracemalloc.is_tracing()
        if began:
            tracemalloc.start()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        try:
            yield result
        finally:
            result.peak = tracemalloc.get_traced_memory()[1] - before
            if began:
                tracemalloc.stop()

    def describe(self) -> dict[str, str]:
        # On Linux `platform.processor` starts a program, which says the same.
        processor = "" if sys.platform == "linux" else platform.processor()
        return {"library": f"numpy {np.__version__}", "device": processor or platform.machine()}

    def probe(self) -> None:
        a = np.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
        if not np.array_equal(np.matmul(a, a) + 1.0, [[8.0, 11.0], [16.0, 23.0]]):
            raise BackendUnavailableError("numpy: a 2x2 product came out wrong; reinstall numpy")

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        """Allocate an array aligned to 64 bytes, a cache line: a copy of `like`, or uninitialised."""
        count, dtype = math.prod(shape), np.dtype(dtype)
        raw = np.empty(count * dtype.itemsize + 64, np.uint8)
        start = -raw.ctypes.data % 64
        array = raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
        if like is not None:
            array[...] = like
        return array

    def kernels(self, name: str = "auto") -> KernelTable:
        """Return the table of kernels of this name.

        name: "numpy"; "compiled" (loops that Numba compiles; needs the extra `fast`); "ops" (no kernels); or "auto":
            "compiled" if Numba is installed and works, else "numpy".

        Where workers share what is computed now, in exact numerics, the answer is always "ops". A Trainer that shares
            batches has kernels that talk to the others (`training/sharing.py`).
        Raises OptionError for another name, and MissingExtraError or BackendUnavailableError if "compiled" is asked
        for and does not work here.
        """
        if current_numerics() == "exact" and communicator() is not None:
            name = "ops"
        if name == "auto" and importlib.util.find_spec("numba") is None:
            return self.kernels("numpy")
        if name == "numpy":
            if current_numerics() == "exact":
                return self._exact_table("numpy_passes", "numpy")
            return importlib.import_module("xnn.backends.kernels.numpy_kernels").NUMPY_KERNELS  # type: ignore[no-any-return]
        if not is_one_of(name, ("auto", "compiled")):
            return super().kernels(name)
        try:
            if current_numerics() == "exact":
                numba = importlib.import_module("numba")
                return self._exact_table("compiled_passes", f"compiled (numba {numba.__version__})")
            return importlib.import_module("xnn.backends.kernels.compiled_kernels").CompiledTable()  # type: ignore[no-any-return]
        except (ImportError, BackendUnavailableError) as error:
            _raise_interrupt(error)
            # For example a Numba that does not support this NumPy yet. The execution plan names the table in use.
            if name == "auto":
                return self.kernels("numpy")
            if isinstance(error, BackendUnavailableError):
                raise
            raise MissingExtraError(
                f'kernels="compiled" needs Numba, which cannot be imported ({error}): pip install ".[fast]" in a '
                "clone of xnn"
            ) from error

    def _exact_table(self, passes: str, name: str) -> KernelTable:
        package = "xnn.backends.exact.kernels"
        table = importlib.import_module(f"{package}.exact_kernels").ExactTable
        return table(self, importlib.import_module(f"{package}.{passes}"), name)  # type: ignore[no-any-return]

    # The two draws below give the bits of Backend's, faster, by NumPy's own Philox generator.

    def keep_mask(self, stream: Stream, shape: tuple[int, ...], rate: float, row: int = 0) -> Any:
        width = math.prod(shape[1:])
        return stream.keep(row * width, shape[0] * width, rate).reshape(shape)

    def signed(self, stream: Stream, shape: tuple[int, ...], row: int = 0) -> Any:
        width = math.prod(shape[1:])
        return stream.signed(row * width, shape[0] * width).reshape(shape)


def _raise_interrupt(error: BaseException) -> None:
    """Raise the KeyboardInterrupt that an error came of: extension modules turn Ctrl-C into an ImportError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__
