"""The losses of exact numerics on a GPU, as items that the table joins with others: one launch each."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.exact.kernels.cuda_elements import all_stored
from xnn.backends.exact.kernels.cuda_passes import RowsPass
from xnn.backends.exact.slices import sum_bits
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda import loss_kernels as loss
from xnn.backends.kernels.cuda.launch import MOST_THREADS, WARP, Launch, compiled, cupy, structure
from xnn.backends.kernels.cuda.loss_kernels import DISTANCES, Loss
from xnn.backends.kernels.numpy_kernels import is_plain_loss

__all__ = ["CrossEntropy", "Distance", "serves_cross_entropy", "serves_distance"]


def serves_cross_entropy(call: Call) -> bool:
    """Whether the call is the plain loss with integer labels."""
    return is_plain_loss(call) and loss.serves_cross_entropy(call) and all_stored(call)


def serves_distance(call: Call) -> bool:
    """Whether outputs and targets have one shape, and there are no weights."""
    plain = len(call.reads) == 2 and set(call.options) <= {"delta"}
    return plain and loss.serves_distance(call) and all_stored(call)


class Distance(Loss):
    """A loss whose terms belong to one output and one target each."""

    alone = False

    def launches(self, by: Any) -> list[Runnable]:
        feed, (p, t) = self.feed, (slot.array for slot in self.call.reads)
        loss, g = (slot.array for slot in self.call.writes)  # type: ignore[union-attr]
        kind, delta = DISTANCES[self.call.op], float(self.call.options.get("delta", 1.0))
        batch = structure(
            "Batch", p=p, t=t, g=g, n=len(p), width=p.size // len(p), kind=kind, delta=delta,
            by=by, positive=None, positives=0,
        )  # fmt: skip
        arguments = (
            batch, cupy().empty(p.size, np.float64), sum_bits(p.size), loss, self.loss_column, feed.record_of(),
            feed.position, cupy().zeros(1, np.int32),
        )  # fmt: skip
        blocks = min(-(-p.size // MOST_THREADS), MOST_THREADS)
        module = compiled("distances exact_distances", np.float64, exact=True)
        return [Launch(module, "exact_distance", (blocks,), (MOST_THREADS,), arguments, feed.stream)]


class CrossEntropy(loss.CrossEntropy):
    """Softmax and cross-entropy with integer labels, and the slices of the gradient's rows if they joined it."""

    rows: RowsPass | None = None
    alone = False

    def join(self, other: Any) -> bool:
        g = self.call.writes[1]
        assert g is not None
        if isinstance(other, RowsPass):
            slices_only = other.follows(g.array) and not other.kind and not other.back
            if self.rows is None and slices_only:
                self.rows = other
            return other is self.rows
        return super().join(other)

    def launches(self, by: Any) -> list[Runnable]:
        feed, (z, labels) = self.feed, (slot.array for slot in self.call.reads)
        g = self.call.writes[1].array  # type: ignore[union-attr]
        n, classes = z.shape
        batch = structure(
            "Batch", z=z, labels=labels, g=g, wide=None if self.rows is None else self.rows.wide, n=n,
            classes=classes, bits=0 if self.rows is None else self.rows.bits, class_bits=sum_bits(classes),
            row_bits=sum_bits(n),
        )  # fmt: skip
        blocks = min(-(-n // (MOST_THREADS // WARP)), MOST_THREADS)
        threads = MOST_THREADS if blocks > 1 else WARP * n
        arguments = (
            batch, cupy().empty(n, np.float64), cupy().empty(n, np.int32), self.numbers, feed.record_of(),
            feed.position, cupy().zeros(1, np.int32),
        )  # fmt: skip
        module = compiled("exact_loss", np.float64, exact=True, LABEL=str(labels.dtype))
        return [Launch(module, "exact_cross_entropy", (blocks,), (threads,), arguments, feed.stream)]
