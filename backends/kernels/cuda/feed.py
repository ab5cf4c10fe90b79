"""What changes from step to step, in the GPU's memory, and the loop over the steps of a chunk.

A chunk is a number of steps that the trainer hands over together. For each of them the host computes the options of
the update rules, as it does for single steps, and knows the rows of the batch. All of this is copied to the GPU at
once, and losses and counts stay there until the trainer asks for them. A kernel gets the number of its step within
the chunk as an argument. So the steps of a chunk can be captured in one CUDA graph, which serves every chunk of that
length.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Runnable, nothing
from xnn.backends.kernels.cuda.array_ops import GraphMemory, products_on
from xnn.backends.kernels.cuda.cublas import Cublas, cublas_of
from xnn.backends.kernels.cuda.data_set import TO_DEVICE, DataSet
from xnn.backends.kernels.cuda.launch import address, cupy, structure

__all__ = ["LONGEST", "DeviceFeed"]

#: The most steps in a chunk. The trainer looks at the losses after this many.
LONGEST = 100
_ROW_NUMBERS = 2**20  # of a chunk, at most, unless one step has more: 8 MiB
#: The most numbers in an array that a step records.
_WIDEST = 2**14
_STATE = 4  # cells: number of the first step, steps recorded before, seed, where streamed rows begin


class _Staging:
    """Pinned memory of the host from which a chunk's numbers are copied, in cells of 8 bytes."""

    def __init__(self, cells: int, layout: Sequence[tuple[int, int]], steps: int) -> None:
        self.memory = cupy().cuda.alloc_pinned_memory(8 * cells)
        self.cells = np.frombuffer(self.memory, np.int64, cells)
        self.cells[:] = 0
        self.copied = cupy().cuda.Event(disable_timing=True)
        self.started = False
        reals = self.cells.view(np.float64)
        self.options, self.rates = (
            reals[start : start + steps * width].reshape(steps, width) for start, width in layout
        )
        self.rates_32 = self.rates.view(np.float32)

    def wait(self) -> None:
        """Wait until the last copy from here is done: it nearly always is."""
        if self.started and not self.copied.done:
            self.copied.synchronize()


class DeviceFeed:
    """Feeds the programs of one fit: `put` for each step of a chunk, then `send`, then the program's loop.

    groups: the groups of parameters; `numbers` are the options of their next step. rows: of the largest batch.
    collected: the lists for which `collect` calls have numbers; each has a column in the record. data: what batches
    are gathered from.

    stream: where everything runs: the current one. position: the number of the step within the chunk, an argument of
    kernels. largest: rows of the largest batch. state: (first step, steps recorded, seed, first streamed row).
    options, rates, rows: for each step of the chunk. record: a row for each step since the last `take`.
    """

    def __init__(
        self, groups: Sequence[Any], rows: int, collected: Sequence[Any], data: DataSet | None = None
    ) -> None:
        self.stream = cupy().cuda.get_current_stream()
        self.position, self.seed, self.largest = ctypes.c_longlong(0), 0, rows
        self.data = data or DataSet()
        self.groups, self.collected, self.columns = list(groups), list(collected), set[int]()
        lengths = [len(group.numbers) for group in self.groups]
        self._spans = list(zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False))
        self.width, self.count, self.recorded = sum(lengths), 0, 0
        self._longest = max(1, min(LONGEST, _ROW_NUMBERS // max(1, rows)))
        self._options = _STATE
        self._rates = self._options + self._longest * self.width
        self._rows = self._rates + self._longest * len(self.groups)
        cells = self._rows + self._longest * rows
        layout = (self._options, self.width), (self._rates, len(self.groups))
        self._staging = [_Staging(cells, layout, self._longest) for _ in range(2)]
        self._there = cupy().zeros(cells, "int64")
        self.state = self._there[:_STATE]
        self.options = self._there[self._options : self._rates]
        self.rates = self._there[self._rates : self._rows]
        self.rows = self._there[self._rows :]
        #: By the number of a list: its first column of the record, and the shape of what it collects.
        self._places: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._record: Any = None
        self._flushed: list[np.ndarray] = []
        self._memory: GraphMemory | None = None  # of arrays that ops make in graphs

    @property
    def most(self) -> int:
        """How many steps a chunk may have; known when a program is bound."""
        return min(self._longest, self.data.steps)

    @property
    def streaming(self) -> str:
        """Why the data are streamed from the host, in a sentence; "" if they are on the GPU."""
        return self.data.reason

    @property
    def cublas(self) -> Cublas:
        """The handle for matrix products on this stream."""
        return cublas_of(self.stream)

    def options_of(self, group: Any) -> Any:
        """The argument of an update kernel that has the group's options: their address in the first step."""
        start, _ = self._spans[self._number(group)]
        return self.options[start:]

    def rates_of(self, group: Any) -> Any:
        """The cells with -learning_rate of a group, from the first step on."""
        return self.rates[self._number(group) :]

    def rate_address(self, group: Any) -> Callable[[], int]:
        """A function that returns the address of the group's -learning_rate in the step at `position`."""
        start, stride, position = address(self.rates_of(group)), 8 * len(self.groups), self.position
        return lambda: start + stride * position.value

    def _number(self, group: Any) -> int:
        return next(number for number, known in enumerate(self.groups) if known is group)

    @property
    def record(self) -> Any:
        """The record; made when the programs' first kernel needs it, with the columns that it then has."""
        if self._record is None:
            width = sum(math.prod(shape) for _, shape in self._places.values())
            self._record = cupy().zeros((LONGEST, max(1, width)), "float64")
        return self._record

    def record_of(self) -> Any:
        """The kernels' structure of the record."""
        return structure("Record", numbers=self.record, state=self.state, columns=self.record.shape[1])

    def can_collect(self, into: Any, shape: tuple[int, ...]) -> bool:
        """Whether the record has, or can get, columns for arrays of this shape that are collected in a list."""
        place = self._places.get(self._list(into))
        return self._record is None and math.prod(shape) <= _WIDEST if place is None else place[1] == shape

    def column_of(self, into: Any, shape: tuple[int, ...] = ()) -> int:
        """The first column of the record that stands for a list of collected numbers or arrays.

        It is then filled by kernels.
        """
        number = self._list(into)
        self.columns.add(number)
        start = sum(math.prod(shape) for _, shape in self._places.values())
        return self._places.setdefault(number, (start, shape))[0]

    def _list(self, into: Any) -> int:
        return next(number for number, known in enumerate(self.collected) if known is into)

    def room(self, rows: int) -> int:
        """How many steps on batches of this many rows fit in a chunk."""
        streamed = self.data.streamed
        most = self.rows.size if streamed is None else min(self.rows.size, streamed.rows)
        return int(min(LONGEST, most // max(1, rows)))

    def put(self, rows: np.ndarray) -> None:
        """Note the rows of the next step of the chunk, and the options of all groups."""
        host, at = self._staging[0], self.count
        if not at:
            host.wait()
        self._note_options(host, at)
        first = self._rows + at * len(rows)
        host.cells[first : first + len(rows)] = rows
        self.count += 1

    def _note_options(self, host: _Staging, at: int) -> None:
        """Write the options of all groups as those of step `at` of the chunk."""
        for number, (group, (start, length)) in enumerate(zip(self.groups, self._spans, strict=True)):
            if not length:
                continue
            host.options[at, start : start + length] = group.numbers
            rate = -group.options.get("learning_rate", 0.0)
            if group.flat[0].dtype == np.float32:
                host.rates_32[at, 2 * number] = rate
            else:
                host.rates[at, number] = rate

    def send(self, number: int, rows: int) -> None:
        """Copy the chunk's numbers to the GPU: one copy, and no wait. Streamed data have copies of their own.

        number: of the first step, counted over all fits. rows: in each batch.
        """
        if self.recorded + self.count > LONGEST:
            self._flush()
        host = self._staging[0]
        end = self._rows + self.count * rows
        host.cells[:2] = number, self.recorded
        host.cells[2:3].view(np.uint64)[0] = self.seed
        host.cells[3] = self.data.send(host.cells[self._rows : end], self.stream)
        self._copy(0, end)
        self.recorded += self.count
        self.count = 0

    def renew(self) -> None:
        """Copy the options of all groups again, for a chunk of one step that was sent."""
        self._staging[0].wait()
        self._note_options(self._staging[0], 0)
        self._copy(self._options, self._rows)

    def _copy(self, start: int, end: int) -> None:
        """Copy these cells of the staging memory to the GPU, and take the other staging memory from now on."""
        host = self._staging[0]
        there, here, size = address(self._there) + 8 * start, host.memory.ptr + 8 * start, 8 * (end - start)
        cupy().cuda.runtime.memcpyAsync(there, here, size, TO_DEVICE, self.stream.ptr)
        host.copied.record(self.stream)
        host.started = True
        self._staging.reverse()

    def reload(self) -> None:
        """Copy the data of the host again."""
        self.data.resident.reload()

    def forget(self) -> None:
        """Forget what was recorded and what was put."""
        self.recorded = self.count = 0
        self._flushed.clear()

    def _flush(self) -> None:
        self._flushed.append(self.record[: self.recorded].get(stream=self.stream))
        self.recorded = 0

    def take(self) -> dict[int, np.ndarray]:
        """What was recorded since the last call, float64, by the number of its list. Waits for the GPU."""
        if self.columns and self.recorded:
            self._flush()
        rows = np.concatenate([np.empty((0, self.record.shape[1])), *self._flushed])
        self.forget()
        return {
            number: rows[:, start : start + math.prod(shape)].reshape(len(rows), *shape)
            for number, (start, shape) in self._places.items()
        }

    def loop(
        self,
        steps: Sequence[Runnable],
        captures: bool = True,
        refused: Callable[[Runnable], None] | None = None,
    ) -> Callable[[int], None]:
        """Return a function that runs these steps as often as it is told, with `position` 0, 1, 2, ...

        captures: whether the loop may be captured. A number that comes for the second time is: a graph costs more
        than it saves in a chunk that does not come again. On the default stream nothing can be captured.

        refused: for steps among which are ops. If one of them cannot be captured, it is called with that step, and
        the steps run one by one from then on.
        """
        position, stream = self.position, self.stream
        graphs: dict[int, Any] = {}
        captures = captures and stream.ptr not in (0, 1, 2)
        step: Runnable = nothing

        def each(count: int) -> None:
            nonlocal step
            for number in range(count):
                position.value = number
                for step in steps:  # the last one is asked for if it fails
                    step()

        def run(count: int) -> None:
            nonlocal captures
            if captures and graphs.get(count, self) is None:
                try:
                    graphs[count] = self._captured(lambda: each(count))
                except RuntimeError:  # another error than that of the capture comes again in the steps below
                    if refused is None:
                        raise
                    captures = False
                    refused(step)
            if captures and count in graphs:
                graphs[count].launch(stream)
            else:
                graphs[count] = None
                each(count)

        if refused is None:
            return run
        self._memory = self._memory or GraphMemory()

        def with_ops(count: int) -> None:
            with products_on(self.cublas):
                run(count)

        return with_ops

    def _captured(self, run: Runnable) -> Any:
        """Return the CUDA graph of what a function launches."""
        try:
            with nullcontext() if self._memory is None else self._memory.used():
                self.stream.begin_capture()
                run()
                graph = self.stream.end_capture()
        except BaseException:
            with suppress(Exception):  # a capture that has failed ends with an error of its own
                self.stream.end_capture()
            raise
        graph.upload(self.stream)
        return graph
