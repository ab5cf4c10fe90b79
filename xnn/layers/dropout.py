"""Layers that draw random numbers while they run, and Dropout, the first of them."""

from __future__ import annotations

from typing import Any

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of
from xnn.graph import Drawn, Node
from xnn.layers.layer import Layer, computed
from xnn.ops import Array
from xnn.ops.op import forward_of
from xnn.options import check_real

__all__ = ["Drawing", "Dropout"]


class Drawing(Layer):
    """A layer that in training applies its op with something drawn anew for each step; otherwise the identity.

    What `draw` draws is a function of (seed, layer, step, row): the same on every backend and for any number of
    workers. The trainer sets seed and step with `set_stream`; by hand, each training forward takes the
    next step of the layer's own seed.
    """

    buildable = False
    #: What its stream is for.
    purpose: Purpose

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
        self.stream_seed, self.step, self.row = seed, step, row

    def apply(self, x: Array, training: bool) -> tuple[Array, Any]:
        """The op's output in training; the input itself otherwise."""
        if not training or self.idle:
            return x, None
        lib = backend_of(x)
        drawn = self._drawn(lib, x)
        self.step += 1
        return forward_of(self.op, lib.math, (x, drawn), self.options(lib.math))

    def _drawn(self, lib: Backend, x: Array) -> Array:
        return self.draw(lib, Stream(self.stream_seed, self.purpose, self.index, self.step), x)

    def trace(self, x: Node) -> Node:
        """The op of x and what is drawn anew for each step; x itself if the layer is idle."""
        if self.idle:
            return x
        lib, like = backend_of(x.value), x.value
        return computed(self.op, (x, Drawn(lambda: self._drawn(lib, like))), self.options(lib.math))

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """The gradient through the same draw."""
        self._check_backward(dout)
        if self.saved is None:
            return dout if input_gradient else None
        return super().backward(dout, input_gradient)


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
