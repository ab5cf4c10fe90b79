"""Turns recorded values into the calls of a program: the forward call of each op, and the slots that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xnn.backends.kernels.calls import Call, Slot
from xnn.graph.node import Recorded
from xnn.graph.value import Constant

__all__ = ["forward_calls", "slot_of"]


def slot_of(node: Recorded, place: int) -> Slot:
    """Make the slot of a recorded value that is not a parameter. place: its number among all values."""
    value = node.array
    shape, dtype = tuple(getattr(value, "shape", ())), getattr(value, "dtype", object)
    name = type(node).__name__.lower() if node.op is None else node.op.name
    scaled = value if hasattr(value, "integers") else None
    kept = value if isinstance(node, Constant) else None
    return Slot(f"{name} {place}", shape, dtype, kept, scaled=scaled)


def forward_calls(order: Sequence[Recorded], slots: Mapping[Recorded, Slot]) -> dict[Recorded, Call]:
    """The forward call of each op, in order. slots: those of all values."""
    return {
        node: Call(
            "forward",
            node.op,
            tuple(slots[source] for source in node.inbound_nodes),
            (slots[node],),
            dict(node.options),
        )
        for node in order
        if node.op is not None
    }
