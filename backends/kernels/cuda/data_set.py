"""The data of a fit as kernels read them: in the GPU's memory, or streamed there, some steps' rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from xnn.backends.kernels.cuda.launch import address, cupy
from xnn.backends.row_sources import is_mapped, is_on_host, reads_rows, row_blocks

__all__ = ["TO_DEVICE", "DataSet", "Resident", "Streamed"]

TO_DEVICE = 1  # cudaMemcpyHostToDevice
#: The most steps whose rows are copied together, and about how many bytes: also at most an eighth of the free memory.
_STEPS, _BYTES, _EIGHTH = 20, 2**25, 8
_SHARE = 0.5  # of the free memory: what data may take


class DataSet:
    """The arrays that batches are gathered from: `there` gives each one as kernels read it.

    The rule: the arrays of the host are copied to the GPU, once, if they take at most half of the memory that is free
    there. Larger ones are streamed. All of them are counted together: samples, targets and sample weights. The memory
    is asked for when the first program has its buffers: weights, gradients, the optimizer's arrays and a batch's
    values at every layer are not in it any more. The other half is for CUDA graphs, the last batch's program, the
    copy of the weights to go back to, and evaluation. Arrays on the GPU stay where they are.

    arrays: the data, of the host or the GPU. rows: of the largest batch. longest: how many steps a chunk can have.
    free_memory: gives the bytes that arrays can still take on the GPU, as CUPY_GPU_MEMORY_LIMIT allows it. None: all
    data are copied.
    """

    def __init__(
        self,
        arrays: Sequence[Any] = (),
        rows: int = 1,
        longest: int = 1,
        free_memory: Callable[[], int | None] | None = None,
    ) -> None:
        self.arrays, self.rows, self._free_memory = list(arrays), rows, free_memory
        self._on_host = {id(array): array for array in arrays if is_on_host(array)}
        self.size = sum(array.nbytes for array in self._on_host.values())
        #: The most steps in a chunk.
        self.steps = longest
        self.resident = Resident()
        self.streamed: Streamed | None = None
        #: Why data are streamed; "" if they are not.
        self.reason = ""

    def is_of(self, arrays: Sequence[Any], rows: int) -> bool:
        """Whether it was made for these arrays and this size of batches."""
        return (list(map(id, self.arrays)), self.rows) == (list(map(id, arrays)), rows)

    def streams(self, source: Any) -> bool:
        """Whether only the rows of a chunk are on the GPU. The first call decides for all arrays."""
        if id(source) not in self._on_host:
            return False
        if self._free_memory is not None:
            free, self._free_memory = self._free_memory(), None
            sequential = any(getattr(array, "sequential", False) for array in self._on_host.values())
            if sequential or (free is not None and self.size > _SHARE * free):
                batch = self.rows * sum(_row_bytes(array) for array in self._on_host.values())
                size = _BYTES if free is None else min(_BYTES, free // _EIGHTH)
                self.steps = min(self.steps, _STEPS, max(1, size // max(1, batch)))
                self.streamed = Streamed(self.steps * self.rows)
                self.reason = (
                    f"the data ({_mebibytes(self.size)}) take more than half of the memory that is free on the GPU "
                    f"({_mebibytes(free or 0)}): they are streamed from the host"
                )
                if sequential:
                    self.reason = "the data are a stream: some steps' rows at a time are copied to the GPU"
        return self.streamed is not None

    def there(self, source: Any) -> Any:
        """The array in the GPU's memory, contiguous: all of it, or the buffer that its rows are streamed to."""
        held = self.streamed if self.streams(source) else self.resident
        assert held is not None
        return held.there(source)

    def send(self, rows: np.ndarray, stream: Any) -> int:
        """Begin to copy these rows of the streamed arrays; work given to the stream from now on waits for them.

        Returns where the first of them will lie in the buffers of `there`; the others follow it.
        """
        return 0 if self.streamed is None else self.streamed.send(rows, stream)


class Resident:
    """Arrays in the GPU's memory, copied there once."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}

    def reload(self) -> None:
        """Copy again what was copied: the owner of an array may have written to it."""
        for source, array in self._held.values():
            if isinstance(source, np.ndarray) and not is_mapped(source):
                array.set(np.ascontiguousarray(source), stream=cupy().cuda.get_current_stream())
            elif is_on_host(source):
                _copy_by_blocks(source, array)
            elif source is not array:  # its contiguous copy
                array[...] = source

    def there(self, source: Any) -> Any:
        """The array in the GPU's memory, contiguous, and at an address where words of 4 bytes can be read."""
        if id(source) not in self._held:
            if reads_rows(source):
                array = _copy_by_blocks(source, cupy().empty(source.shape, source.dtype))
            else:
                array = cupy().ascontiguousarray(cupy().asarray(source))
            self._held[id(source)] = source, array.copy() if address(array) % 4 else array
        return self._held[id(source)][1]


class _Half:
    """One of the two halves of the buffers: memory of the host for each array, and two events.

    copied: the copies to the GPU are done, so that the host may write here again. read: the steps that read this half
    on the GPU are done, so that it may be overwritten there.
    """

    def __init__(self) -> None:
        self.copied, self.read = (cupy().cuda.Event(disable_timing=True) for _ in range(2))
        self.pinned: dict[int, np.ndarray] = {}


class Streamed:
    """Arrays on the host, of which the rows of a chunk of steps are on the GPU, and those of the chunk before.

    The rows of a chunk are gathered into pinned memory and copied on a stream of their own, while the GPU takes the
    steps of the chunk before. Buffers on the GPU have two halves, used in turn. Events keep the order: a copy waits
    for the steps that read its half before, and steps wait for their copy. The host waits for nothing but the copy
    before last, whose pinned memory it writes again.

    rows: of a half, for a whole chunk.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.copying = cupy().cuda.Stream(non_blocking=True)
        self._halves = [_Half(), _Half()]
        self._begins: int = 0  # the row where the next half begins
        self._held: dict[int, tuple[Any, Any]] = {}

    def __del__(self) -> None:
        # Pinned memory may be given to others now. An interrupted `send` may have left a copy that nobody waits for.
        with suppress(Exception):
            self.copying.synchronize()

    def there(self, source: Any) -> Any:
        """The buffer on the GPU: both halves, one after the other."""
        if id(source) not in self._held:
            shape = tuple(source.shape[1:])
            buffer = cupy().empty((2 * self.rows, *shape), source.dtype)
            for half in self._halves:
                memory = cupy().cuda.alloc_pinned_memory(buffer.nbytes // 2)
                flat = np.frombuffer(memory, source.dtype, buffer.size // 2)
                half.pinned[id(source)] = flat.reshape(self.rows, *shape)
                half.read.record()  # the buffer's memory may have been that of an array which kernels still read
            self._held[id(source)] = source, buffer
        return self._held[id(source)][1]

    def send(self, rows: np.ndarray, stream: Any) -> int:
        """Begin to copy these rows of each array; work given to the stream from now on waits for them.

        Returns where the first of them will lie in the buffers.
        """
        half, other = self._halves
        other.read.record(stream)  # behind the steps that read it, which were given to the stream last
        if not half.copied.done:
            half.copied.synchronize()
        for key, (source, _) in self._held.items():
            _take(source, rows, half.pinned[key][: len(rows)])
        self.copying.wait_event(half.read)
        copy = cupy().cuda.runtime.memcpyAsync
        for key, (source, buffer) in self._held.items():
            size = _row_bytes(source)
            to = address(buffer) + self._begins * size
            copy(to, half.pinned[key].ctypes.data, len(rows) * size, TO_DEVICE, self.copying.ptr)
        half.copied.record(self.copying)
        stream.wait_event(half.copied)
        first, self._begins = self._begins, self.rows - self._begins
        self._halves.reverse()
        return first


def _row_bytes(array: Any) -> int:
    return int(math.prod(array.shape[1:]) * array.dtype.itemsize)


def _copy_by_blocks(source: Any, array: Any) -> Any:
    """Copy an array that is read from files to the GPU, without holding all of it on the host. Returns the copy."""
    for start, block in row_blocks(source):
        array[start : start + len(block)] = cupy().asarray(np.ascontiguousarray(block))
    return array


def _take(source: Any, rows: np.ndarray, out: np.ndarray) -> None:
    """Copy rows of an array, and read nothing else of it: it may be a file's (numpy.memmap), larger than memory."""
    if isinstance(source, np.ndarray) and source.flags.c_contiguous and source.flags.aligned:
        np.take(source, rows, axis=0, out=out, mode="clip")  # "raise" would go by way of a copy
    else:
        out[...] = source[rows]  # numpy.take would copy the whole array


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
