"""Kernels of the optimizers' rules, of clipping and of averages of weights: one launch for all parameters of a group.

A launch has a table of segments in the GPU's memory: for each block the addresses of the numbers that it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda.dense_kernels import has_one_dtype
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import THREADS, Launch, address, compiled, cupy, structure
from xnn.backends.kernels.update_kernels import serves_update as is_in_place
from xnn.ops import updates

__all__ = [
    "RULES",
    "Segments",
    "Update",
    "clip",
    "moving_average",
    "segments",
    "serves_update",
    "update",
]

#: The rules that have a kernel, which is called as they are.
RULES = (
    updates.sgd, updates.adagrad, updates.rmsprop, updates.adadelta, updates.adam, updates.adamw, updates.nadam,
    updates.lion,
)  # fmt: skip
_SHORTEST, _MOST_BLOCKS = 1024, 1024  # numbers in a segment; segments, unless they would be shorter
_COLUMNS = 6  # w, g, three arrays of state, count


def segments(arrays: Sequence[tuple[Any, ...]]) -> Any:
    """Make the table of segments: int64 (segments, 6) in the GPU's memory.

    arrays: tuples of contiguous arrays of one size and dtype: w, and perhaps g and the arrays of the state.
    """
    total = sum(int(group[0].size) for group in arrays)
    length = max(_SHORTEST, -(-total // _MOST_BLOCKS // THREADS) * THREADS)
    rows = []
    for group in arrays:
        size, item = int(group[0].size), group[0].dtype.itemsize
        for start in range(0, size, length):
            places = [address(array) + start * item for array in group]
            rows.append([*places, *[0] * (_COLUMNS - 1 - len(places)), min(length, size - start)])
    return cupy().asarray(np.array(rows, np.int64).reshape(-1, _COLUMNS))


def serves_update(call: Call) -> bool:
    """Whether the parameters may be changed in place, and their state has at most three arrays."""
    return is_in_place(call) and call.rule.width <= _COLUMNS - 1 and has_one_dtype(call)


@dataclass(eq=False)
class Segments:
    """A kernel over segments, which other calls of the same kernel with the same numbers may join."""

    feed: DeviceFeed
    kernel: str
    arrays: list[tuple[Any, ...]]
    numbers: tuple[Any, ...] = ()

    def join(self, other: Any) -> bool:
        """Take over another item. Returns whether it is of the same kind, over other arrays of the same dtype."""
        if not isinstance(other, Segments) or (other.kernel, other.numbers) != (self.kernel, self.numbers):
            return False
        if self.kernel != "moving_average" or other.arrays[0][0].dtype != self.arrays[0][0].dtype:
            return False
        self.arrays.extend(other.arrays)
        return True

    def build(self) -> list[Runnable]:
        table = segments(self.arrays)
        if not len(table):
            return []
        if self.kernel == "clip_by_norm":
            sums = cupy().empty(len(table), "float64")
            return [
                self._launch("sums_of_squares", table, sums),
                self._launch(self.kernel, table, sums, *self.numbers),
            ]
        return [self._launch(self.kernel, table, *self.numbers)]

    @property
    def module(self) -> Any:
        """The module of the kernels."""
        return compiled("updates", self.arrays[0][0].dtype)

    def _launch(self, name: str, table: Any, *arguments: Any) -> Launch:
        return Launch(self.module, name, (len(table),), (THREADS,), (table, *arguments), self.feed.stream)


@dataclass(eq=False)
class Update(Segments):
    """A kernel of a rule, which reads the options of its group."""

    group: Any = None

    def _launch(self, name: str, table: Any, *arguments: Any) -> Launch:
        feed = self.feed
        group = structure("Group", segments=table, options=feed.options_of(self.group), stride=feed.width)
        return Launch(self.module, name, (len(table),), (THREADS,), (group, feed.position), feed.stream)


def update(call: Call, feed: DeviceFeed) -> Update:
    """Take a step of the rule for all parameters of the call."""
    return Update(feed, call.op.__name__, call.rule.stretches(call), group=call.rule)


def clip(call: Call, feed: DeviceFeed) -> Segments:
    """Clip all gradients together."""
    arrays = [(slot.array,) for slot in call.reads]
    return Segments(feed, call.op.__name__, arrays, (float(call.options["limit"]),))


def moving_average(call: Call, feed: DeviceFeed) -> Segments:
    """Update the average of a parameter in place."""
    average, value = (slot.array for slot in call.reads)
    return Segments(feed, "moving_average", [(average, value)], (float(call.options["decay"]),))
