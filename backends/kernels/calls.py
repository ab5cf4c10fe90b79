"""The calls of a training step: slots that hold arrays, calls that read and write slots, and how a call is run.

`xnn.training.program` turns the graph of a model and its loss into a list of calls. `bind` turns each call into a
function without arguments: a kernel if the backend's KernelTable has one, or else the op itself (`interpret`). The op
is the specification: `tests/kernels/test_kernels.py` compares every kernel with it.

| kind | reads | writes | what it does |
|---|---|---|---|
| gather | - | batch | copies the step's rows of the data to the device; options: source, cursor, Rescale's numbers |
| draw | - | mask | makes random numbers for this step; options: make, and mask for dropout's |
| forward | the op's inputs | output | runs op.forward; keeps `saved` for the backward call |
| backward | gradient | gradient per input | runs op.backward of the call `forward` |
| keep | arrays, a value | arrays | updates running statistics or averages of weights by a rule |
| loss | the loss's inputs | loss, gradient | runs forward and backward of the last op at once |
| add | gradients | gradient | adds them from left to right |
| clip | gradients | gradients | clips all gradients together by a rule; options: the rule's |
| metric | outputs, targets | count | counts for a metric, such as the right answers in the batch |
| total | outputs, targets, sample weights if any | number | the number that the loss's sum was divided by |
| collect | number | - | appends the number to a list that the trainer reads; options: into |
| update | parameters, gradients, state | parameters, state | one step of an optimizer's rule |
| optimizer | gradients | parameters | one step of an optimizer with its own `step` or `update`; options: step |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from xnn.errors import DTypeError
from xnn.ops.apply import apply_rule, backward_of, check_gradients, forward_of, fresh_arrays

__all__ = [
    "TABLES",
    "Call",
    "Cursor",
    "Feed",
    "KernelTable",
    "Runnable",
    "Slot",
    "bind",
    "bind_each",
    "chain",
    "interpret",
    "nothing",
]

#: The names of tables of kernels; a backend may have only some of them.
TABLES = ("auto", "ops", "numpy", "compiled", "cuda")

Runnable = Callable[[], None]


def nothing() -> None:
    """Do nothing: a step that is not needed."""


def chain(*steps: Runnable) -> Runnable:
    """Return a function that runs these functions one after the other."""
    steps = tuple(step for step in steps if step is not nothing)
    if len(steps) == 1:
        return steps[0]

    def run() -> None:
        for step in steps:
            step()

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
    """The row numbers of a step's samples, int64: written before the step, read by its gather calls."""

    rows: np.ndarray


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

    def columns(self) -> list[tuple[Slot, ...]]:
        """Return, for each parameter of an update call, the slots of its value, its gradient and its state."""
        count = len(self.reads) // self.rule.width
        return [self.reads[i::count] for i in range(count)]

    def slots(self) -> list[Slot]:
        """Return every slot that the call reads or writes, with those of its forward call."""
        own = [slot for slot in (*self.reads, *self.writes) if slot is not None]
        return own if self.forward is None else own + self.forward.slots()

    def __repr__(self) -> str:
        folded = self.rule is not None and self.kind == "backward"
        fused = (f" + {self.activation.name}" if self.activation else "") + (" + update" if folded else "")
        name = "" if self.op is None else " " + getattr(self.op, "name", getattr(self.op, "__name__", "?"))
        written = ", ".join("-" if slot is None else slot.name for slot in self.writes)
        return f"{self.kind}{name}{fused} ({', '.join(s.name for s in self.reads)}) -> {written or 'a list'}"


class Feed(Protocol):
    """Brings what changes from step to step to a GPU, for several steps at once, and what they record back.

    seed: of the masks. columns: the numbers of the lists of `collect` that kernels fill.
    """

    seed: int
    columns: set[int]

    def put(self, rows: np.ndarray) -> None:
        """Note the rows of one more step, and the options of all groups of parameters for it."""

    def send(self, number: int, rows: int) -> None:
        """Copy what was put; `number` is that of the first step, `rows` the size of each batch."""

    def loop(self, steps: Sequence[Runnable], captures: bool = True) -> Callable[[int], None]:
        """Return a function that runs a program's steps a number of times, captured if `captures`."""

    def take(self) -> dict[int, np.ndarray]:
        """Return what was recorded since the last call, by column. Waits for the device."""

    def forget(self) -> None:
        """Forget what was recorded."""


class KernelTable:
    """A backend's kernels: for some kinds of calls, a function that is faster than the op and equivalent to it.

    kernels: maps (kind, op) to two functions of the call, (bind, serves). serves(call) tells whether the kernel can
        run the call, from its dtypes, shapes and options. bind(call), once the slots have buffers, returns a
        function without arguments that runs it.
    other: a second table, for the calls that this one cannot run. A call that neither can run is run by its op.
    in_place: whether the kernels change parameters in place, in buffers that lie side by side in memory.
    chunk: how many steps a program can take at once.
    """

    name = "ops"
    in_place = False
    chunk = 1

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

    def feed(self, groups: Sequence[Any], rows: int, collected: Sequence[Any]) -> Feed | None:
        """Return a feed for the programs of a fit, or None if the kernels read everything from the host.

        groups: the groups of parameters. rows: of the largest batch. collected: the lists of `collect` calls.
        """
        return None

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """Turn the results of `bind`, in order, into functions without arguments. A subclass may join several."""
        return list(bound)


def bind(
    lib: Any, table: KernelTable, calls: Sequence[Call], by_ops: list[Call] | None = None
) -> list[Runnable]:
    """Turn a list of calls into functions without arguments: kernels where the table has them, ops elsewhere.

    by_ops: a list to which the calls that ops run are added.
    """
    return table.assemble(bind_each(lib, table, calls, by_ops))


def bind_each(
    lib: Any, table: KernelTable, calls: Sequence[Call], by_ops: list[Call] | None = None
) -> list[Any]:
    """Return a function for each call: the table's kernel, or else one that runs the op; `by_ops` as for `bind`.

    A forward call and its backward call are run both by kernels or both by the op: an op's backward needs what the
    op's forward has saved, and a kernel's what the kernel has.
    """
    chosen = {call: table.accepts(call) and not any(slot.replaced for slot in call.slots()) for call in calls}
    for call in calls:
        if call.forward is not None and call.forward in chosen:
            chosen[call] = chosen[call.forward] = chosen[call] and chosen[call.forward]
    for call in calls:
        for slot in call.slots() if chosen[call] else ():
            if slot.array is None or not slot.fixed:
                slot.allocate(lib)
    if by_ops is not None:
        by_ops.extend(call for call in calls if not chosen[call])
    return [table.bind(call) if chosen[call] else interpret(lib, call) for call in calls]


def interpret(lib: Any, call: Call) -> Runnable:
    """Return a function that runs a call by its op, the specification: the slots get new arrays."""
    if call.parts:
        steps = [interpret(lib, part) for part in call.parts]

        def all_parts() -> None:
            for step in steps:
                step()

        return all_parts
    return _INTERPRETERS[call.kind](lib, call)


def _gather(lib: Any, call: Call) -> Runnable:
    source, cursor, target = call.options["source"], call.options["cursor"], call.writes[0]
    assert target is not None

    def run() -> None:
        if isinstance(source, np.ndarray):
            target.put(lib.to_device(source[cursor.rows]))
        else:
            target.put(lib.xp.take(source, lib.to_device(cursor.rows), axis=0))

    return run


def _draw(lib: Any, call: Call) -> Runnable:
    make, target = call.options["make"], call.writes[0]
    assert target is not None
    return lambda: target.put(make())


def _forward(lib: Any, call: Call) -> Runnable:
    target, options = call.writes[0], call.options
    assert target is not None
    xp = lib.math

    def run() -> None:
        value, call.saved = forward_of(call.op, xp, [slot.array for slot in call.reads], options)
        target.put(value)

    return run


def _by_rule(lib: Any, call: Call) -> Runnable:
    """Apply the rule to everything that the call reads, and store the results in what it writes."""
    xp = lib.math

    def run() -> None:
        fresh = fresh_arrays(call.op, xp, [slot.array for slot in call.reads], call.options, call.writes)
        for slot, array in zip(call.writes, fresh, strict=True):
            slot.put(array)  # type: ignore[union-attr]

    return run


def _backward(lib: Any, call: Call) -> Runnable:
    forward = call.forward
    assert forward is not None
    xp = lib.math
    first = True

    def run() -> None:
        nonlocal first
        saved = forward.saved if call.writes[0] is not None else call.op.without_input_gradient(forward.saved)
        gradients = backward_of(call.op, xp, call.reads[0].array, saved)
        forward.saved = None
        if first:  # once is enough: a program's shapes do not change
            _check(call, gradients)
            first = False
        for slot, gradient in zip(call.writes, gradients, strict=True):
            if slot is not None:
                slot.put(
                    xp.zeros(slot.shape, dtype=slot.dtype, device=lib.device)
                    if gradient is None
                    else gradient
                )

    return run


def _check(call: Call, gradients: Sequence[Any]) -> None:
    """Raise GraphError or DTypeError if gradients do not have the shapes and dtypes of the op's inputs."""
    assert call.forward is not None
    # A Python number is a slot of dtype object; its gradient may have any shape.
    inputs = [None if slot.dtype is object else slot.shape for slot in call.forward.reads]
    check_gradients(call.op, gradients, inputs)
    for number, (slot, gradient) in enumerate(zip(call.writes, gradients, strict=True)):
        if slot is not None and gradient is not None and gradient.dtype != slot.dtype:
            raise DTypeError(
                f"the backward of {call.op.name} returned a gradient of {gradient.dtype} for input {number} of "
                f"{slot.dtype}: a gradient must have its input's dtype, so convert it, as by "
                "xp.astype(gradient, grad.dtype)"
            )


def _add(lib: Any, call: Call) -> Runnable:
    target = call.writes[0]
    assert target is not None

    def run() -> None:
        total = call.reads[0].array
        for slot in call.reads[1:]:
            total = total + slot.array
        target.put(total)

    return run


def _metric(lib: Any, call: Call) -> Runnable:
    (outputs, targets), number = call.reads, call.writes[0]
    assert number is not None
    xp = lib.math

    def run() -> None:
        number.put(lib.number_on_device(apply_rule(call.op, xp, (outputs.array, targets.array), {})))

    return run


def _total(lib: Any, call: Call) -> Runnable:
    number = call.writes[0]
    assert number is not None
    return lambda: number.put(lib.number_on_device(call.op(*(slot.array for slot in call.reads))))


def _collect(lib: Any, call: Call) -> Runnable:
    numbers, source = call.options["into"], call.reads[0]
    # A fixed buffer is copied, since the next step overwrites it. An op's own array can stay, on the device.
    return lambda: numbers.append(source.array.copy() if source.fixed else source.array)


def _update(lib: Any, call: Call) -> Runnable:
    group = call.rule
    columns = call.columns()
    xp = lib.math

    def run() -> None:
        options = group.options
        for parameter, gradient, *state in columns:
            given = parameter.array, gradient.array, *(slot.array for slot in state)
            changing = parameter, *state
            for slot, array in zip(
                changing, fresh_arrays(call.op, xp, given, options, changing), strict=True
            ):
                slot.put(array)

    return run


_INTERPRETERS: dict[str, Callable[[Any, Call], Runnable]] = {
    "gather": _gather,
    "draw": _draw,
    "forward": _forward,
    "keep": _by_rule,
    "backward": _backward,
    "add": _add,
    "clip": _by_rule,
    "metric": _metric,
    "total": _total,
    "collect": _collect,
    "update": _update,
    "optimizer": lambda lib, call: call.options["step"],
}
