"""Layers that draw random numbers while they run, and Dropout, the first of them."""

from __future__ import annotations

from typing import Any

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of
from xnn.graph.node import array_of
from xnn.graph.scope import current_scope
from xnn.graph.value import drawn
from xnn.layers.layer import Layer
from xnn.ops import Array
from xnn.options import check_real

__all__ = ["Drawing", "Dropout"]


class Drawing(Layer):
    """A layer that in training applies its op with something drawn anew for each step; otherwise the identity.

    What `draw` draws is a function of (seed, layer, step, row): the same on every backend and for any number of
    workers. The trainer sets seed and step with `set_stream`; by hand, each training forward takes the
    next step of the layer's own seed.
    """

    buildable = False
    #: What its stream is for; layers of one purpose are told apart by their number in the model.
    purpose = Purpose.DROPOUT

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.set_stream(seed or 0, 0)

    def draw(self, lib: Backend, stream: Stream, x: Array) -> Array:
        """The op's second input for a batch like x, whose first row is `self.row` of the whole batch."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether it does nothing in training either."""
        return False

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """The next training forward uses this seed and step; `row` is the batch's first global row."""
        super().set_stream(seed, step, row)
        self._at = seed, step, row

    @property
    def row(self) -> int:
        """The number of the batch's first row in the whole batch: 0 unless workers share it."""
        return self._at[2]

    def compute(self, x: Any, training: bool) -> Any:
        """The op of x and what is drawn anew for each step; x itself in inference, or if the layer is idle."""
        if not training or self.idle:
            return x
        return self.op(x, self.drawn(x), **self.options(backend_of(array_of(x)).math))

    def drawn(self, x: Any) -> Any:
        """What `draw` draws for a batch like x, for use in `compute`: a program draws it anew for each step."""
        lib, like = backend_of(array_of(x)), array_of(x)
        return drawn(lambda: self._drawn(lib, like))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same, unless a subclass says with a `compute` of its own what it computes."""
        return shape if type(self).compute is Drawing.compute else super().output_shape(shape)

    def _drawn(self, lib: Backend, x: Array) -> Array:
        seed, step, row = self._at
        drawn = self.draw(lib, Stream(seed, self.purpose, self.index, step), x)
        scope = current_scope()
        if scope is None or not scope.program:
            self._at = seed, step + 1, row
        return drawn


class Dropout(Drawing):
    """In training, each element is zero with probability `rate`, else divided by 1 - rate; else unchanged.

    Source: Srivastava et al., JMLR 15 (2014).
    """

    op = ops.dropout
    purpose = Purpose.DROPOUT

    def __init__(self, rate: float = 0.5, seed: int | None = None) -> None:
        self.rate = check_real("rate", rate, 0.0, 1.0)
        super().__init__(seed)

    def draw(self, lib: Backend, stream: Stream, x: Array) -> Array:
        """The mask: where an element stays."""
        return lib.keep_mask(stream, tuple(x.shape), self.rate, self.row)

    @property
    def idle(self) -> bool:
        """Whether the rate is 0."""
        return self.rate == 0.0

    def options(self, xp: Any) -> dict[str, Any]:
        """The rate."""
        return {"rate": self.rate}

    def config(self) -> dict[str, Any]:
        """The rate."""
        return {"rate": self.rate}
