"""The floating-point operations of layers, as far as the layers say them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["added", "flops_of"]


def flops_of(layer: Any, shape: tuple[int, ...]) -> int | None:
    """The floating-point operations of a layer for one sample of this shape.

    None where nobody says them: for a layer that a class of the user's computes, without a `flops` of its own.
    """
    for kind in type(layer).__mro__:
        if "flops" in vars(kind):
            break
        if not kind.__module__.startswith("xnn.") and not vars(kind).keys().isdisjoint(
            ("compute", "forward", "op")
        ):
            return None
    found: int | None = layer.flops(shape)
    return found


def added(numbers: Iterable[int | None]) -> int | None:
    """The sum of the numbers, None if one is None."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
