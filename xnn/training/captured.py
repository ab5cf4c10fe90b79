"""Which calls of a program a CUDA graph can hold, although ops run them: those that do the same in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

from xnn.backends import Backend
from xnn.backends.kernels.calls import Call
from xnn.ops import Op
from xnn.ops.apply import apply_rule, forward_of

__all__ = ["held_by", "needs_host", "unrepeatable"]

#: Kinds of calls that, without a kernel, read numbers of the step on the host, or store some there.
_ON_HOST = "gather", "draw", "collect", "update", "optimizer"


def needs_host(call: Call) -> bool:
    """Whether a call without a kernel does something else than the same operations on arrays in each step."""
    parts = call.with_parts()
    by_hand = any(isinstance(part.op, Op) and (part.op.opaque or hasattr(part.op, "owner")) for part in parts)
    return by_hand or any(part.kind in _ON_HOST for part in parts)


def held_by(op: Any) -> Iterator[Any]:
    """What an op, a metric or a function computes with besides its arguments: attributes, defaults and closure."""
    for part in (op, getattr(op, "__self__", None)):
        for value in (*getattr(part, "__dict__", {}).values(), *(getattr(part, "__defaults__", None) or ())):
            yield value
            if isinstance(value, FunctionType):
                yield from held_by(value)
        yield from (cell.cell_contents for cell in getattr(part, "__closure__", None) or ())


def unrepeatable(lib: Backend, calls: Sequence[Call]) -> list[Call]:
    """The calls of users' ops and metrics that compute something else when they run a second time on the same arrays.

    A graph would repeat their first numbers. The slots hold the arrays of a step.
    """
    return [
        call
        for call in calls
        if _is_of_users(call) and not _same(lib, *(_result(lib, call) for _ in range(2)))
    ]


def _is_of_users(call: Call) -> bool:
    op = call.op
    own = [
        getattr(op, "__module__", ""),
        *(type(value).__module__ for value in (op, getattr(op, "function", None))),
    ]
    return call.kind in ("forward", "metric") and not all(
        name.startswith(("xnn.", "builtins")) for name in own
    )


def _result(lib: Backend, call: Call) -> Any:
    arrays = [slot.array for slot in call.reads]
    if call.kind == "forward":
        return forward_of(call.op, lib.math, arrays, call.options)[0]
    return lib.number_on_device(apply_rule(call.op, lib.math, arrays, {}))


def _same(lib: Backend, a: Any, b: Any) -> bool:
    """Whether two arrays have the same elements. Waits for the device."""
    return a.shape == b.shape and not bool(lib.to_host(lib.xp.any((a != b) & ((a == a) | (b == b)))))
