"""How a call becomes a function without arguments: a kernel of the table, or the op itself (`interpret`).

The op is the specification: `tests/kernels` compares every kernel with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xnn.backends.communicator import over_rows
from xnn.backends.kernels.buffers import allocate
from xnn.backends.kernels.calls import Call, KernelTable, Runnable, Slot
from xnn.backends.row_sources import is_on_host
from xnn.errors import DTypeError
from xnn.ops.apply import apply_rule, backward_of, check_gradients, forward_of, fresh_arrays

__all__ = ["bind", "bind_each", "counted", "interpret"]


def bind(
    lib: Any,
    table: KernelTable,
    calls: Sequence[Call],
    by_ops: dict[Any, Call] | None = None,
    shares: bool = False,
) -> list[Runnable]:
    """Turn a list of calls into functions without arguments: kernels where the table has them, ops elsewhere.

    by_ops: a dictionary to which the functions that run ops are added, with their calls. shares: whether slots that
    are not needed at the same time may share a buffer (`buffers.py`), if nobody reads them after a step.
    """
    return table.assemble(bind_each(lib, table, calls, by_ops, shares))


def bind_each(
    lib: Any,
    table: KernelTable,
    calls: Sequence[Call],
    by_ops: dict[Any, Call] | None = None,
    shares: bool = False,
) -> list[Any]:
    """Return a function for each call: the table's kernel, or else one that runs the op. Arguments as for `bind`.

    A forward call and its backward call are run both by kernels or both by the op: an op's backward needs what the
    op's forward has saved, and a kernel's what the kernel has.
    """
    chosen = {call: table.accepts(call) and not any(slot.replaced for slot in call.slots()) for call in calls}
    pairs = [(call, part.forward) for call in calls for part in call.with_parts() if part.forward in chosen]
    for call, forward in pairs * 2:  # twice, since a fused backward call can have two forward calls
        if forward is not None:
            chosen[call] = chosen[forward] = chosen[call] and chosen[forward]
    allocate(lib, calls, chosen, table.views, shares)
    bound = [table.bind(call) if chosen[call] else interpret(lib, call) for call in calls]
    if by_ops is not None:
        by_ops.update({run: call for run, call in zip(bound, calls, strict=True) if not chosen[call]})
    return bound


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
        if is_on_host(source):
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
    first, mixes = True, bool(call.options.get("over_rows"))

    def run() -> None:
        nonlocal first
        saved = forward.saved if call.writes[0] is not None else call.op.without_input_gradient(forward.saved)
        token = over_rows.set(mixes)
        try:
            gradients = backward_of(call.op, xp, call.reads[0].array, saved)
        finally:
            over_rows.reset(token)
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


def counted(lib: Any, xp: Any, call: Call, arrays: Sequence[Any]) -> Any:
    """What a metric or total call makes of these arrays, as an array on the device. xp: the namespace of the ops."""
    if call.kind == "metric":
        return lib.number_on_device(apply_rule(call.op, xp, arrays, call.options))
    if hasattr(call.op, "total"):
        return lib.number_on_device(apply_rule(call.op.total, xp, arrays, call.options))
    return lib.number_on_device(call.op(*arrays))


def _count(lib: Any, call: Call) -> Runnable:
    number, xp = call.writes[0], lib.math
    assert number is not None
    return lambda: number.put(counted(lib, xp, call, [slot.array for slot in call.reads]))


def _collect(lib: Any, call: Call) -> Runnable:
    numbers, source = call.options["into"], call.reads[0]
    # A fixed buffer is copied, since the next step overwrites it. An op's own array can stay, on the device.
    return lambda: numbers.append(source.array.copy() if source.fixed else source.array)


def _update(lib: Any, call: Call) -> Runnable:
    group = call.rule
    columns = call.columns()
    xp = lib.math
    if group.in_place and (group.steady or group.is_shared):  # the rule works element by element
        columns = [
            tuple(Slot("stretch", a.shape, a.dtype, a, fixed=True) for a in s) for s in group.stretches(call)
        ]

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
    "metric": _count,
    "total": _count,
    "collect": _collect,
    "update": _update,
    "options": lambda lib, call: call.options["compute"],
    "optimizer": lambda lib, call: call.options["step"],
    "share": lambda lib, call: call.options["compute"],
}
