"""The CuPy backend, on an NVIDIA GPU.

Ops run as they are written, each operation as one of CuPy's own kernels. A Trainer's steps run by the CUDA kernels of
`xnn.backends.kernels.cuda`.

`import cupy` succeeds without a driver, and `cupy.show_config()` can name a cuBLAS that is missing. So the backend
counts as available only after a matrix product and an elementwise kernel have run. Each way of failing has its own
message.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.communicator import communicator
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.numerics import current_numerics
from xnn.errors import BackendUnavailableError
from xnn.options import is_one_of

__all__ = ["CupyBackend", "quick_diagnosis"]

_INSTALL = 'pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]" for a CUDA 12 driver)'
_CTK = 'reinstall with its libraries: pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]")'


class CupyBackend(Backend):
    """Arrays in the GPU's memory; `xp` is array-api-compat's namespace for CuPy."""

    name = "cupy"
    memory_advice: ClassVar[str] = "Try a smaller batch_size, or raise CUPY_GPU_MEMORY_LIMIT if it is set."

    def __init__(self) -> None:
        # cuBLAS reads this variable when it is first used. Emulated float64 products are not rounded as IEEE 754
        # asks, which exact numerics need. A user who sets the variable to 1 has emulation in fast numerics; the
        # self-check of exact numerics then refuses this backend.
        if current_numerics() == "exact":
            os.environ["CUBLAS_EMULATE_DOUBLE_PRECISION"] = "0"
        os.environ.setdefault("CUBLAS_EMULATE_DOUBLE_PRECISION", "0")
        self.cupy = import_cupy()
        check_driver(self.cupy)
        self.probe()
        self.xp = importlib.import_module("array_api_compat.cupy")
        # A stream for each thread, since a capture takes all that is given to its stream.
        self._own = threading.local()

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        with self.guard():
            return self.cupy.asarray(x, dtype=dtype)

    def to_host(self, x: Any) -> np.ndarray:
        return np.asarray(self.cupy.asnumpy(x))

    def read(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Return several small arrays as NumPy arrays, by one copy of their bytes."""
        if not arrays:
            return []
        flat = [self.cupy.ascontiguousarray(array).reshape(-1).view("uint8") for array in arrays]
        raw, ends = self.to_host(self.cupy.concatenate(flat)), np.cumsum([part.size for part in flat])
        parts = zip(np.split(raw, ends[:-1]), arrays, strict=True)
        return [part.view(array.dtype).reshape(array.shape) for part, array in parts]

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
            called, else "ops". In exact numerics, and with several workers, the answer is always "ops".

        Raises OptionError for another name, and BackendUnavailableError if "cuda" is asked for and cannot run.
        """
        if current_numerics() == "exact" or communicator() is not None:
            return super().kernels("ops" if is_one_of(name, ("auto", "cuda")) else name)
        if not is_one_of(name, ("auto", "cuda")):
            return super().kernels(name)
        try:
            return importlib.import_module("xnn.backends.kernels.cuda.table").CudaTable()  # type: ignore[no-any-return]
        except BackendUnavailableError:
            if name == "cuda":
                raise
            return KernelTable()

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
            finally:
                own.synchronize()

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def memory(self) -> dict[str, int]:
        """Return bytes: `used` by arrays, `peak` taken from the device by CuPy's pool, `total` on the device."""
        pool = self.cupy.get_default_memory_pool()
        _, total = self.cupy.cuda.runtime.memGetInfo()
        return {"used": int(pool.used_bytes()), "peak": int(pool.total_bytes()), "total": int(total)}

    def describe(self) -> dict[str, str]:
        runtime = self.cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        name = properties["name"]
        return {
            "library": f"cupy {self.cupy.__version__}",
            "device": name.decode() if isinstance(name, bytes) else str(name),
            "cuda": _cuda_version(runtime.runtimeGetVersion()),
            "driver": _cuda_version(runtime.driverGetVersion()),
        }

    def probe(self) -> None:
        """Check a 2x2 product (by cuBLAS) and an elementwise kernel (by CUDA's run-time compiler)."""
        cupy = self.cupy
        try:
            a = cupy.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=cupy.float32)
            product = cupy.asnumpy(cupy.matmul(a, a))
        except Exception as error:
            raise BackendUnavailableError(f"cupy: the matrix product failed: {_reason(error)}") from error
        try:
            values = cupy.asnumpy(cupy.maximum(a, 2.5) + 1.0)
        except Exception as error:
            raise BackendUnavailableError(f"cupy: compiling a kernel failed: {_reason(error)}") from error
        for what, got, right in (
            ("a product", product.tolist(), [[7.0, 10.0], [15.0, 22.0]]),
            ("max(a, 2.5) + 1", values.tolist(), [[3.5, 3.5], [4.0, 5.0]]),
        ):
            if got != right:
                raise BackendUnavailableError(
                    f"cupy: the GPU computed {got} for {what}, which is {right}: "
                    "check the device (nvidia-smi) and reinstall CuPy"
                )


def import_cupy() -> Any:
    """Import CuPy; raises BackendUnavailableError, which says what is wrong, if that fails."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cupy = importlib.import_module("cupy")
        except ModuleNotFoundError as error:
            if error.name != "cupy":
                raise BackendUnavailableError(
                    f"cupy: CuPy needs the package {error.name}, which is not installed: {_INSTALL}"
                ) from error
            raise BackendUnavailableError(f"cupy: CuPy is not installed: {_INSTALL}") from error
        except ImportError as error:
            raise BackendUnavailableError(
                f"cupy: CuPy cannot be imported: {_original(error)}. Uninstall it and {_INSTALL}"
            ) from error
        except Exception as error:  # such as "numpy.dtype size changed": a package built for another NumPy
            raise BackendUnavailableError(
                f"cupy: importing CuPy fails ({type(error).__name__}: {_original(error)}). "
                f"Uninstall it and {_INSTALL}"
            ) from error
    if any("multiple CuPy packages" in str(w.message) for w in caught):
        raise BackendUnavailableError(
            "cupy: several CuPy packages are installed and overwrite one another: "
            f"pip uninstall every cupy package, then {_INSTALL}"
        )
    return cupy


def check_driver(cupy: Any) -> None:
    """Raise BackendUnavailableError if there is no driver, if it is too old, or if no GPU is visible."""
    runtime = cupy.cuda.runtime
    try:
        driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except Exception as error:
        raise BackendUnavailableError(f"cupy: the CUDA runtime does not answer: {_reason(error)}") from error
    if driver == 0:
        raise BackendUnavailableError(
            "cupy: no NVIDIA driver found: install the GPU's driver (nvidia-smi shows it), "
            "or use XNN_BACKEND=numpy"
        )
    if driver // 1000 < needed // 1000:
        older = ', or pip install "cupy-cuda12x[ctk]"' if driver // 1000 == 12 else ""
        raise BackendUnavailableError(
            f"cupy: the NVIDIA driver supports CUDA {_cuda_version(driver)} and this CuPy needs "
            f"{_cuda_version(needed)}: update the driver{older}"
        )
    if not cupy.cuda.is_available():
        raise BackendUnavailableError(
            "cupy: there is a driver, but no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "or use XNN_BACKEND=numpy"
        )


def quick_diagnosis() -> str:
    """Return why CuPy cannot run here, as far as it shows without importing CuPy; "" if no reason is found."""
    if importlib.util.find_spec("cupy") is None:
        return f"cupy: CuPy is not installed: {_INSTALL}"
    import ctypes

    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
            return ""
        except OSError:
            continue
    return "cupy: no NVIDIA driver found: install the GPU's driver, or use XNN_BACKEND=numpy"


def _cuda_version(number: int) -> str:
    """Decode a version number of CUDA: 12080 is "12.8"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _original(error: BaseException) -> str:
    """Return the line of CuPy's import error that names the cause; the rest of it is a banner."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for here, line in enumerate(lines):
        if line.startswith("Original error"):
            rest = line.partition(":")[2].strip()
            return rest or (lines[here + 1] if here + 1 < len(lines) else line)
    return lines[0] if lines else type(error).__name__


def _reason(error: BaseException) -> str:
    """Return CuPy's own error message, and what to do about it."""
    text = f"{type(error).__name__}: {_original(error)}"
    if isinstance(error, MemoryError):
        return f"{text}; the GPU's memory is full: nvidia-smi shows which processes use it"
    if "headers" in str(error):
        return f"{text}; CUDA's headers are missing: {_CTK}"
    if isinstance(error, ImportError) or "DynamicLib" in type(error).__name__:
        return f"{text}; CUDA's libraries are missing: {_CTK}"
    return f"{text}; see xnn info --probe and nvidia-smi"
