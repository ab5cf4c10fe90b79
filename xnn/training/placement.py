"""Puts what a trainer changes on one backend: the model's, since `model.to` and assignments can move arrays."""

from __future__ import annotations

from typing import Any

from xnn.backends import Backend, backend_of
from xnn.errors import MixedArraysError
from xnn.layers import Sequential
from xnn.optimizers import Optimizer, State

__all__ = ["put_together", "with_arrays"]


def put_together(lib: Backend, model: Sequential, optimizer: Optimizer) -> None:
    """Move what the optimizer keeps to the model's backend: `model.to` moves only the model.

    Raises MixedArraysError if the model's own arrays are on several backends.
    """
    for name, array in model.named_state():
        if backend_of(array.array) is not lib:
            raise MixedArraysError(
                f"{name} of the model is an array of {backend_of(array.array).address}, and the first parameter one "
                f"of {lib.address}: model.to({lib.address!r}) moves all of them there"
            )
    for p in model.parameters():
        kept = [array for _, array in optimizer.kept_for(p)]
        moved = {id(a): lib.to_device(backend_of(a).to_host(a)) for a in kept if backend_of(a) is not lib}
        if moved:
            if p in optimizer.state:
                optimizer.state[p] = with_arrays(optimizer.state[p], moved)
            if p in optimizer.averages:
                optimizer.averages[p] = with_arrays(optimizer.averages[p], moved)


def with_arrays(state: Any, moved: dict[int, Any]) -> Any:
    """What an optimizer keeps for a parameter, with other arrays in the place of those with these identities."""
    if isinstance(state, State):
        return State(tuple(moved.get(id(a), a) for a in state.arrays), state.numbers, state.names)
    return moved.get(id(state), state)
