"""Ops without a CUDA kernel in captured steps: a graph records the operations that they ask of CuPy.

A graph keeps the addresses of arrays. So the arrays that are made while it is captured come from memory that nobody
else gets. CuPy refuses matrix products during a capture. They run on a handle of our own instead.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from xnn.backends.kernels.cuda.cublas import Cublas
from xnn.backends.kernels.cuda.launch import address, cupy

__all__ = ["MEMORIES", "PEAKS", "GraphMemory", "OpsNamespace", "matmul", "products_on"]

#: The memory of all graphs that are in use; and for each GPU, how many bytes all graphs had at most.
MEMORIES: WeakSet[GraphMemory] = WeakSet()
PEAKS: dict[int, int] = {}
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
#: For each dtype of a product, cudaDataType and cublasComputeType_t, with sums in that dtype and without TF32.
_TYPES = {"float32": (0, 68), "float64": (1, 70)}
_DEFAULT_ALGORITHM = -1
_on = threading.local()


class GraphMemory:
    """The memory of arrays that ops make while a graph is captured.

    A graph writes to these addresses whenever it is launched, also after the arrays are gone. So the memory goes back
    to the GPU only with this object, and no array outside of graphs gets it. The graphs of one stream can share it:
    none of them reads what another one has left there.
    """

    def __init__(self) -> None:
        cuda, held = cupy().cuda, list[Any]()
        self._held = held

        def allocate(size: int) -> Any:
            try:
                block = cuda.Memory(size)
            except cuda.runtime.CUDARuntimeError as error:
                if error.status != _OUT_OF_MEMORY:
                    raise
                cupy().get_default_memory_pool().free_all_blocks()
                block = cuda.Memory(size)
            held.append(block)  # the pool may give its blocks back when memory is short
            gpu, others = block.device_id, [each for memory in MEMORIES for each in memory._held]
            PEAKS[gpu] = max(PEAKS.get(gpu, 0), sum(each.size for each in others if each.device_id == gpu))
            return cuda.MemoryPointer(block, 0)

        self.pool = cuda.MemoryPool(allocate)
        MEMORIES.add(self)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let this thread's new arrays have this memory."""
        with cupy().cuda.using_allocator(self.pool.malloc):
            yield


@contextmanager
def products_on(cublas: Cublas) -> Iterator[None]:
    """Let the products of this thread's ops run on a handle."""
    before = getattr(_on, "cublas", None)
    _on.cublas = cublas
    try:
        yield
    finally:
        _on.cublas = before


class OpsNamespace:
    """The namespace in which ops compute: array-api-compat's, where graphs can hold some functions more.

    Its clip and sign choose elements by masks, for which the host must wait; these do not. Products run by a handle
    of our own within `products_on`.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._xp, name)
        setattr(self, name, found)  # the next time, Python finds it without a call
        return found

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Any:
        """x between two bounds, as the Array API's clip."""
        numbers = all(
            bound is None or (isinstance(bound, (int, float)) and bound == bound) for bound in (min, max)
        )
        if not numbers or not self.isdtype(x.dtype, "real floating"):
            return self._xp.clip(x, min, max)
        x = x if min is None else self.where(x < min, min, x)
        return x if max is None else self.where(x > max, max, x)

    def sign(self, x: Any) -> Any:
        """-1, 0 or 1 for each element, and NaN for NaN."""
        real = self.isdtype(x.dtype, "real floating")
        return self.where(x == x, cupy().sign(x), x) if real else self._xp.sign(x)

    def matmul(self, a: Any, b: Any) -> Any:
        """The matrix product of arrays of any number of axes, as the Array API's matmul."""
        cublas = getattr(_on, "cublas", None)
        if cublas is None or a.dtype != b.dtype or str(a.dtype) not in _TYPES or 0 in (a.ndim, b.ndim):
            return self._xp.matmul(a, b)
        return matmul(cublas, a, b)


def matmul(cublas: Cublas, a: Any, b: Any) -> Any:
    """The product of arrays (..., n, k) and (..., k, m) of one dtype, float32 or float64; as in NumPy without axes.

    Leading axes are broadcast.
    """
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"matmul of shapes {a.shape} and {b.shape}: the inner axes differ")
    lead = cupy().broadcast_shapes(left.shape[:-2], right.shape[:-2])
    out = cupy().empty((*lead, left.shape[-2], right.shape[-1]), a.dtype)
    if not left.shape[-1]:
        out[...] = 0
    elif out.size:
        _multiply(cublas, _with_leading(left, lead), _with_leading(right, lead), out)
    return out.reshape(lead + a.shape[-2:-1] + b.shape[1:][-1:])


def _with_leading(x: Any, lead: tuple[int, ...]) -> Any:
    """Matrices broadcast to the leading axes of their product; a single matrix stays as it is, for all products."""
    return x if x.ndim == 2 else cupy().broadcast_to(x, lead + x.shape[-2:])


def _multiply(cublas: Cublas, a: Any, b: Any, c: Any) -> None:
    """c <- a b: one product, or as many as the leading axes of c say."""
    # cuBLAS counts by columns: it computes the transposed product, c^T = b^T a^T.
    (right, turned_right), (left, turned_left) = _stored(b), _stored(a)
    rows, columns, inner = c.shape[-2], c.shape[-1], a.shape[-1]
    kind, compute = _TYPES[str(c.dtype)]
    zero, one, _ = cublas.numbers[str(c.dtype)]
    operands = [
        (ctypes.c_void_p(address(x)), kind, x.shape[-1], ctypes.c_longlong(_step(x)))
        for x in (right, left, c)
    ]
    cublas.set_pointer_mode(0)
    cublas.check(
        "cublasGemmStridedBatchedEx", cublas.handle, int(turned_right), int(turned_left), columns, rows, inner,
        ctypes.byref(one), *operands[0], *operands[1], ctypes.byref(zero), *operands[2],
        math.prod(c.shape[:-2]), compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip


def _stored(x: Any) -> tuple[Any, bool]:
    """The matrices as they lie in memory, and whether they are transposed there; a copy if they lie otherwise."""
    turned = x.swapaxes(-1, -2)
    if turned.flags.c_contiguous and not x.flags.c_contiguous:
        return turned, True
    return cupy().ascontiguousarray(x), False


def _step(x: Any) -> int:
    """The number of elements from one matrix to the next; 0 if there is one for all products."""
    return 0 if x.ndim == 2 else int(x.shape[-2] * x.shape[-1])
