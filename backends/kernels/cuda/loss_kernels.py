"""Kernels of the loss, of accuracy and of the record, and how they become one launch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda.dense_kernels import KINDS, Sums, countable
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import (
    MOST_THREADS,
    THREADS,
    TYPES,
    WARP,
    Launch,
    compiled,
    cupy,
    structure,
)
from xnn.backends.kernels.cuda.loss_weights import (
    Collect,
    Divisor,
    divisor,
    is_on_gpu,
    needs_divisor,
    options,
    serves_weights,
    weighing,
)
from xnn.backends.kernels.numpy_kernels import serves_labels as has_labels

__all__ = [
    "DISTANCES", "Accuracy", "Collect", "CrossEntropy", "Distance", "Loss", "accuracy", "by_one_block", "collect",
    "cross_entropy", "distance", "serves_accuracy", "serves_collect", "serves_cross_entropy", "serves_distance",
    "serves_divisor",
]  # fmt: skip

#: One block does a batch of up to this many rows and outputs; more are done by many blocks, and a second kernel.
_ONE_BLOCKS_ROWS, _ONE_BLOCKS_SIZE = 256, 16384
#: The numbers of the losses in distances.cu.
DISTANCES: dict[Any, int] = {ops.mse: 0, ops.l1: 1, ops.huber: 2, ops.hinge: 3, ops.binary_cross_entropy: 4}


def by_one_block(rows: int, width: int) -> bool:
    """Whether one block does a batch of these outputs, and with it the gradient of the last bias."""
    return rows <= _ONE_BLOCKS_ROWS and rows * width <= _ONE_BLOCKS_SIZE


def _whole(dtype: Any) -> bool:
    return np.dtype(dtype).name in ("int32", "int64")


def serves_cross_entropy(call: Call) -> bool:
    """Whether there are logits (n, classes) and integer labels (n,), and weights of classes are on the GPU."""
    z, labels = call.reads[:2]
    if len(z.shape) != 2 or 0 in z.shape or labels.shape != z.shape[:1] or not _whole(labels.dtype):
        return False
    weights = call.options.get("class_weight")
    return (
        np.dtype(z.dtype).name in ("float32", "float64")
        and math.prod(z.shape) < 2**31
        and serves_weights(call)
        and set(call.options) <= {"reduction", "label_smoothing", "class_weight", "ignore_index"}
        and (weights is None or is_on_gpu(weights, z.dtype, z.shape[1:]))
    )


def serves_divisor(call: Call) -> bool:
    """Whether a kernel computes the divisor of this loss."""
    return needs_divisor(call) and _SERVES[call.op](call)


def serves_accuracy(call: Call) -> bool:
    """Whether there are outputs (n, classes) and integer labels (n,)."""
    return has_labels(call) and countable(call) and _whole(call.reads[1].dtype)


def serves_collect(call: Call) -> bool:
    """Whether the kernel can read the number or the array."""
    return str(call.reads[0].dtype) in TYPES


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
class Loss:
    """A loss with its gradient; also accuracy, the record and the last bias's gradient, if they joined it."""

    call: Call
    feed: DeviceFeed
    accuracy: Accuracy | None = None
    loss_column: int = -1
    right_column: int = -1
    sums: Sums | None = None
    divisor: Divisor | None = None

    @property
    def alone(self) -> bool:
        """Whether one block does the whole batch."""
        n, *others = self.call.reads[0].shape
        return by_one_block(n, math.prod(others))

    def join(self, other: Any) -> bool:
        """Take over another item. Returns whether it is one that this launch can do."""
        loss, g = self.call.writes
        assert g is not None
        if isinstance(other, Divisor):  # which stays where it is
            self.divisor = other if other.is_of(self.call) else self.divisor
        elif isinstance(other, Accuracy):
            if self.accuracy is None and self.counts(other):
                self.accuracy = other
        elif isinstance(other, Sums):
            if self.sums is None and self.alone and other.dy is g.array and other.kind == KINDS[None]:
                self.sums = other
        elif isinstance(other, Collect):
            counted = None if self.accuracy is None else self.accuracy.call.writes[0]
            if other.call.reads[0] is loss and self.loss_column < 0:
                self.loss_column = other.place()
                return True
            if other.call.reads[0] is counted and self.right_column < 0:
                self.right_column = other.place()
                return True
        return other is self.accuracy or other is self.sums

    def counts(self, accuracy: Accuracy) -> bool:
        """Whether the kernel can count what this item counts."""
        return False

    @property
    def bias(self) -> Any:
        """The kernels' structure of the last bias."""
        return (
            structure("Bias", out=None, minus_rates=None, stride=0) if self.sums is None else self.sums.bias
        )

    def build(self) -> list[Runnable]:
        """The launches: of the divisor if none joined, and of the loss."""
        first: list[Runnable] = []
        if self.divisor is None and needs_divisor(self.call):
            self.divisor = divisor(self.call, self.feed)
            first = self.divisor.build()
        return first + self.launches(weighing(self.call, None if self.divisor is None else self.divisor.out))

    def launches(self, by: Any) -> list[Runnable]:
        """The launches of the loss, with the kernels' structure of weights and divisor."""
        raise NotImplementedError


class CrossEntropy(Loss):
    """Softmax and cross-entropy with integer labels."""

    def counts(self, accuracy: Accuracy) -> bool:
        return all(a is b for a, b in zip(accuracy.call.reads, self.call.reads, strict=False))

    @property
    def right(self) -> Any:
        """The array for the number of right predictions, or None if they are not counted."""
        return None if self.accuracy is None else self.accuracy.call.writes[0].array  # type: ignore[union-attr]

    @property
    def numbers(self) -> Any:
        """The kernels' structure of where loss and right predictions go."""
        loss = self.call.writes[0].array  # type: ignore[union-attr]
        columns = {"loss_column": self.loss_column, "right_column": self.right_column}
        return structure("Numbers", loss=loss, right=self.right, **columns)

    def launches(self, by: Any) -> list[Runnable]:
        feed, (z, labels) = self.feed, (slot.array for slot in self.call.reads[:2])
        g = self.call.writes[1].array  # type: ignore[union-attr]
        n, classes = z.shape
        batch = structure(
            "Batch", z=z, labels=labels, g=g, n=n, classes=classes, by=by, options=options(self.call)
        )
        terms, rights = cupy().empty(n, z.dtype), None if self.right is None else cupy().empty(n, z.dtype)
        module = compiled("loss", z.dtype, LABEL=str(labels.dtype))
        arguments = batch, terms, rights, self.numbers, self.bias, feed.record_of(), feed.position
        if self.alone:
            return [Launch(module, "cross_entropy", (1,), (_threads(n),), arguments, feed.stream)]
        rows = Launch(
            module, "cross_entropy_rows", (min(-(-n // 8), 1024),), (256,), arguments[:3], feed.stream
        )
        return [rows, Launch(module, "cross_entropy_totals", (1,), (MOST_THREADS,), arguments, feed.stream)]


class Distance(Loss):
    """A loss whose terms belong to one output and one target each."""

    def launches(self, by: Any) -> list[Runnable]:
        feed, (p, t) = self.feed, (slot.array for slot in self.call.reads[:2])
        loss, g = (slot.array for slot in self.call.writes)  # type: ignore[union-attr]
        n, width, delta = len(p), p.size // len(p), float(self.call.options.get("delta", 1.0))
        positive = _positive(self.call, p)
        batch = structure(
            "Batch", p=p, t=t, g=g, n=n, width=width, kind=DISTANCES[self.call.op], delta=delta, by=by,
            positive=positive, positives=0 if positive is None else positive.size,
        )  # fmt: skip
        module, blocks = compiled("distances", p.dtype), min(-(-p.size // THREADS), MOST_THREADS)
        sums = cupy().empty(blocks, p.dtype)
        rest = loss, self.loss_column, self.bias, feed.record_of(), feed.position
        if self.alone:
            threads = min(MOST_THREADS, -(-p.size // WARP) * WARP)
            return [Launch(module, "distance", (1,), (threads,), (batch, sums, *rest), feed.stream)]
        each = Launch(module, "distance_sums", (blocks,), (THREADS,), (batch, sums), feed.stream)
        total = batch, sums, blocks, *rest
        return [each, Launch(module, "distance_total", (1,), (MOST_THREADS,), total, feed.stream)]


def serves_distance(call: Call) -> bool:
    """Whether outputs and targets have one shape and one dtype, and weights of positive targets are on the GPU."""
    outputs, targets = call.reads[:2]
    if not serves_weights(call) or not set(call.options) <= {"delta", "reduction", "pos_weight"}:
        return False
    positive = call.options.get("pos_weight")
    number = positive is None or isinstance(positive, (int, float))
    if not (number or is_on_gpu(positive, outputs.dtype, outputs.shape[-1:])):
        return False
    same = outputs.shape == targets.shape and np.dtype(outputs.dtype) == np.dtype(targets.dtype)
    size = math.prod(outputs.shape)
    return (
        same
        and np.dtype(outputs.dtype).name in ("float32", "float64")
        and bool(outputs.shape)
        and 0 < size < 2**31
    )


def _positive(call: Call, like: Any) -> Any:
    """The weight of targets of 1, as an array of one number or one for each output; None if there is none."""
    positive = call.options.get("pos_weight")
    return cupy().full(1, positive, like.dtype) if isinstance(positive, (int, float)) else positive


def _threads(rows: int) -> int:
    """The threads of a block with a warp for each row, as far as they go."""
    return min(MOST_THREADS, WARP * max(1, rows))


_SERVES: dict[Any, Any] = {
    ops.softmax_cross_entropy: serves_cross_entropy,
    **dict.fromkeys(DISTANCES, serves_distance),
}


def cross_entropy(call: Call, feed: DeviceFeed) -> CrossEntropy:
    """Compute the loss and its gradient from logits and labels."""
    return CrossEntropy(call, feed)


def distance(call: Call, feed: DeviceFeed) -> Distance:
    """Compute a loss of outputs and targets, element by element, and its gradient."""
    return Distance(call, feed)


def accuracy(call: Call, feed: DeviceFeed) -> Accuracy:
    """Count the right predictions of the batch."""
    return Accuracy(call, feed)


def collect(call: Call, feed: DeviceFeed) -> Collect:
    """Put a number into the record of the step."""
    return Collect(call, feed)
