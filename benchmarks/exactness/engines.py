"""Array libraries that add and multiply in other orders than NumPy. Exact numerics must give the same bits on each.

shuffled   NumPy; products and sums add their terms in random order
outer      NumPy; products are sums of rank-1 updates
int64      NumPy; float64 products and sums are computed in integers
flushed    NumPy on a processor that is set to treat subnormal numbers as zero
torch      PyTorch's tensors on the CPU

`install` makes one the current backend of the whole process; nothing else should run in that process. All use the
ops alone, without kernels, except flushed, which can use NumPy's kernels.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends import Backend, Stream, get_backend, registry
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.numpy_backend import NumpyBackend
from xnn.backends.threads import blas_libraries
from xnn.errors import BackendUnavailableError, OptionError

__all__ = ["ENGINES", "Flushed", "Int64", "Outer", "Shuffled", "Torch", "install", "ran"]

_EXACT_INTEGERS = 2**53


class Namespace:
    """An array namespace with some functions replaced and the functions in `hidden` removed."""

    def __init__(self, base: Any, hidden: tuple[str, ...] = (), **replaced: Callable[..., Any]) -> None:
        self._base, self._hidden = base, hidden
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(name)
        return getattr(self._base, name)


class _Reordered(NumpyBackend):
    """NumPy with other products and sums of float32 and float64. Subclasses override `product` and `sum`."""

    def __init__(self) -> None:
        super().__init__()
        self.xp = Namespace(np, matmul=self.matmul, sum=self.sum)

    def matmul(self, a: Any, b: Any, /) -> Any:
        """a @ b. Products of vectors and matrices are computed by `product`, batches of matrices by NumPy."""
        a, b = np.asarray(a), np.asarray(b)
        left, right = (a[None, :] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
        if left.ndim > 2 or right.ndim > 2 or left.shape[1] != right.shape[0]:
            return np.matmul(a, b)
        return self.product(left, right).reshape(np.matmul(a[..., :0], b[:0]).shape)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a @ b of two matrices."""
        return np.asarray(np.matmul(a, b))

    def sum(self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        return np.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)

    def kernels(self, name: str = "auto") -> KernelTable:
        """An empty table: kernels call NumPy itself and would not use this namespace."""
        return KernelTable()


class Shuffled(_Reordered):
    """NumPy that adds the terms of each product and sum in a new random order; products in up to five blocks."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        terms = a.shape[1]
        order = self.random.permutation(terms)
        cuts = np.sort(self.random.integers(0, terms + 1, size=int(self.random.integers(0, 5))))
        blocks = np.split(order, cuts)
        total = np.zeros((a.shape[0], b.shape[1]), dtype=np.result_type(a, b))
        for place in self.random.permutation(len(blocks)):
            total = np.matmul(a[:, blocks[place]], b[blocks[place]]) + total
        return total

    def sum(self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        x = np.asarray(x)
        for place in range(x.ndim) if axis is None else np.atleast_1d(axis):
            x = np.take(x, self.random.permutation(x.shape[place]), axis=place)
        return super().sum(x, axis=axis, dtype=dtype, keepdims=keepdims)


class Outer(_Reordered):
    """NumPy with products as sums of rank-1 updates, last first: without BLAS and without fused multiply-add."""

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = np.zeros((a.shape[0], b.shape[1]), dtype=np.result_type(a, b))
        for k in range(a.shape[1] - 1, -1, -1):
            total += a[:, k, None] * b[None, k]
        return total

    def sum(self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        x = np.asarray(x)
        return super().sum(np.flip(x, axis), axis=axis, dtype=dtype, keepdims=keepdims)


class Int64(_Reordered):
    """NumPy with float64 products and sums in int64 arithmetic, which does not round.

    Raises AssertionError where a sum could exceed 2^53: exact numerics promise float64 sums without rounding.
    float32 products, for which nothing is promised, are computed in float64 and rounded once.
    """

    #: The largest sum of absolute values so far, as an integer in units of the smallest nonzero bit.
    largest = 0

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.result_type(a, b) != np.float64:
            wide = np.matmul(a.astype(np.float64), b.astype(np.float64))
            return np.asarray(wide.astype(np.result_type(a, b)))
        (left, scale_left), (right, scale_right) = _integers(a, 1), _integers(b, 0)
        # The bound is computed in float64: an integer product would overflow without notice.
        self._check(np.matmul(np.abs(left).astype(np.float64), np.abs(right).astype(np.float64)), "product")
        total = np.ldexp(np.matmul(left, right).astype(np.float64), scale_left + scale_right)
        unknown = ~(np.isfinite(a).all(1, keepdims=True) & np.isfinite(b).all(0, keepdims=True))
        return np.asarray(np.where(unknown, np.nan, total))

    def sum(self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        x = np.asarray(x)
        if x.dtype != np.float64 or x.size == 0:
            return super().sum(x, axis=axis, dtype=dtype, keepdims=keepdims)
        whole, scale = _integers(x, axis)
        self._check(np.sum(np.abs(whole).astype(np.float64), axis=axis), "sum")
        total = np.ldexp(np.sum(whole, axis=axis, keepdims=True).astype(np.float64), scale)
        total = np.where(np.isfinite(x).all(axis=axis, keepdims=True), total, np.nan)
        return total if keepdims else np.squeeze(total, axis)[()]

    def _check(self, bounds: Any, what: str) -> None:
        largest = int(np.max(bounds, initial=0.0))
        self.largest = max(self.largest, largest)
        if largest > _EXACT_INTEGERS:
            raise AssertionError(f"a {what} of integers can reach {largest}, and 2**53 is the limit")


def _integers(x: np.ndarray, axis: Any) -> tuple[np.ndarray, np.ndarray]:
    """Integers i and exponents s with x = i * 2^s, one s along `axis`. NaN and infinities become 0."""
    x = np.where(np.isfinite(x), x, 0.0)
    mantissa, exponent = np.frexp(x)
    bits = (mantissa * 2.0**53).astype(np.int64)
    zeros = np.frexp((bits & -bits).astype(np.float64))[1] - 1
    last = np.where(bits == 0, 2000, exponent - 53 + zeros)
    scale = np.min(last, axis=axis, keepdims=True, initial=2000)
    scale = np.where(scale == 2000, 0, scale)
    whole = np.ldexp(x, -scale)
    if not (np.abs(whole) <= 2.0**62).all():
        raise AssertionError("numbers of one row differ by more than 62 bits: they were not sliced")
    return whole.astype(np.int64), scale


class Flushed(NumpyBackend):
    """NumPy, with its kernels, in a thread that treats subnormal numbers as zero (flush-to-zero).

    Some GPU compilers do so by default, and some libraries set it on the CPU. Raises BackendUnavailableError if the
    mode cannot be set on this machine.
    """

    def __init__(self) -> None:
        super().__init__()
        flush_subnormals()
        if not flushes():
            raise BackendUnavailableError(
                "flushed: this processor keeps subnormal numbers although flush-to-zero was set"
            )


# stmxcsr [rsp-4]; or dword [rsp-4], 0x8040; ldmxcsr [rsp-4]; ret: bits 15 (flush to zero) and 6 (denormals are zero).
_SET_X86 = bytes.fromhex("0fae5c24fc 814c24fc40800000 0fae5424fc c3")


def flush_subnormals() -> None:
    """Set flush-to-zero and denormals-are-zero in this thread's control register, by a few bytes of machine code.

    Raises BackendUnavailableError on systems other than Linux on x86-64, or where memory cannot be executed.
    """
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        raise BackendUnavailableError("flushed: it works on Linux on x86-64 only")
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise BackendUnavailableError(
            f"flushed: this system does not allow executable memory ({error})"
        ) from error
    page.write(_SET_X86)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    ctypes.CFUNCTYPE(None)(address)()


def flushes() -> bool:
    """Whether float32 subnormals are treated as zero, both as inputs and as results."""
    small = np.full(64, 1 << 22, dtype=np.uint32).view(
        np.float32
    )  # from its bits: a conversion would flush it
    least = np.full(64, 1.5e-38, dtype=np.float32)
    return not (small * np.float32(1e30)).any() and not (least * np.float32(0.5)).any()


class Torch(Backend):
    """PyTorch's tensors on the CPU, through array-api-compat. Raises BackendUnavailableError without PyTorch."""

    name = "torch"

    def __init__(self) -> None:
        try:
            self.torch = importlib.import_module("torch")
        except ImportError as error:
            raise BackendUnavailableError("torch: PyTorch is not installed: pip install torch") from error
        base = importlib.import_module("array_api_compat.torch")
        # PyTorch's float64 square root is MKL's, which is not correctly rounded. Its scatter_add has other arguments.
        self.xp = Namespace(
            base, hidden=("scatter_add",), sqrt=lambda x: self.to_device(np.sqrt(self.to_host(x)))
        )
        # PyTorch computes number / tensor as number * (1 / tensor), which rounds twice.
        self.torch.Tensor.__rtruediv__ = lambda x, number: self.torch.full_like(x, number) / x

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        """A copy of x as a tensor. A tensor is returned as it is."""
        if not isinstance(x, self.torch.Tensor):
            x = self.torch.from_numpy(np.array(x, order="C"))
        return x if dtype is None else x.to(getattr(self.torch, dtype))

    def to_host(self, x: Any) -> np.ndarray:
        """The tensor's memory as a NumPy array."""
        return np.asarray(x.numpy() if isinstance(x, self.torch.Tensor) else x)

    def bits(self, x: Any, dtype: str) -> Any:
        return x.view(getattr(self.torch, dtype))

    def keep_mask(self, stream: Stream, shape: tuple[int, ...], rate: float, row: int = 0) -> Any:
        # Drawn by NumPy: PyTorch has few operations on uint64.
        return self.to_device(NumpyBackend().keep_mask(stream, shape, rate, row))

    def signed(self, stream: Stream, shape: tuple[int, ...], row: int = 0) -> Any:
        return self.to_device(NumpyBackend().signed(stream, shape, row))

    def memory(self) -> dict[str, int]:
        return NumpyBackend().memory()

    def describe(self) -> dict[str, str]:
        """The version of PyTorch, and the CPU instructions that its kernels use."""
        return {
            "library": f"torch {self.torch.__version__}",
            "device": self.torch.backends.cpu.get_cpu_capability(),
        }

    def probe(self) -> None:
        """Raises BackendUnavailableError if a 2x2 product is wrong."""
        a = self.to_device([[1.0, 2.0], [3.0, 4.0]])
        if self.to_host(a @ a).tolist() != [[7.0, 10.0], [15.0, 22.0]]:
            raise BackendUnavailableError("torch: a 2x2 product is wrong; reinstall PyTorch")


#: Each engine's name and class. The subclasses of NumpyBackend take NumPy's place.
ENGINES: dict[str, type[Backend]] = {
    "shuffled": Shuffled,
    "outer": Outer,
    "int64": Int64,
    "flushed": Flushed,
    "torch": Torch,
}


def install(name: str) -> Backend:
    """Make an engine or a backend current for the whole process, and return it.

    name: a key of ENGINES, or the name of a backend.
    Raises BackendUnavailableError if it cannot run here, OptionError for an unknown name.
    """
    if name not in ENGINES:
        if name not in registry.backend_names():
            raise OptionError(
                f"no engine is called {name!r}; choose {', '.join((*registry.backend_names(), *ENGINES))}"
            )
        registry.use_backend(name)
        return get_backend(name)
    engine = ENGINES[name]()
    registry._owners.clear()
    registry._instances[engine.name] = engine
    if engine.name not in registry._REGISTRY:
        registry._REGISTRY[engine.name] = __name__, type(engine).__name__, engine.name
        registry._NAME_OF_MODULE[engine.name] = engine.name
    registry.use_backend(engine.name)
    return engine


def ran(engine: Backend) -> str:
    """The library that computes products on this engine, in words: BLAS, its kernel and its number of threads."""
    if isinstance(engine, Torch):
        return "{library} {device}".format(**engine.describe()) + f" x{engine.torch.get_num_threads()}"
    if not engine.is_host and engine.name == "cupy":
        return "{library} {device}".format(**engine.describe())
    found = blas_libraries()
    if not found:
        return "a BLAS unknown to threadpoolctl"
    return ", ".join(f"{b['internal_api']} {b['architecture']} x{b['num_threads']}" for b in found)
