"""Matrix products by cuBLAS, on a handle of our own.

CuPy refuses its own handle while a stream is captured. On this one a product is C <- A B, or C <- C + alpha A B with
an alpha that is read from the GPU's memory, so that a captured update follows the learning rate. TF32 is off.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, finalize

from xnn.backends.cupy_failures import first_line
from xnn.backends.kernels.cuda.launch import address, cupy
from xnn.errors import BackendUnavailableError

__all__ = ["Cublas", "Product", "cublas_of", "library"]

#: Bytes of scratch memory, NVIDIA's recommendation for Hopper. cuBLAS would allocate its own during a capture.
_WORKSPACE = 32 << 20
_HOST, _DEVICE = 0, 1  # cublasPointerMode_t
_PLAIN, _TRANSPOSED = 0, 1  # cublasOperation_t
_DEFAULT, _PEDANTIC = 0, 2  # cublasMath_t


@cache
def library() -> Any:
    """The cuBLAS that CuPy uses. Raises BackendUnavailableError if it cannot be loaded."""
    found: list[str] = []
    try:
        major = cupy().cuda.runtime.runtimeGetVersion() // 1000
        found = [f"cublas64_{major}.dll"] if os.name == "nt" else [f"libcublas.so.{major}"]
        return ctypes.CDLL(found[0])  # CuPy has loaded it, so that its name is enough
    except OSError:
        pass
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:
        raise BackendUnavailableError(
            f"cupy: cuBLAS ({', '.join(found)}) cannot be loaded for kernels: {first_line(error)}. "
            'Use kernels="ops", or reinstall CuPy with its libraries: pip install "cupy-cuda13x[ctk]"'
        ) from error


def _failure(what: str, status: int) -> Exception:
    """CuPy's exception for a status of cuBLAS, with the name of what failed."""
    error: Exception = importlib.import_module("cupy_backends.cuda.libs.cublas").CUBLASError(status)
    error.args = (f"{what} failed: {error}",)
    return error


class Cublas:
    """A handle of cuBLAS, for one stream at a time.

    exact: whether products are rounded as IEEE 754 says (CUBLAS_PEDANTIC_MATH), whatever the environment asks for.
    """

    def __init__(self, exact: bool = False) -> None:
        self.library, self.handle = library(), ctypes.c_void_p()
        self.check("cublasCreate_v2", ctypes.byref(self.handle))
        self.workspace = cupy().empty(_WORKSPACE, "uint8")
        self.check("cublasSetMathMode", self.handle, _PEDANTIC if exact else _DEFAULT)
        self._mode = _HOST
        #: The numbers 0 and 1 on the host, and 1 on the GPU, of both dtypes.
        self.numbers = {
            "float32": (ctypes.c_float(0), ctypes.c_float(1), cupy().ones(1, "float32")),
            "float64": (ctypes.c_double(0), ctypes.c_double(1), cupy().ones(1, "float64")),
        }

    def use(self, stream: Any) -> None:
        """Compute on this stream from now on."""
        self.check("cublasSetStream_v2", self.handle, ctypes.c_void_p(stream.ptr))
        # After the stream: setting the stream takes the workspace away.
        place, size = ctypes.c_void_p(address(self.workspace)), ctypes.c_size_t(_WORKSPACE)
        self.check("cublasSetWorkspace_v2", self.handle, place, size)

    def check(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises CuPy's CUBLASError with its name if it fails."""
        status = getattr(self.library, name)(*arguments)
        if status:
            raise _failure(name, status)

    def set_pointer_mode(self, mode: int) -> None:
        """Set where alpha and beta are read from."""
        if mode != self._mode:
            self.check("cublasSetPointerMode_v2", self.handle, mode)
            self._mode = mode


#: By stream, and by number of the device, since all devices have the default stream, and numerics.
_handles: WeakKeyDictionary[Any, dict[tuple[int, bool], Cublas]] = WeakKeyDictionary()
#: By number of the device and numerics, the handles of streams that ended: a thread's stream ends with it.
_spare: defaultdict[tuple[int, bool], list[Cublas]] = defaultdict(list)


def cublas_of(stream: Any, exact: bool = False) -> Cublas:
    """The handle for a stream: that of a stream that ended, or a new one; another one for exact numerics."""
    handles, key = _handles.setdefault(stream, {}), (int(cupy().cuda.Device().id), exact)
    if key not in handles:
        spare = _spare[key]
        found = spare.pop() if spare else Cublas(exact)
        found.use(stream)
        handles[key] = found
        finalize(stream, spare.append, found)
    return handles[key]


class Product:
    """The matrix product c <- a b, or c <- c + alpha a b; calling it launches it.

    a, b, c: contiguous matrices (rows, columns) of one dtype, float32 or float64. turned: which of a and b are
    transposed in the product. alpha: None, or a function that returns the address of a number of this dtype in the
    GPU's memory.
    """

    def __init__(
        self,
        cublas: Cublas,
        a: Any,
        b: Any,
        c: Any,
        turned: Sequence[bool] = (False, False),
        alpha: Callable[[], int] | None = None,
    ) -> None:
        dtype = str(c.dtype)
        self._cublas, self._alpha, self.held = cublas, alpha, (a, b, c)
        self._mode = _HOST if alpha is None else _DEVICE
        zero, one, one_there = cublas.numbers[dtype]
        self._factor = ctypes.c_void_p(ctypes.addressof(one))
        beta = ctypes.c_void_p(ctypes.addressof(zero) if alpha is None else address(one_there))
        (rows, columns), inner = c.shape, a.shape[0 if turned[0] else 1]
        flags = [_TRANSPOSED if turn else _PLAIN for turn in turned]
        # cuBLAS counts by columns: it computes the transposed product, c^T = b^T a^T.
        left, right, out = (
            (ctypes.c_void_p(address(matrix)), max(1, matrix.shape[1])) for matrix in (b, a, c)
        )
        sizes = flags[1], flags[0], columns, rows, inner
        self._arguments = (cublas.handle, *sizes, self._factor, *left, *right, beta, *out)
        self._call = getattr(cublas.library, "cublasSgemm_v2" if dtype == "float32" else "cublasDgemm_v2")
        self.name = f"{rows}x{inner} by {inner}x{columns}"

    def __call__(self) -> None:
        self._cublas.set_pointer_mode(self._mode)
        if self._alpha is not None:
            self._factor.value = self._alpha()
        status = self._call(*self._arguments)
        if status:
            raise _failure(f"the matrix product {self.name}", status)

    def __repr__(self) -> str:
        return f"<product {self.name}>"
