"""Which calls of a program a CUDA graph can hold, although ops run them: those that do the same in every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any

from xnn.backends import Backend
from xnn.backends.kernels.binding import counted
from xnn.backends.kernels.calls import Call
from xnn.ops import Op
from xnn.ops.apply import backward_of, forward_of, fresh_arrays
from xnn.training.closures import enclosed

__all__ = ["Sample", "carrying", "held_by", "needs_host", "samples"]

#: Kinds of calls that, without a kernel, read numbers of the step on the host, or store some there.
_ON_HOST = "gather", "draw", "collect", "update", "optimizer", "share"


def needs_host(call: Call) -> bool:
    """Whether a call without a kernel does something else than the same operations on arrays in each step."""
    parts = call.with_parts()
    by_hand = any(isinstance(part.op, Op) and (part.op.opaque or hasattr(part.op, "owner")) for part in parts)
    return by_hand or any(part.kind in _ON_HOST and not _is_steady(part) for part in parts)


def _is_steady(call: Call) -> bool:
    """Whether a call is an update whose options do not change from step to step."""
    return call.kind == "update" and call.rule.steady


def carrying(calls: Sequence[Call]) -> set[Call]:
    """The calls that hand an array on to the next step in a slot without a place of its own.

    A graph reads the array of the first step again and again, since it has the addresses of arrays.
    """
    written, carried = set[int](), set[int]()
    for call in calls:
        carried |= {id(slot) for slot in call.reads if not slot.fixed} - written
        written |= {id(slot) for slot in call.writes}
    return {call for call in calls if any(id(slot) in carried for slot in call.writes)}


def held_by(op: Any, known: set[Any] | None = None) -> Iterator[Any]:
    """What an op, a metric or a function computes with besides its arguments: attributes, defaults and closure.

    known: functions that were looked into already. Default none.
    """
    known = set() if known is None else known
    for part in (op, getattr(op, "__self__", None)):
        for value in (*getattr(part, "__dict__", {}).values(), *enclosed(part).values()):
            yield value
            if isinstance(value, FunctionType) and value not in known:
                known.add(value)
                yield from held_by(value, known)


class Sample:
    """What a user's op, metric or rule made of the arrays of one step, to see later whether it still makes the same.

    A graph repeats the first numbers of an op that draws random numbers, or that reads a dictionary or a global name
    which somebody changes. `again` finds that out, whatever it is.

    call: of the op; its slots hold the arrays of a step. slope: whether a step calls the op's backward.
    """

    def __init__(self, lib: Backend, call: Call, slope: bool) -> None:
        self.lib, self.call, self.slope = lib, call, slope
        arrays = [slot.array for slot in call.reads]
        self.arrays = [lib.xp.asarray(x, copy=True) if hasattr(x, "shape") else x for x in arrays]
        self.made = [lib.xp.asarray(x, copy=True) for x in self._results()]

    def again(self) -> bool:
        """Whether it makes the same numbers of the same arrays again. Waits for the device."""
        now = self._results()
        return len(now) == len(self.made) and all(map(self._same, now, self.made))

    def _results(self) -> list[Any]:
        call, math = self.call, self.lib.math
        if call.kind == "forward":
            value, saved = forward_of(call.op, math, self.arrays, call.options)
            gradients = backward_of(call.op, math, self.lib.xp.ones_like(value), saved) if self.slope else ()
            return [value, *(gradient for gradient in gradients if gradient is not None)]
        if call.kind == "keep":
            return [*fresh_arrays(call.op, math, self.arrays, call.options, call.writes)]
        return [counted(self.lib, math, call, self.arrays)]

    def _same(self, a: Any, b: Any) -> bool:
        xp = self.lib.xp
        return a.shape == b.shape and not bool(self.lib.to_host(xp.any((a != b) & ((a == a) | (b == b)))))


def samples(lib: Backend, calls: Sequence[Call]) -> list[Sample]:
    """A sample of each call of a user's op, metric or rule."""
    parts = [part for call in calls for part in call.with_parts()]
    sloped = {part.forward for part in parts if part.kind == "backward"}
    kinds = "forward", "metric", "keep", "total"
    return [Sample(lib, part, part in sloped) for part in parts if part.kind in kinds and _is_of_users(part)]


def _is_of_users(call: Call) -> bool:
    return not all(name.startswith(("xnn.", "builtins")) for name in _modules(call.op))


def _modules(op: Any) -> Iterable[str]:
    """The modules of an op or function, of its object, and of the functions that these hold."""
    yield getattr(op, "__module__", None) or ""
    for part in (op, getattr(op, "__self__", None)):
        yield type(part).__module__
        function = getattr(part, "function", None)
        yield getattr(function, "__module__", None) or type(function).__module__
