"""Looks at what a loss of the user's computes: whether it broadcasts by mistake, whether it is a mean or a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import backend_of
from xnn.errors import ShapeError, XnnError
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope
from xnn.graph.value import Value

__all__ = ["check_broadcast", "reduction_of"]

_NAMES = ("outputs", "targets", "sample_weight")
#: How far from equal two float32 sums may be that should be equal, relative to their size.
_TOLERANCE = 1e-2


def check_broadcast(loss: Any, cost: Recorded, given: Sequence[Recorded]) -> None:
    """Raise ShapeError if (n, 1) was combined with (n,) to (n, n), every sample with every other.

    cost: what the loss computed. given: the outputs, the targets and perhaps the sample weights that it was given.
    An array is compared only with one that was computed of something else, so that a loss of pairs of outputs, or of
    pairs of targets, is not meant.
    """
    rows = given[0].shape[0] if given[0].shape else 0
    if rows < 2 or len({x.shape for x in given}) == 1:
        return
    sources = {node: frozenset([place]) for place, node in enumerate(given)}
    for node in _between(cost, sources):
        parts = [(source, sources.get(source, frozenset())) for source in node.inbound_nodes]
        sources[node] = frozenset[int]().union(*(own for _, own in parts))
        for a, of_a in parts:
            for b, of_b in parts:
                if of_a and of_b and of_a != of_b and _broadcasts(a.array, b.array, node.array, rows):
                    shapes = tuple(a.shape), tuple(b.shape), tuple(node.shape)
                    assert node.op is not None
                    raise ShapeError(
                        f"{loss!r} combines {_called(of_a)} of shape {shapes[0]} with {_called(of_b)} of shape "
                        f"{shapes[1]} by ops.{node.op.name}, which broadcasts to {shapes[2]}, every sample with "
                        "every other: give both one shape, as ops.reshape or "
                        f"y.reshape({', '.join(map(str, (-1, *shapes[0][1:])))}) does"
                    )


def _between(cost: Recorded, given: Any) -> list[Recorded]:
    """The values that were computed on the way to the cost, in order, without those that `given` came from."""
    found, queue = {cost}, [cost]
    for node in queue:  # grows while it is walked
        for source in node.inbound_nodes:
            if source not in found and source not in given:
                found.add(source)
                queue.append(source)
    return sorted((node for node in queue if node.op is not None), key=lambda node: node.created)


def _broadcasts(a: Any, b: Any, result: Any, rows: int) -> bool:
    """Whether the rows of b lie along an axis of size 1 of a, so that the result has rows times rows elements."""
    first, second, made = (tuple(getattr(x, "shape", ())) for x in (a, b, result))
    axis = len(first) - len(second)
    return (
        0 < axis < len(first) == len(made)
        and first[0] == second[0] == made[0] == made[axis] == rows
        and first[axis] == 1
    )


def _called(places: frozenset[int]) -> str:
    return " and ".join(_NAMES[place] for place in sorted(places))


def reduction_of(loss: Any, arrays: Sequence[Any]) -> str | None:
    """Whether a loss is the "mean" or the "sum" over a batch; None if this batch does not tell.

    arrays: outputs, targets and perhaps sample weights. The batch is taken twice and four times: a mean stays the
    same, a sum grows with the batch. With weights, a mean that doubles with them is "sum_over_batch_size". Anything
    else, such as a contrast of samples, counts as a mean.

    Raises ShapeError for a loss that broadcasts by mistake.
    """
    xp, rows = backend_of(*arrays).xp, int(arrays[0].shape[0])
    repeated = [arrays, *([xp.concat([x] * times) for x in arrays] for times in (2, 4))]
    if not loss.by_hand:
        with Scope():  # recorded, for `check_broadcast`
            loss.run(*map(Value, repeated[rows == 1]))
    try:
        once, twice, fourfold = (_value(loss, x) for x in repeated)
    except XnnError:
        return "mean" if rows > 1 else None  # a loss for batches of one size
    if not np.isfinite([once, twice, fourfold]).all() or not once or not twice:
        return None
    if abs(twice - once) > _TOLERANCE * abs(once):
        doubled = abs((fourfold - twice) - 2.0 * (twice - once)) <= _TOLERANCE * abs(twice - once)
        return "sum" if doubled else "mean"
    if len(arrays) > 2:
        heavier = _value(loss, [*arrays[:2], 2.0 * arrays[2]])
        if abs(heavier - 2.0 * once) <= _TOLERANCE * abs(once):
            return "sum_over_batch_size"
    return "mean"


def _value(loss: Any, arrays: Sequence[Any]) -> float:
    with Scope(records=False), np.errstate(all="ignore"):
        return float(backend_of(arrays[0]).to_host(loss.run(*arrays)))
