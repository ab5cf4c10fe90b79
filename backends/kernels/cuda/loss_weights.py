"""How kernels of losses weigh and reduce the terms: by weights of samples and classes, and the divisor of a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable, Slot
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import MOST_THREADS, Launch, by_element, compiled, cupy, structure

__all__ = [
    "Collect", "Divisor", "divisor", "is_on_gpu", "needs_divisor", "options", "serves_weights", "weighing"
]  # fmt: skip

_LABELS = ops.softmax_cross_entropy
#: Options that change how much a label counts.
_COUNTING = "class_weight", "ignore_index"


def is_given(call: Call, name: str) -> bool:
    """Whether the call has an option that is not None."""
    return call.options.get(name) is not None


def serves_weights(call: Call) -> bool:
    """Whether the loss is one number, and sample weights, if any, are one number a sample in the outputs' dtype."""
    outputs, _, *weights = call.reads
    fits = all(w.shape == outputs.shape[:1] and w.dtype == outputs.dtype for w in weights)
    return fits and call.options.get("reduction", "mean") in ("mean", "sum", "sum_over_batch_size")


def needs_divisor(call: Call) -> bool:
    """Whether the terms are divided by a sum that depends on the batch."""
    counts = call.op is _LABELS and any(is_given(call, name) for name in _COUNTING)
    return call.options.get("reduction", "mean") == "mean" and (counts or len(call.reads) > 2)


def weighing(call: Call, total: Any = None) -> Any:
    """The kernels' structure of weights and divisor. total: where the divisor will be, if a kernel computes it."""
    shape, weights = call.reads[0].shape, call.reads[2].array if len(call.reads) > 2 else None
    terms = shape[0] if call.op is _LABELS else math.prod(shape)
    fixed = 1.0 if call.options.get("reduction") == "sum" else float(terms)
    classes = call.options.get("class_weight")
    return structure("Weighing", weights=weights, of_classes=classes, total=total, divisor=fixed)


def options(call: Call) -> Any:
    """The kernels' structure of the options of a cross-entropy."""
    ignored = call.options.get("ignore_index")
    smoothing = float(call.options.get("label_smoothing") or 0.0)
    return structure(
        "Options", smoothing=smoothing, ignores=int(ignored is not None), ignored=int(ignored or 0)
    )


@dataclass(eq=False)
class Collect:
    """Keeps a number or an array in the record of the step."""

    call: Call
    feed: DeviceFeed

    def place(self) -> int:
        """Give the number its columns of the record, and return the first of them."""
        return self.feed.column_of(self.call.options["into"], self.call.reads[0].shape)

    def build(self) -> list[Runnable]:
        numbers, feed = self.call.reads[0].array, self.feed
        module = compiled("numbers", np.float32, VALUE=str(numbers.dtype))
        arguments = numbers, feed.record_of(), feed.position, self.place(), numbers.size
        launch = by_element(module, "collect", numbers.size, arguments, feed.stream)
        return [] if launch is None else [launch]


@dataclass(eq=False)
class Divisor:
    """Computes what the sum of the terms is divided by; also puts it into the record, if that joined it.

    call: of the loss, or the one for its total. out: an array for the number.
    """

    call: Call
    feed: DeviceFeed
    out: Any
    column: int = -1

    def join(self, other: Any) -> bool:
        """Take over the record of this number. Returns whether `other` is that."""
        if not isinstance(other, Collect) or self.column >= 0 or other.call.reads[0] is not self._slot:
            return False
        self.column = other.place()
        return True

    @property
    def _slot(self) -> Slot | None:
        return self.call.writes[0] if self.call.kind == "total" else None

    def is_of(self, call: Call) -> bool:
        """Whether it is the divisor of this loss."""
        same = call.op is self.call.op and len(call.reads) == len(self.call.reads)
        alike = same and all(a is b for a, b in zip(call.reads, self.call.reads, strict=True))
        return alike and call.options.keys() == self.call.options.keys()

    def build(self) -> list[Runnable]:
        call, feed = self.call, self.feed
        outputs, targets, *weights = (slot.array for slot in call.reads)
        n, width = len(outputs), math.prod(outputs.shape[1:])
        end = self.out, feed.record_of(), feed.position, self.column
        if call.op is _LABELS:
            module, name = compiled("loss", outputs.dtype, LABEL=str(targets.dtype)), "divisor_of_labels"
            arguments: tuple[Any, ...] = targets, n, width, weighing(call), options(call), *end
        else:
            module, name = compiled("distances", outputs.dtype), "divisor_of_weights"
            arguments = weights[0], n, width, *end
        return [Launch(module, name, (1,), (MOST_THREADS,), arguments, feed.stream)]


def divisor(call: Call, feed: DeviceFeed) -> Divisor:
    """Compute the divisor of a loss's mean."""
    out = call.writes[0].array if call.kind == "total" else cupy().empty((), call.reads[0].dtype)  # type: ignore[union-attr]
    return Divisor(call, feed, out)


def is_on_gpu(array: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is an array of the GPU with this dtype and shape."""
    return isinstance(array, cupy().ndarray) and array.shape == shape and array.dtype == np.dtype(dtype)
