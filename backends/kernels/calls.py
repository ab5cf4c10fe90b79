"""A program as a backend sees it: slots that hold arrays, calls that fill them, and how a call is run.

`xnn.training.program` flattens a graph into a list of calls. Here each becomes a function without arguments: a
kernel of the backend's table where there is one, or the op itself (`interpret`), which is what the kernel is
held to by `tests/kernels/test_kernels.py`.

| kind | reads | writes | what it does |
|---|---|---|---|
| gather | - | batch | the step's rows of a data set, to the device; options: source, and Rescale's scale and offset |
| draw | - | mask | what is made anew for each step; options: make |
| forward | the op's inputs | output | op.forward; keeps `saved` for the backward call |
| backward | gradient | gradient per input | op.backward of the call `forward` |
| keep | arrays, a value | arrays | what training keeps by a rule: running statistics, averages of weights |
| loss | the loss's inputs | loss, gradient | forward and backward of the last op at once |
| add | gradients | gradient | their sum from left to right |
| clip | gradients | gradients | all of them at once by a rule, before any is used; options: the rule's |
| metric | outputs, targets | count | what a metric counts in the batch |
| total | outputs, targets, perhaps sample weights | number | what the batch's mean was divided by: op(*reads) |
| record | number | - | kept until the trainer asks |
| update | parameters, gradients, state | parameters, state | one step of an optimizer's rule |
| optimizer | gradients | parameters | one step of an optimizer that has a way of its own; options: step |

A backend that knows faster ways lists them in a KernelTable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from xnn.errors import DTypeError
from xnn.ops.apply import apply_rule, backward_of, check_gradients, forward_of

__all__ = ["Call", "Cursor", "KernelTable", "Runnable", "Slot", "as_number", "bind", "bind_each", "interpret"]

Runnable = Callable[[], None]


@dataclass(eq=False)
class Slot:
    """A place for one array. `fixed`: a kernel knows the array's address, so values are copied into it."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    array: Any = None
    fixed: bool = False
    #: An example of the ScaledIntegers it holds in exact numerics, in place of a plain array.
    scaled: Any = None

    def put(self, array: Any) -> None:
        """Take a value that an op made."""
        if not self.fixed:
            self.array = array
        elif self.scaled is None:
            np.copyto(self.array, array)
        else:
            np.copyto(self.array.integers, array.integers)

    def allocate(self, lib: Any) -> None:
        """Give it a buffer that kernels know, with what it holds."""
        if self.scaled is None:
            self.array = lib.buffer(self.shape, self.dtype, self.array)
        else:
            self.array = self.scaled.with_integers(lib.buffer(self.shape, self.scaled.integers.dtype))
        self.fixed = True

    def __repr__(self) -> str:
        return f"<slot {self.name} {self.dtype}{list(self.shape)}>"


@dataclass(eq=False)
class Cursor:
    """The rows of the data that a step takes: written before it, read by its gather calls."""

    rows: np.ndarray


@dataclass(eq=False)
class Call:
    """One line of a program; the table above says what each kind reads and writes. None is a value nobody needs.

    activation: an op fused behind a dense call. rule: the group of parameters whose rule an update applies, or
    whose update is folded into a backward call, which then writes parameters in the place of gradients. parts:
    the calls that a fused one stands for.
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
        """What a kernel table is asked for."""
        return self.kind, self.op

    def columns(self) -> list[tuple[Slot, ...]]:
        """What an update reads, parameter by parameter: the parameter, its gradient, its state's arrays."""
        count = len(self.reads) // self.rule.width
        return [self.reads[i::count] for i in range(count)]

    def slots(self) -> list[Slot]:
        """Every slot it touches, those of its forward call too."""
        own = [slot for slot in (*self.reads, *self.writes) if slot is not None]
        return own if self.forward is None else own + self.forward.slots()

    def __repr__(self) -> str:
        folded = self.rule is not None and self.kind == "backward"
        fused = (f" + {self.activation.name}" if self.activation else "") + (" + update" if folded else "")
        name = "" if self.op is None else " " + getattr(self.op, "name", getattr(self.op, "__name__", "?"))
        written = ", ".join("-" if slot is None else slot.name for slot in self.writes)
        return f"{self.kind}{name}{fused} ({', '.join(s.name for s in self.reads)}) -> {written or 'kept'}"


class KernelTable:
    """A backend's faster equivalents of ops, and the table asked for what this one does not have.

    kernels: (kind, op) -> a pair of functions of the call. The second says whether the kernel serves it (its
    dtypes, shapes, options); the first, given buffers in its slots, returns a function without arguments. A
    call that no table serves is run by the op itself.
    """

    name = "ops"
    #: Whether its kernels change parameters in place, in buffers that lie side by side.
    in_place = False

    def __init__(
        self,
        kernels: Mapping[tuple[str, Any], tuple[Callable[[Call], Any], Callable[[Call], bool]]] | None = None,
        other: KernelTable | None = None,
    ) -> None:
        self.kernels, self.other = kernels or {}, other

    def own(self, call: Call) -> bool:
        """Whether this table, the other aside, has a kernel for the call."""
        return call.key in self.kernels and self.kernels[call.key][1](call)

    def accepts(self, call: Call) -> bool:
        """Whether there is a kernel for the call."""
        return self.own(call) or (self.other is not None and self.other.accepts(call))

    def bind(self, call: Call) -> Any:
        """The kernel of an accepted call, over the buffers of its slots."""
        if self.own(call):
            return self.kernels[call.key][0](call)
        assert self.other is not None
        return self.other.bind(call)

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """What `bind` made, as functions without arguments, in order."""
        return list(bound)


def bind(lib: Any, table: KernelTable, calls: Sequence[Call]) -> list[Runnable]:
    """A list of calls as functions without arguments: kernels over buffers where the table has them."""
    return table.assemble(bind_each(lib, table, calls))


def bind_each(lib: Any, table: KernelTable, calls: Sequence[Call]) -> list[Any]:
    """What `bind` assembles, an item for each call: of the table's making, or an op's function.

    A forward and a backward call go together: an op's backward needs what the op's own forward saved.
    """
    chosen = {call: table.accepts(call) for call in calls}
    for call in calls:
        if call.forward is not None and call.forward in chosen:
            chosen[call] = chosen[call.forward] = chosen[call] and chosen[call.forward]
    for call in calls:
        for slot in call.slots() if chosen[call] else ():
            if slot.array is None or not slot.fixed:
                slot.allocate(lib)
    return [table.bind(call) if chosen[call] else interpret(lib, call) for call in calls]


def interpret(lib: Any, call: Call) -> Runnable:
    """The call by the ops themselves: fresh arrays, put where the call writes. This is the specification."""
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
    """What a call writes becomes what its rule makes of all it reads: keep and clip."""
    xp = lib.math

    def run() -> None:
        fresh = apply_rule(call.op, xp, [slot.array for slot in call.reads], call.options)
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
        if first:  # shapes stay what they are
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
    """Raise GraphError or DTypeError for gradients that are not like the inputs of a backward call."""
    assert call.forward is not None
    inputs = [None if slot.dtype is object else slot.shape for slot in call.forward.reads]  # a number: object
    check_gradients(call.op.name, gradients, inputs)
    for number, (slot, gradient) in enumerate(zip(call.writes, gradients, strict=True)):
        if slot is not None and gradient is not None and gradient.dtype != slot.dtype:
            raise DTypeError(
                f"the backward of {call.op.name} returned a gradient of {gradient.dtype} for input {number} of "
                f"{slot.dtype}: xp.astype(gradient, grad.dtype) gives it the dtype that came in"
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
        number.put(as_number(lib, apply_rule(call.op, xp, (outputs.array, targets.array), {})))

    return run


def _total(lib: Any, call: Call) -> Runnable:
    number = call.writes[0]
    assert number is not None
    return lambda: number.put(as_number(lib, call.op(*(slot.array for slot in call.reads))))


def as_number(lib: Any, value: Any) -> Any:
    """What a metric gave, on the device also where a metric of the user's gives a plain number."""
    if not isinstance(value, (Real, np.generic)):
        if not hasattr(value, "shape"):
            raise DTypeError(f"a metric must count an array or a number, got {type(value).__name__}")
        return value
    return lib.to_device(float(value))


def _record(lib: Any, call: Call) -> Runnable:
    records, source = call.options["records"], call.reads[0]
    # A buffer will be written again; an op's own array is kept as it is, on the device.
    return lambda: records.append(source.array.copy() if source.fixed else source.array)


def _update(lib: Any, call: Call) -> Runnable:
    group = call.rule
    columns = call.columns()
    xp = lib.math

    def run() -> None:
        options = group.options
        for parameter, gradient, *state in columns:
            given = parameter.array, gradient.array, *(slot.array for slot in state)
            fresh = apply_rule(call.op, xp, given, options)
            for slot, array in zip((parameter, *state), fresh, strict=False):
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
    "record": _record,
    "update": _update,
    "optimizer": lambda lib, call: call.options["step"],
}
