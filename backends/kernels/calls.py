"""The calls of a training step: slots that hold arrays, calls that read and write slots, and tables of kernels.

`xnn.training.flatten` turns the graph of a model and its loss into a list of calls. `binding.bind` turns each call
into a function without arguments: a kernel if the backend's KernelTable has one, or else the op itself.

| kind | reads | writes | what it does |
|---|---|---|---|
| gather | - | batch | copies the step's rows of the data to the device; options: source, cursor, Rescale's numbers |
| draw | - | mask | makes random numbers for this step; options: make, layer; for kernels recipe, again, cursor |
| forward | the op's inputs | output | runs op.forward; keeps `saved` for the backward call |
| backward | gradient | gradient per input | runs op.backward of the call `forward`; option: over_rows |
| keep | arrays, a value | arrays | updates running statistics or averages of weights by a rule |
| loss | the loss's inputs | loss, gradient | runs forward and backward of the last op at once |
| add | gradients | gradient | adds them from left to right |
| clip | gradients | gradients | clips all gradients together by a rule; options: the rule's |
| metric | outputs, targets | count | counts for a metric, such as the right answers in the batch |
| total | outputs, targets, sample weights if any | number | the divisor of the loss, by a LossOp or a function |
| collect | number | - | appends the number to a list that the trainer reads; options: into |
| options | - | - | computes the update's options in the middle of a step (`program.py` says when); options: compute |
| share | numbers, gradients | the same | exchanges them with the ranks of a training; options: compute |
| update | parameters, gradients, state | parameters, state | one step of an optimizer's rule |
| optimizer | gradients | parameters | one step of an optimizer with its own `step` or `update`; options: step |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["TABLES", "Call", "Cursor", "Feed", "KernelTable", "Runnable", "Slot", "Whole", "chain", "nothing"]

#: The names of tables of kernels; a backend may have only some of them.
TABLES = ("auto", "ops", "numpy", "compiled", "cuda")

Runnable = Callable[[], None]


def nothing() -> None:
    """Do nothing: a step that is not needed."""


def chain(*steps: Runnable) -> Runnable:
    """Return a function that runs these functions one after the other; `is_shared` if threads share one of them."""
    steps = tuple(step for step in steps if step is not nothing)
    if len(steps) == 1:
        return steps[0]

    def run() -> None:
        for step in steps:
            step()

    run.is_shared = any(getattr(step, "is_shared", False) for step in steps)  # type: ignore[attr-defined]
    return run


@dataclass(eq=False)
class Slot:
    """A place for one array, which calls read and write.

    fixed: whether kernels hold the array's address. Values are then copied into the array, which is never replaced.
    scaled: in exact numerics, an example of the ScaledIntegers that the slot holds in place of an array, or None.
    replaced: whether the array is replaced between steps, so that no kernel may hold its address: ops read it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    array: Any = None
    fixed: bool = False
    scaled: Any = None
    replaced: bool = False

    def put(self, array: Any) -> None:
        """Store a value that an op has computed."""
        if not self.fixed:
            self.array = array
        elif self.scaled is None:
            np.copyto(self.array, array)
        else:
            np.copyto(self.array.integers, array.integers)

    def allocate(self, lib: Any) -> None:
        """Replace the array by a buffer for kernels, with the same values, and set `fixed`."""
        if self.scaled is None:
            self.array = lib.buffer(self.shape, self.dtype, self.array)
        else:
            self.array = self.scaled.with_integers(lib.buffer(self.shape, self.scaled.integers.dtype))
        self.fixed = True

    def __repr__(self) -> str:
        return f"<slot {self.name} {self.dtype}{list(self.shape)}>"


@dataclass(eq=False)
class Cursor:
    """What gather and draw calls read, written before each step.

    rows: the row numbers of the step's samples, int64. stream: of random numbers: the seed and the step's number,
    uint64.
    """

    rows: np.ndarray
    stream: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))


@dataclass(eq=False)
class Call:
    """One line of a program: an op or a rule, the slots that it reads, and the slots that it writes.

    kind: one of the table at the top of this file.
    op: the op or rule, or None for kinds without one.
    reads, writes: slots. In `writes`, None stands for a result that nothing needs.
    options: the op's options, and those that the table names.
    forward: for a backward call, the forward call that it belongs to.
    activation: the op that is fused behind a dense call, or None.
    rule: the group of parameters that an update call changes. A backward call has one if the update is folded into
        it: it then writes parameters in place of gradients.
    parts: the calls that a fused call replaces.
    saved: what the forward call keeps for its backward call.
    """

    kind: str
    op: Any
    reads: tuple[Slot, ...]
    writes: tuple[Slot | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    forward: Call | None = None
    activation: Any = None
    rule: Any = None
    parts: tuple[Call, ...] = ()
    saved: Any = None

    @property
    def key(self) -> tuple[str, Any]:
        """The key under which a KernelTable holds the kernel of the call."""
        return self.kind, self.op

    @property
    def name(self) -> str:
        """The name of the op or rule, or else the kind."""
        op = self.op
        return self.kind if op is None else str(getattr(op, "name", getattr(op, "__name__", "?")))

    def columns(self) -> list[tuple[Slot, ...]]:
        """Return, for each parameter of an update call, the slots of its value, its gradient and its state."""
        count = len(self.reads) // self.rule.width
        return [self.reads[i::count] for i in range(count)]

    def slots(self) -> list[Slot]:
        """Return every slot that the call reads or writes, with those of its forward call."""
        own = [slot for slot in (*self.reads, *self.writes) if slot is not None]
        return own if self.forward is None else own + self.forward.slots()

    def with_parts(self) -> list[Call]:
        """Return the call and the calls that it replaces, and what those replace."""
        return [self, *(inner for part in self.parts for inner in part.with_parts())]

    def __repr__(self) -> str:
        folded = self.rule is not None and self.kind == "backward"
        fused = (f" + {self.activation.name}" if self.activation else "") + (" + update" if folded else "")
        name = "" if self.op is None else f" {self.name}"
        written = ", ".join("-" if slot is None else slot.name for slot in self.writes)
        return f"{self.kind}{name}{fused} ({', '.join(s.name for s in self.reads)}) -> {written or 'a list'}"


@dataclass(frozen=True)
class Whole:
    """Whether one kernel runs all steps of a chunk.

    run: takes as many steps as it is told; None: the program's calls run one after the other. because: why.
    """

    run: Callable[[int], None] | None
    because: str


class Feed(Protocol):
    """Brings what changes from step to step to a GPU, for several steps at once, and what they record back.

    seed: of the masks. columns: the numbers of the lists of `collect` that kernels fill.
    """

    seed: int
    columns: set[int]

    @property
    def most(self) -> int:
        """How many steps may be put before `send`; known when a program is bound."""

    @property
    def streaming(self) -> str:
        """A sentence that says why the data are streamed from the host, or "" if they are on the device."""

    def room(self, rows: int) -> int:
        """How many steps on batches of this many rows can be put before they are sent; 0 if a batch is too large."""

    def put(self, rows: np.ndarray) -> None:
        """Note the rows of one more step, and the options of all groups of parameters for it."""

    def send(self, number: int, rows: int) -> None:
        """Copy what was put; `number` is that of the first step, `rows` the size of each batch."""

    def renew(self) -> None:
        """Copy the options of all groups again, for the step that was sent last: they were computed since."""

    def loop(
        self,
        steps: Sequence[Runnable],
        captures: bool = True,
        refused: Callable[[Runnable], None] | None = None,
    ) -> Callable[[int], None]:
        """Return a function that runs a program's steps a number of times, captured if `captures`.

        refused: for steps among which are ops: called with the one that could not be captured, if there is one.
        """

    def take(self) -> dict[int, np.ndarray]:
        """Return what was recorded since the last call, by the number of its list. Waits for the device."""

    def forget(self) -> None:
        """Forget what was recorded."""

    def reload(self) -> None:
        """Copy the data of the host again, since they may have changed."""


class KernelTable:
    """A backend's kernels: for some kinds of calls, a function that is faster than the op and equivalent to it.

    kernels: maps (kind, op) to two functions of the call, (bind, serves). serves(call) tells whether the kernel can
        run the call, from its dtypes, shapes and options. bind(call), once the slots have buffers, returns a
        function without arguments that runs it.
    other: a second table, for the calls that this one cannot run. A call that neither can run is run by its op.
    in_place: whether the kernels change parameters in place, in buffers that lie side by side in memory.
    buffers_in_place: whether the kernels change a layer's buffers in place too, such as running statistics.
    chunk: how many steps a program can take at once.
    views: the ops whose result, and whose gradient, gets the memory of what it is made of, in another shape.
    """

    name = "ops"
    in_place = buffers_in_place = False
    chunk = 1
    views: frozenset[Any] = frozenset()

    def __init__(
        self,
        kernels: Mapping[tuple[str, Any], tuple[Callable[[Call], Any], Callable[[Call], bool]]] | None = None,
        other: KernelTable | None = None,
    ) -> None:
        self.kernels, self.other = kernels or {}, other

    def own(self, call: Call) -> bool:
        """Whether this table, without `other`, has a kernel for the call."""
        return call.key in self.kernels and self.kernels[call.key][1](call)

    def accepts(self, call: Call) -> bool:
        """Whether this table or `other` has a kernel for the call."""
        return self.own(call) or (self.other is not None and self.other.accepts(call))

    def bind(self, call: Call) -> Any:
        """Return the kernel of an accepted call, over the buffers of its slots."""
        if self.own(call):
            return self.kernels[call.key][0](call)
        assert self.other is not None
        return self.other.bind(call)

    def feed(
        self,
        groups: Sequence[Any],
        rows: int,
        collected: Sequence[Any],
        arrays: Sequence[Any] = (),
        free_memory: Callable[[], int | None] | None = None,
    ) -> Feed | None:
        """Return a feed for the programs of a fit, or None if the kernels read everything from the host.

        groups: the groups of parameters. rows: of the largest batch. collected: the lists of `collect` calls.
        arrays: the data. free_memory: gives the bytes that arrays can still take on the device; None: no limit.
        """
        return None

    def whole(self, calls: Sequence[Call]) -> Whole | None:
        """An object that runs several steps of a program in one call; None if these kernels run each by itself."""
        return None

    def several(
        self, turns: Sequence[tuple[Sequence[Runnable], Sequence[tuple[Any, Any]]]]
    ) -> Callable[[int], None] | None:
        """A function that runs the functions of programs in turn, a number of times, in one call; or None.

        turns: for each turn a program's functions, and pairs of an array that they read or write, and an array with
        one more axis, in front: at the n-th time its n-th part takes the place of the first.
        """
        return None

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """Turn the results of `bind`, in order, into functions without arguments. A subclass may join several."""
        return list(bound)
