"""Kernels of batch and layer normalization: means and variances, normalization, its gradient, running statistics.

The backward pass of a normalization comes as one call, which goes through the mean and the variance too
(`moments_into_normalize` in `xnn.backends.kernels.fusion`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable, Slot
from xnn.backends.kernels.cuda.dense_kernels import KINDS, countable
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import (
    MOST_BLOCKS,
    THREADS,
    Launch,
    address,
    by_element,
    compiled,
    cupy,
    structure,
)
from xnn.backends.kernels.image_kernels import fits
from xnn.ops.axes import reduced_axes

__all__ = [
    "Running", "moments", "normalize", "normalize_backward", "running", "serves_moments", "serves_normalize",
    "serves_normalize_backward", "serves_running",
]  # fmt: skip

_EACH = 4096  # elements of a group that one block reads
_SAMPLES = 256  # that one block adds up


def _groups(shape: tuple[int, ...], axis: Any) -> tuple[int, int, int] | None:
    """The array as (outer, groups, inner), or None if the axes are not all but axis 1, or the last ones."""
    axes = tuple(sorted(reduced_axes(axis, len(shape))))
    if len(shape) > 1 and axes == (0, *range(2, len(shape))):
        return shape[0], shape[1], math.prod(shape[2:])
    if axes and 0 < axes[0] == len(shape) - len(axes):
        return 1, math.prod(shape[: axes[0]]), math.prod(shape[axes[0] :])
    return None


def _small(call: Call) -> bool:
    """Whether no array is empty, all have one dtype, and 31 bits can count the elements of each."""
    return fits(call) and countable(call)


def serves_moments(call: Call) -> bool:
    """Whether there is a mean for each channel or for each sample, and no array is empty."""
    return _small(call) and _groups(call.reads[0].shape, call.options["axis"]) is not None


def moments(call: Call, feed: DeviceFeed) -> Any:
    """Compute means and variances, and the scales if they are asked for."""
    x, out = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    shape = _groups(x.shape, call.options["axis"])
    assert shape is not None
    grid, threads, each, *scratch = _parts(shape, x.dtype, 3)
    arguments = x, out, out.shape[0], _structure(shape), each, *scratch
    return Launch(compiled("normalization", x.dtype), "moments", grid, threads, arguments, feed.stream)


def _structure(shape: tuple[int, int, int]) -> Any:
    return structure("Groups", **dict(zip(("outer", "groups", "inner"), shape, strict=True)))


def _parts(shape: tuple[int, int, int], dtype: Any, numbers: int) -> tuple[Any, ...]:
    """Grid, threads and elements for each part of a group, and memory for the numbers of the parts and counters."""
    outer, groups, inner = shape
    size = outer * inner
    parts = min(-(-size // _EACH), MOST_BLOCKS)
    each = -(-size // parts)
    parts = -(-size // each)
    threads = min(THREADS, -(-each // 32) * 32)
    scratch = cupy().empty((groups, parts, numbers), dtype), cupy().zeros(groups, "int32")
    return (groups, parts), (threads,), each, *scratch


def serves_normalize(call: Call) -> bool:
    """Whether the moments are those of channels or samples, and weight and bias those of channels or features."""
    x, m, *affine = (slot.shape for slot in call.reads)
    shape, axes = _groups(x, call.options["axis"]), sorted(reduced_axes(call.options["axis"], len(x)))
    if not _small(call) or shape is None or call.activation not in KINDS:
        return False
    first, wanted = (axes[0], x[axes[0] :]) if _by_samples(call) else (1, x[1:2])
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(x))
    plain = m[0] in (2, 3) and m[1:] == kept
    return plain and all(p == wanted and call.options.get("along", 1) == first for p in affine)


def _by_samples(forward: Call) -> bool:
    """Whether a mean is over the last axes; weights then differ within a sample."""
    x = forward.reads[0].shape
    return 0 not in reduced_axes(forward.options["axis"], len(x))


@dataclass
class _Normalize:
    """What the kernels of a forward call and of its backward call are given."""

    forward: Call

    def __post_init__(self) -> None:
        call = self.forward
        self.x, self.moments, *affine = (slot.array for slot in call.reads)
        self.y: Any = call.writes[0].array  # type: ignore[union-attr]
        shape = _groups(self.x.shape, call.options["axis"])
        assert shape is not None
        self.shape, self.by_samples = shape, _by_samples(call)
        weight, bias = affine or (None, None)
        inner, count = (1, shape[2]) if self.by_samples else (shape[2], shape[1])
        self.affine = structure("Affine", weight=weight, bias=bias, inner=inner, count=count)
        self.groups, self.rows = _structure(shape), self.moments.shape[0]
        self.epsilon = float(call.options.get("epsilon", 1e-5))
        self.kind = KINDS[call.activation]
        self.module = compiled("normalization", self.x.dtype)


def normalize(call: Call, feed: DeviceFeed) -> Any:
    """Compute y = f((x - mean) / sqrt(variance + epsilon) weight + bias)."""
    n = _Normalize(call)
    arguments = n.x, n.moments, n.y, n.x.size, n.rows, n.groups, n.affine, n.epsilon, n.kind
    return by_element(n.module, "normalize", n.x.size, arguments, feed.stream)


def serves_normalize_backward(call: Call) -> bool:
    """Whether the call is the gradient through the moments too, or only that of weight and bias."""
    forward, (dx, dmoments, *_) = call.forward, call.writes
    assert forward is not None
    whole = dx is None or "moments" in call.options
    return whole and dmoments is None and _small(call) and serves_normalize(forward)


def normalize_backward(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute the gradients of weight and bias from sums, and dx from the sums of each group."""
    assert call.forward is not None
    n, dy = _Normalize(call.forward), call.reads[0].array
    dx, _, *rest = (None if slot is None else slot.array for slot in call.writes)
    dweight, dbias = rest or (None, None)
    inputs = dy, n.x, n.y, n.moments
    sums, steps = cupy().empty((2, n.shape[1]), dy.dtype), []
    if dx is not None or not n.by_samples:
        grid, threads, each, *scratch = _parts(n.shape, dy.dtype, 2)
        arguments = (
            *inputs, sums, dweight, dbias, n.rows, n.groups, n.affine, n.by_samples, n.epsilon, n.kind, each,
            *scratch,
        )  # fmt: skip
        steps.append(Launch(n.module, "gradient_sums", grid, threads, arguments, feed.stream))
    if n.by_samples and (dweight is not None or dbias is not None):
        steps.append(_feature_sums(n, inputs, dweight, dbias, feed))
    if dx is not None:
        given = *inputs, sums, dx, dx.size, n.rows, n.groups, n.affine, n.by_samples, n.epsilon, n.kind
        steps.append(by_element(n.module, "gradient", dx.size, given, feed.stream))
    return steps


def _feature_sums(
    n: _Normalize, inputs: tuple[Any, ...], dweight: Any, dbias: Any, feed: DeviceFeed
) -> Launch:
    _, samples, width = n.shape
    blocks = min(-(-samples // _SAMPLES), MOST_BLOCKS)
    each, across = -(-samples // blocks), -(-width // 32)
    blocks = -(-samples // each)
    scratch = cupy().empty((blocks, 2, width), n.x.dtype), cupy().zeros(across, "int32")
    arguments = *inputs, dweight, dbias, n.rows, samples, width, n.epsilon, n.kind, each, *scratch
    return Launch(n.module, "feature_sums", (across, blocks), (32, 32), arguments, feed.stream)


def serves_running(call: Call) -> bool:
    """Whether the statistics are those of channels, and of at least one element."""
    mean, variance, found = call.reads
    shape = _groups(call.options["shape"], call.options["axis"])
    return (
        _small(call)
        and shape is not None
        and mean.shape == variance.shape == (shape[1],)
        and found.shape[0] in (2, 3)
    )


@dataclass(eq=False)
class Running:
    """Updates the running statistics of several layers."""

    feed: DeviceFeed
    calls: list[Call] = field(default_factory=list)

    def join(self, other: Any) -> bool:
        """Take over another item. Returns whether it is one, for other arrays of the same dtype."""
        if not isinstance(other, Running):
            return False
        mine, others = ({id(s) for call in item.calls for s in call.writes} for item in (self, other))
        if mine & others or other.dtype != self.dtype:
            return False
        self.calls.extend(other.calls)
        return True

    @property
    def dtype(self) -> Any:
        return np.dtype(self.calls[0].reads[0].dtype)

    def build(self) -> list[Runnable]:
        rows = [_row(call) for call in self.calls]
        table = cupy().asarray(np.array([cell for row in rows for cell in row], np.int64))
        module, held = (
            compiled("normalization", self.dtype),
            [slot.array for call in self.calls for slot in call.reads],
        )
        launch = Launch(module, "running_moments", (len(rows),), (THREADS,), (table,), self.feed.stream)
        launch.held = launch.held, held
        return [launch]


def _row(call: Call) -> list[int]:
    """The kernel's structure of one layer, in cells of 8 bytes."""
    outer, groups, inner = _groups(call.options["shape"], call.options["axis"]) or (0, 0, 0)
    n, momentum = outer * inner, float(call.options["momentum"])
    rates = np.array([momentum, momentum * (n / (n - 1)) if n > 1 else -1.0]).view(np.int64)
    found: Slot = call.reads[2]
    return [*(address(slot.array) for slot in call.reads), found.shape[0], groups, *rates.tolist()]


def running(call: Call, feed: DeviceFeed) -> Running:
    """Update the running mean and variance of a layer in place."""
    return Running(feed, [call])
