"""NumPy on the CPU: the default backend. `xp` is NumPy itself, an Array API namespace since version 2."""

from __future__ import annotations

import importlib
import importlib.util
import math
import platform
import sys
from typing import Any

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.communicator import communicator
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.numerics import current_numerics
from xnn.backends.random import Stream
from xnn.errors import BackendUnavailableError, MissingExtraError

__all__ = ["NumpyBackend"]


class NumpyBackend(Backend):
    """Arrays in host memory, products through the BLAS that NumPy was built with."""

    name = "numpy"
    is_host = True
    memory_advice = "Try a smaller batch_size, or close other programs."

    def __init__(self) -> None:
        self.xp = np

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        """The array itself, or a NumPy array of the list; `dtype` converts."""
        return np.asarray(x, dtype=dtype)

    def to_host(self, x: Any) -> np.ndarray:
        """The array itself."""
        return np.asarray(x)

    def bits(self, x: Any, dtype: str) -> Any:
        """A view."""
        return np.asarray(x).view(dtype)

    def memory(self) -> dict[str, int]:
        """The process's peak resident memory; what NumPy alone uses is not counted by anyone."""
        peak = peak_resident_bytes()
        return {"used": peak, "peak": peak, "total": 0}

    def describe(self) -> dict[str, str]:
        """NumPy's version and the machine."""
        return {"library": f"numpy {np.__version__}", "device": platform.processor() or platform.machine()}

    def probe(self) -> None:
        """A 2x2 product, checked."""
        a = np.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
        if not np.array_equal(np.matmul(a, a) + 1.0, [[8.0, 11.0], [16.0, 23.0]]):
            raise BackendUnavailableError("numpy: a 2x2 product came out wrong; reinstall numpy")

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        """An array that begins at a multiple of 64 bytes, a cache line; a copy of `like`, or not yet filled."""
        count, dtype = math.prod(shape), np.dtype(dtype)
        raw = np.empty(count * dtype.itemsize + 64, np.uint8)
        start = -raw.ctypes.data % 64
        array = raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
        if like is not None:
            array[...] = like
        return array

    def kernels(self, name: str = "auto") -> KernelTable:
        """`numpy`, `compiled` (the extra `fast`), `ops`, or `auto`: compiled where it is installed and works.

        In exact numerics a batch that is split over workers is reduced by the ops alone.
        """
        if current_numerics() == "exact" and communicator() is not None:
            name = "ops"
        if name == "auto" and importlib.util.find_spec("numba") is None:
            return self.kernels("numpy")
        if name == "numpy":
            if current_numerics() == "exact":
                return self._exact_table("numpy_passes", "numpy")
            return importlib.import_module("xnn.backends.kernels.numpy_kernels").NUMPY_KERNELS  # type: ignore[no-any-return]
        if name not in ("auto", "compiled"):
            return super().kernels(name)
        try:
            if current_numerics() == "exact":
                numba = importlib.import_module("numba")
                return self._exact_table("compiled_passes", f"compiled (numba {numba.__version__})")
            return importlib.import_module("xnn.backends.kernels.compiled_kernels").CompiledTable()  # type: ignore[no-any-return]
        except (ImportError, BackendUnavailableError) as error:
            # Such as a Numba that does not know this NumPy yet; the plan names what is used.
            if name == "auto":
                return self.kernels("numpy")
            if isinstance(error, BackendUnavailableError):
                raise
            raise MissingExtraError(
                f'kernels="compiled" needs Numba: pip install ".[fast]" in a clone of xnn ({error})'
            ) from error

    def _exact_table(self, passes: str, name: str) -> KernelTable:
        package = "xnn.backends.exact.kernels"
        table = importlib.import_module(f"{package}.table").ExactTable
        return table(self, importlib.import_module(f"{package}.{passes}"), name)  # type: ignore[no-any-return]

    def keep_mask(self, stream: Stream, shape: tuple[int, ...], rate: float, row: int = 0) -> Any:
        """As the generic one, by NumPy's native Philox."""
        width = math.prod(shape[1:])
        return stream.keep(row * width, shape[0] * width, rate).reshape(shape)

    def signed(self, stream: Stream, shape: tuple[int, ...], row: int = 0) -> Any:
        """As the generic one, by NumPy's native Philox."""
        width = math.prod(shape[1:])
        return stream.signed(row * width, shape[0] * width).reshape(shape)


def peak_resident_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
