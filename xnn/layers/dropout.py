"""Layers that draw random numbers in training: their base class, and Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of
from xnn.backends.random import Mask
from xnn.errors import OptionError
from xnn.graph.node import array_of
from xnn.graph.scope import current_scope
from xnn.graph.value import drawn
from xnn.layers.layer import Layer
from xnn.ops import Array
from xnn.options import check_integer, check_real, checked

__all__ = ["Drawing", "Dropout"]


class Drawing(Layer):
    """Base class of layers that draw random numbers in each training step; in inference they are the identity.

    A subclass sets `op`, whose second input is drawn; `purpose`, one of `xnn.backends.Purpose`; and overrides `draw`.
    Or it overrides `compute` and calls `self.drawn(x)` there.

    What is drawn depends on nothing but the seed, the layer's number in the model, the number of the training step,
    and the sample's row in the batch: the same bits on every backend and for any number of workers. A Trainer sets
    seed and step with `set_stream`; by hand, each training forward takes the next step of the layer's own seed.

    seed: an integer, for use without a Trainer; 0 by default.

        >>> import numpy as np
        >>> from xnn import layers, ops
        >>> from xnn.backends import Purpose
        >>> class Noise(layers.Drawing):
        ...     op, purpose = ops.add, Purpose.AUGMENT
        ...
        ...     def draw(self, lib, stream, x):
        ...         return lib.signed(stream, tuple(x.shape), self.row)
        >>> noise, x = Noise(seed=1), np.zeros((2, 3), np.float32)
        >>> bool(np.array_equal(noise.forward(x), x)), bool(np.array_equal(noise.forward(x, training=True), x))
        (True, False)
    """

    buildable = False
    #: What the random numbers are for, by which their stream differs from others of the same seed.
    purpose = Purpose.DROPOUT

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.set_stream(0 if seed is None else check_integer("seed", seed), 0)

    def draw(self, lib: Backend, stream: Stream, x: Array) -> Array:
        """The op's second input for a batch like x; override it.

        lib: the backend; `lib.signed` and `lib.keep_mask` draw noise and masks. stream: the random numbers of this
        step. x: an array, whose first row is row `self.row` of the whole batch. Only its shape and dtype may be
        used: a Trainer refuses a `draw` that looks at its numbers.
        """
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether the layer is the identity in training too."""
        return False

    @property
    def recipe(self) -> Any:
        """What `draw` draws from besides the seed and the step, by which a kernel can do it; None if none can."""
        return None

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """Set seed and step of the next training forward; `row` is the first row's number in the whole batch."""
        super().set_stream(seed, step, row)
        self._at = seed, step, row

    @property
    def row(self) -> int:
        """The number of the first row in the whole batch: 0 unless several workers share the batch."""
        return self._at[2]

    def compute(self, x: Any, training: bool) -> Any:
        if not training or self.idle:
            return x
        return self.op(x, self.drawn(x), **self.options(backend_of(array_of(x)).math))

    def drawn(self, x: Any) -> Any:
        """What `draw` returns for a batch like x; for use in `compute`. A program draws it again in each step."""
        lib, like = backend_of(array_of(x)), array_of(x)
        value, scope = drawn(lambda: self._drawn(lib, like), self), current_scope()
        if scope is not None and scope.program and isinstance(like, np.ndarray) and like.dtype.kind == "f":
            unknown = np.broadcast_to(np.array(np.nan, like.dtype), like.shape)
            if not type(self).__module__.startswith("xnn.") and not np.array_equal(
                lib.to_host(value.array), lib.to_host(self._drawn(lib, unknown))
            ):
                raise OptionError(
                    f"{type(self).__name__}.draw looks at the numbers of x, of which a program has only the first "
                    "batch's: use the shape and dtype of x, and compute with x in `op` or `compute`"
                )
        return value

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the input, unless a subclass overrides `compute`: then the shape that `compute` returns."""
        return shape if type(self).compute is Drawing.compute else super().output_shape(shape)

    def _drawn(self, lib: Backend, x: Array) -> Array:
        seed, step, row = self._at
        drawn = self.draw(lib, Stream(seed, self.purpose, self.index, step), x)
        scope = current_scope()
        if scope is None or not scope.program:
            self._at = seed, step + 1, row
        return drawn


class Dropout(Drawing):
    """Inverted dropout: in training an element is 0 with probability `rate`, else divided by 1 - rate.

    In inference it is the identity.

    rate: a number in [0, 1); 0.5 by default. A callback may change it between steps.
    seed: an integer, for use without a Trainer; 0 by default. A Trainer draws the masks from the seed of its fit.

    Raises OptionError for another rate.
    Source: Srivastava et al., JMLR 15 (2014).

        >>> import numpy as np
        >>> from xnn import layers
        >>> dropout, x = layers.Dropout(0.5, seed=1), np.ones((1, 4), np.float32)
        >>> dropout.forward(x).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
        >>> set(dropout.forward(x, training=True).ravel().tolist()) <= {0.0, 2.0}
        True
    """

    op = ops.dropout
    rate: float = checked(check_real, 0.0, 1.0)
    purpose = Purpose.DROPOUT

    def __init__(self, rate: float = 0.5, seed: int | None = None) -> None:
        self.rate = rate
        super().__init__(seed)

    def draw(self, lib: Backend, stream: Stream, x: Array) -> Array:
        """The mask: true where an element stays."""
        return lib.keep_mask(stream, tuple(x.shape), self.rate, self.row)

    @property
    def idle(self) -> bool:
        return self.rate == 0.0

    @property
    def recipe(self) -> Mask | None:
        return Mask(self.purpose, self.index, self.rate) if type(self).draw is Dropout.draw else None

    def options(self, xp: Any) -> dict[str, Any]:
        return {"rate": self.rate}

    def config(self) -> dict[str, Any]:
        return {"rate": self.rate}
