"""The kernels with which ranks compute their rows of a batch in fast numerics: those that only compute rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn import ops
from xnn.backends.communicator import communicator
from xnn.backends.kernels.calls import Call, Feed, KernelTable, Runnable
from xnn.ops import updates

__all__ = ["FastTable"]

#: Ops whose kernels would take the mean and variance, or their gradients, of this rank's rows for those of the batch.
_OVER_ROWS = {ops.moments, ops.normalize}


class FastTable(KernelTable):
    """The kernels of another table that compute each row alone, or the part of a gradient that its rows make.

    So, too, a loss without weights and options: its mean over these rows, and the gradient, are made smaller by their
    share of the batch. What else there is in a step is left to the ops, which add up the rows of all ranks: other
    losses, batch normalization, random numbers and running statistics.

    inner: the other table.
    """

    def __init__(self, inner: KernelTable) -> None:
        super().__init__()
        self.inner, self.name, self.views = inner, inner.name, inner.views
        self.in_place, self.buffers_in_place = inner.in_place, False

    def _computes_rows(self, call: Call) -> bool:
        if call.kind in ("forward", "backward"):
            forward = call.forward or call
            axes, ndim = forward.options.get("axis", ()), len(forward.reads[0].shape)
            first = [
                a for a in (axes if isinstance(axes, tuple) else (axes,)) if a is not None and a % ndim == 0
            ]
            over_batch = call.op in _OVER_ROWS and bool(first)
            return not over_batch and all(
                part is call or self._computes_rows(part) for part in call.with_parts()
            )
        if call.kind == "keep":
            return call.op is updates.moving_average
        if call.kind == "loss":  # those of a GPU record the loss as they compute it
            plain = isinstance(call.op, ops.LossOp) and len(call.reads) == 2 and not call.options
            return plain and self.inner.name != "cuda"
        return call.kind in ("gather", "add", "clip", "metric", "update")

    def feed(self, *arguments: Any) -> Feed | None:
        """The other table's: its kernels read from it."""
        return self.inner.feed(*arguments)

    def accepts(self, call: Call) -> bool:
        return self._computes_rows(call) and self.inner.accepts(call)

    def own(self, call: Call) -> bool:
        return self._computes_rows(call) and self.inner.own(call)

    def bind(self, call: Call) -> Any:
        made, shard = self.inner.bind(call), communicator()
        if call.kind != "loss" or shard is None:
            return made
        rows = call.reads[0].shape[0]
        share, arrays = rows / shard.count(rows), [slot.array for slot in call.writes if slot is not None]

        def shared() -> None:
            for array in arrays:
                array *= share

        return [made, shared]

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        parts = [made if isinstance(made, list) else [made] for made in bound]
        return self.inner.assemble([part for made in parts for part in made])
