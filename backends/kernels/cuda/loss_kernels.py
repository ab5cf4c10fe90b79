"""Kernels of the loss, of accuracy and of the record, and how they become one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda.dense_kernels import KINDS, Sums, serves_elements
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import Launch, compiled, cupy, structure
from xnn.backends.kernels.numpy_kernels import serves_labels as has_labels
from xnn.backends.kernels.numpy_kernels import serves_loss as is_plain

__all__ = [
    "Accuracy", "Collect", "CrossEntropy", "accuracy", "collect", "cross_entropy", "serves_accuracy",
    "serves_collect", "serves_cross_entropy",
]  # fmt: skip

#: One block does a batch of up to this many logits, and the last bias's gradient of up to this many.
_ONE_BLOCK, _ONE_BLOCKS_SUMS = 16384, 65536
_WARP, _MOST_THREADS = 32, 1024


def _whole(dtype: Any) -> bool:
    return np.dtype(dtype).name in ("int32", "int64")


def serves_cross_entropy(call: Call) -> bool:
    """Whether the call is the plain loss with integer labels."""
    return is_plain(call) and serves_elements(call) and _whole(call.reads[1].dtype)


def serves_accuracy(call: Call) -> bool:
    """Whether there are outputs (n, classes) and integer labels (n,)."""
    return has_labels(call) and serves_elements(call) and _whole(call.reads[1].dtype)


def serves_collect(call: Call) -> bool:
    """Whether the number is one float32 or float64."""
    return call.reads[0].shape == () and np.dtype(call.reads[0].dtype).name in ("float32", "float64")


@dataclass(eq=False)
class Accuracy:
    """Counts the right predictions."""

    call: Call
    feed: DeviceFeed

    def build(self) -> list[Runnable]:
        (z, labels), right = (slot.array for slot in self.call.reads), self.call.writes[0].array  # type: ignore[union-attr]
        module = compiled("loss", z.dtype, LABEL=str(labels.dtype))
        arguments = z, labels, right, *z.shape
        return [Launch(module, "count_right", (1,), (_threads(len(z)),), arguments, self.feed.stream)]


@dataclass(eq=False)
class Collect:
    """Keeps a number in the record of the step."""

    call: Call
    feed: DeviceFeed

    @property
    def column(self) -> int:
        return self.feed.column_of(self.call.options["into"])

    def build(self) -> list[Runnable]:
        number, feed = self.call.reads[0].array, self.feed
        arguments = number, feed.record_of(), feed.position, self.column
        return [Launch(compiled("numbers", number.dtype), "collect", (1,), (1,), arguments, feed.stream)]


@dataclass(eq=False)
class CrossEntropy:
    """The loss with its gradient; also accuracy, the record and the last bias's gradient, if they joined it."""

    call: Call
    feed: DeviceFeed
    accuracy: Accuracy | None = None
    loss_column: int = -1
    right_column: int = -1
    sums: Sums | None = None

    def join(self, other: Any) -> bool:
        """Take over another item. Returns whether it is one that this launch can do."""
        loss, g = self.call.writes
        assert g is not None
        if isinstance(other, Accuracy):
            same = all(a is b for a, b in zip(other.call.reads, self.call.reads, strict=True))
            if same and self.accuracy is None:
                self.accuracy = other
        elif isinstance(other, Sums):
            last = other.dy is g.array and other.kind == KINDS[None] and g.array.size <= _ONE_BLOCKS_SUMS
            if last and self.sums is None:
                self.sums = other
        elif isinstance(other, Collect):
            counted = None if self.accuracy is None else self.accuracy.call.writes[0]
            if other.call.reads[0] is loss and self.loss_column < 0:
                self.loss_column = other.column
                return True
            if other.call.reads[0] is counted and self.right_column < 0:
                self.right_column = other.column
                return True
        return other is self.accuracy or other is self.sums

    def build(self) -> list[Runnable]:
        feed, (z, labels) = self.feed, (slot.array for slot in self.call.reads)
        loss, g = (slot.array for slot in self.call.writes)  # type: ignore[union-attr]
        right = None if self.accuracy is None else self.accuracy.call.writes[0].array  # type: ignore[union-attr]
        n, classes = z.shape
        batch = structure("Batch", z=z, labels=labels, g=g, n=n, classes=classes)
        terms, rights = cupy().empty(n, z.dtype), None if right is None else cupy().empty(n, z.dtype)
        columns = {"loss_column": self.loss_column, "right_column": self.right_column}
        numbers = structure("Numbers", loss=loss, right=right, **columns)
        folded = {"minus_rates": None, "stride": 0} if self.sums is None else self.sums.step()
        bias = structure("Bias", out=None if self.sums is None else self.sums.out, **folded)
        module = compiled("loss", z.dtype, LABEL=str(labels.dtype))
        arguments = batch, terms, rights, numbers, bias, feed.record_of(), feed.position
        if z.size <= _ONE_BLOCK:
            return [Launch(module, "cross_entropy", (1,), (_threads(n),), arguments, feed.stream)]
        rows = Launch(
            module, "cross_entropy_rows", (min(-(-n // 8), 1024),), (256,), arguments[:3], feed.stream
        )
        return [rows, Launch(module, "cross_entropy_totals", (1,), (_MOST_THREADS,), arguments, feed.stream)]


def _threads(rows: int) -> int:
    """The threads of a block with a warp for each row, as far as they go."""
    return min(_MOST_THREADS, _WARP * max(1, rows))


def cross_entropy(call: Call, feed: DeviceFeed) -> CrossEntropy:
    """Compute the loss and its gradient from logits and labels."""
    return CrossEntropy(call, feed)


def accuracy(call: Call, feed: DeviceFeed) -> Accuracy:
    """Count the right predictions of the batch."""
    return Accuracy(call, feed)


def collect(call: Call, feed: DeviceFeed) -> Collect:
    """Put a number into the record of the step."""
    return Collect(call, feed)
