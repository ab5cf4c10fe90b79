"""Several steps by one call of native code: in small networks, Python would take longer than the arithmetic.

A table of rows can run several times in one call (`rows.several`). Arrays with a part for each step then hold
what differs from step to step: the rows of the data, the optimizer's options, losses and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Cursor, Runnable
from xnn.graph.scope import assignments
from xnn.layers import Parameter

__all__ = ["Several", "steps_at_once"]

#: The most steps at once, and the most multiplications. Ctrl-C and time limits count after them.
_STEPS, _PRODUCTS = 100, 2e8


def steps_at_once(rows: int, parameters: Sequence[Parameter]) -> int:
    """How many steps on batches of this many rows to take at once."""
    products = rows * sum(parameter.size for parameter in parameters)
    return max(1, min(_STEPS, int(_PRODUCTS / max(1, products))))


class Several:
    """Takes several steps of one program by one call: `steps`.

    native: the functions of a step, in native code. cursor: has the rows of the next step. groups: of parameters,
    with the options of the next step. collecting: the calls that collect the loss and the metrics. most: how many
    steps it takes at once. drawn: whether kernels draw. counted: the arrays that are collected.
    moving: for `KernelTable.several`: what the kernels read and write, and its parts for each step.
    run: what `KernelTable.several` returned.
    """

    run: Callable[[int], None] | None

    def __init__(
        self,
        native: Sequence[Runnable],
        cursor: Cursor,
        groups: Sequence[Any],
        collecting: Sequence[Call],
        most: int,
        drawn: bool,
    ) -> None:
        self.native, self.cursor, self.groups, self.most = native, cursor, groups, most
        self._lists = [call.options["into"] for call in collecting]
        changing = [cursor.rows, *([cursor.stream] if drawn else []), *(group.numbers for group in groups)]
        self.counted = [call.reads[0].array for call in collecting]
        parts = [np.empty((most, *array.shape), array.dtype) for array in (*changing, *self.counted)]
        self.moving = list(zip((*changing, *self.counted), parts, strict=True))
        self._given, self._counted = self.moving[: len(changing)], parts[len(changing) :]

    def steps(
        self, batches: Sequence[np.ndarray], number: int, begin: Callable[[np.ndarray, int], None]
    ) -> int:
        """Train on the first of these batches, and return on how many.

        number: of the first step. begin: sets rows, number and options of the next step. If a schedule then
            changes a layer, the step after it needs another program.
        """
        count, seen = 0, assignments[0]
        for rows in batches[: self.most]:
            begin(rows, number + count)
            for array, parts in self._given:
                parts[count] = array
            count += 1
            if assignments[0] != seen:
                break
        assert self.run is not None
        self.run(count)
        for numbers, parts in zip(self._lists, self._counted, strict=True):
            numbers.extend(parts[:count].copy())
        return count
