"""Compiled kernels that gather a batch: rows of the data are copied, and rescaled on the way if the model does so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_loops import integers, numbers, option
from xnn.backends.kernels.intrinsics import pointer, prefetch
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.numpy_kernels import serves_gather
from xnn.backends.kernels.rows import Rows, Writer, grain_of

__all__ = ["gather", "rescaled", "serves_rescaled", "serves_rows"]


@inner
def _fetch(address: Any, size: Any) -> None:
    """Fetch the beginning of the next row into the cache. The processor does so while the row before is copied."""
    for k in range(0, min(size, 1024) - 63, 64):
        prefetch(address + k)


def _of_pixels(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy rows of pixels, which are bytes, as numbers: byte * scale + offset."""
    r = numbers(row)
    n, m = r[4], r[5]
    scale, offset = option(r[6], 0, like), option(r[6], 1, like)
    rows, target = carray(pointer(r[2], np.int64(0)), n), carray(pointer(r[3], like), (n, m))
    pixels = carray(pointer(r[1], np.uint8(0)), (r[7], m))
    for i in range(first, last):
        place = rows[i]
        if i + 1 < last:
            _fetch(r[1] + rows[i + 1] * m, m)
        for j in range(m):
            target[i, j] = pixels[place, j] * scale + offset


def _copy(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy rows of numbers of 4 or 8 bytes (int64 labels, float64) unchanged, as words of 4 bytes."""
    r = numbers(row)
    words, stride, rows = r[5] * r[6] // 4, r[8] // 4, pointer(r[2], np.int64(0))
    source, target = pointer(r[1], np.int32(0)), pointer(r[3], np.int32(0))
    for i in range(first, last):
        place = rows[i]
        if i + 1 < last:
            _fetch(r[1] + rows[i + 1] * r[8], words * 4)
        for j in range(words):
            target[i * words + j] = source[place * stride + j]


def _copy_bytes(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy rows of numbers of any size."""
    r = numbers(row)
    size, stride, rows = r[5] * r[6], r[8], pointer(r[2], np.int64(0))
    source, target = pointer(r[1], np.uint8(0)), pointer(r[3], np.uint8(0))
    for i in range(first, last):
        place = rows[i]
        if i + 1 < last:
            _fetch(r[1] + rows[i + 1] * stride, size)
        for j in range(size):
            target[i * size + j] = source[place * stride + j]


def gather(call: Call) -> Rows:
    """Copy the rows of the step."""
    source, rows, target = call.options["source"], call.options["cursor"].rows, call.writes[0].array  # type: ignore[union-attr]
    n, width = len(rows), source.size // max(1, len(source))
    pixels = source.dtype == np.uint8 and target.dtype.kind == "f"
    out = Writer(target.dtype if pixels else None)  # other dtypes are only copied
    if pixels:
        factors = np.asarray([call.options.get("scale", 1.0), call.options.get("offset", 0.0)])
        out.loop(_of_pixels, n, source, rows, target, n, width, factors, len(source), grain=grain_of(width))
    else:
        stride = source.strides[0]
        in_words = source.itemsize % 4 == stride % 4 == 0
        out.loop(
            _copy if in_words else _copy_bytes,
            n,
            source,
            rows,
            target,
            n,
            width,
            source.itemsize,
            len(source),
            stride,
            grain=grain_of(width),
        )
    return out.made


def serves_rows(call: Call) -> bool:
    """Whether rows of bytes are scaled by one number, or rows of numbers are copied."""
    source, target = call.options["source"], call.writes[0]
    assert target is not None
    if not isinstance(source, np.ndarray) or not len(source) or "shift" in call.options:
        return False
    if source.dtype == np.uint8 and np.dtype(target.dtype).kind == "f":
        return serves_gather(call)
    plain = source[:1].flags.c_contiguous and source.dtype.kind in "biuf" and "scale" not in call.options
    return bool(plain and source.dtype == target.dtype)


@inner
def _rescale(row: Any, first: Any, last: Any, like: Any, example: Any) -> None:
    """Gather rows first .. last - 1, numbers of the dtype of `example`, as (x - shift) scale + offset.

    r[1]: the data. r[2]: the numbers of the rows. r[3]: where the batch goes. r[4]: numbers in a row. r[5]: for each
    of these a shift, then for each a scale, then for each an offset, float64. r[6]: 0 to add no offset. r[7]: 0 for
    no shift, and for a result that is computed in its own dtype. r[8]: rows of the data.
    """
    r = numbers(row)
    m, rows = r[4], integers(r[2], last)
    target, by = carray(pointer(r[3], like), (last, m)), carray(pointer(r[5], np.float64(0)), (3, m))
    source = carray(pointer(r[1], example), (r[8], m))
    size = m * source.itemsize
    for i in range(first, last):
        place = rows[i]
        if i + 1 < last:
            _fetch(r[1] + rows[i + 1] * size, size)
        if r[7]:
            for j in range(m):
                wide = (np.float64(source[place, j]) - by[0, j]) * by[1, j]
                target[i, j] = wide + by[2, j] if r[6] else wide
        else:
            for j in range(m):
                narrow = target.dtype.type(source[place, j]) * target.dtype.type(by[1, j])
                target[i, j] = narrow + target.dtype.type(by[2, j]) if r[6] else narrow


def _of_bytes(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    _rescale(row, first, last, like, np.uint8(0))


def _of_float32(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    _rescale(row, first, last, like, np.float32(0))


def _of_float64(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    _rescale(row, first, last, like, np.float64(0))


def _of_int64(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    _rescale(row, first, last, like, np.int64(0))


_LOOPS = {"uint8": _of_bytes, "float32": _of_float32, "float64": _of_float64, "int64": _of_int64}


def serves_rescaled(call: Call) -> bool:
    """Whether the rows of a contiguous array are rescaled to float32 or float64."""
    source, target = call.options["source"], call.writes[0]
    return (
        serves_gather(call)
        and target is not None
        and np.dtype(target.dtype) in (np.float32, np.float64)
        and "scale" in call.options
        and len(source) > 0
        and source.dtype.name in _LOOPS
    )


def rescaled(call: Call) -> Rows:
    """Gather the step's rows, rescaled."""
    source, target, options = call.options["source"], call.writes[0].array, call.options  # type: ignore[union-attr]
    n, shape, offset = len(target), target.shape[1:], options.get("offset", 0.0)
    by = [np.broadcast_to(options.get(name, 0.0), shape).ravel() for name in ("shift", "scale", "offset")]
    moved = not (isinstance(offset, float) and offset == 0.0)
    out = Writer(target.dtype)
    columns = by[0].size, np.array(by, np.float64), moved, "shift" in options, len(source)
    out.loop(
        _LOOPS[source.dtype.name],
        n,
        source,
        options["cursor"].rows,
        target,
        *columns,
        grain=grain_of(by[0].size),
    )
    return out.made
