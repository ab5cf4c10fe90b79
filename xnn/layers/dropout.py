"""Dropout: the one layer that draws random numbers while it runs."""

from __future__ import annotations

from typing import Any

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of
from xnn.errors import OptionError
from xnn.graph import Drawn, Node
from xnn.layers.layer import Layer, computed
from xnn.ops import Array
from xnn.ops.op import forward_of

__all__ = ["Dropout"]


class Dropout(Layer):
    """In training, each element is zero with probability `rate`, else divided by 1 - rate; else unchanged.

    The mask is a function of (seed, layer, step, row): the same on every backend and for any number of
    workers. The trainer sets seed and step with `set_stream`; by hand, each training forward takes the
    next step of the layer's own seed. Source: Srivastava et al., JMLR 15 (2014).
    """

    op = ops.dropout

    def __init__(self, rate: float = 0.5, seed: int | None = None) -> None:
        if not 0.0 <= rate < 1.0:
            raise OptionError(f"Dropout needs a rate in [0, 1), got {rate!r}")
        self.rate = float(rate)
        super().__init__(seed=seed)
        self.set_stream(seed or 0, 0)

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """The next training forward uses this seed and step; `row` is the batch's first global row."""
        self.stream_seed, self.step, self.row = seed, step, row

    def apply(self, x: Array, training: bool) -> tuple[Array, Any]:
        """A masked copy in training; the input itself otherwise."""
        if not training or self.rate == 0.0:
            return x, None
        keep = self._mask(backend_of(x), tuple(x.shape))
        self.step += 1
        return forward_of(self.op, backend_of(x).math, (x, keep), {"rate": self.rate})

    def _mask(self, lib: Backend, shape: tuple[int, ...]) -> Array:
        stream = Stream(self.stream_seed, Purpose.DROPOUT, self.index, self.step)
        return lib.keep_mask(stream, shape, self.rate, self.row)

    def trace(self, x: Node) -> Node:
        """dropout(x, mask), the mask drawn anew for each step; x itself at a rate of 0."""
        if self.rate == 0.0:
            return x
        lib, shape = backend_of(x.value), tuple(x.value.shape)
        return computed(self.op, (x, Drawn(lambda: self._mask(lib, shape))), {"rate": self.rate})

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """The gradient through the same mask."""
        self._check_backward(dout)
        if self.saved is None:
            return dout if input_gradient else None
        return super().backward(dout, input_gradient)

    def config(self) -> dict[str, Any]:
        """The rate."""
        return {"rate": self.rate}
