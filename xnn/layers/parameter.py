"""The arrays of a layer: parameters, which gradients change, and buffers, which training keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends import Backend, Purpose, Stream, backend_of, current_backend
from xnn.errors import GraphError, OptionError, ShapeError
from xnn.initializers import Initializer
from xnn.ops import Array
from xnn.options import check_dtype, check_shape

__all__ = ["Buffer", "Parameter"]


class Parameter:
    """An array that training changes: `value`, its gradient `grad`, and whether it is `frozen`.

    The value is drawn from its initializer in float64, rounded to `dtype` and put on the backend that
    is current then: when a Sequential takes the layer in, or else when it is first used. A shape may be an
    integer, for one axis; dtype is float32 or float64.
    """

    def __init__(self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str) -> None:
        if not callable(initializer) or isinstance(initializer, type):
            raise OptionError(
                f"{name} needs an initializer such as xnn.initializers.He(), got {repr(initializer)[:60]}"
            )
        self.name = name
        self.shape = check_shape(name, shape)
        self.initializer = initializer
        self.dtype = check_dtype(dtype)
        self._grad: Array | None = None
        self._grad_folded = False
        self.frozen = False
        self._stream = Stream(0, Purpose.WEIGHTS)
        self._value: Array | None = None
        self._assigned = False

    @property
    def value(self) -> Array:
        """The array; assign one of the same shape to change it: an array of any backend, or a list.

        It is converted to the parameter's dtype, so that float64 does not creep into a float32 model.
        """
        if self._value is None:
            drawn = self.initializer(self._stream, self.shape)
            if not isinstance(drawn, (np.ndarray, np.generic)) or drawn.shape != self.shape:
                kind, shape = type(drawn).__name__, getattr(drawn, "shape", None)
                got = kind if shape is None else f"{kind} of shape {tuple(shape)}"
                raise ShapeError(
                    f"{self.name} has shape {self.shape}, and its initializer returned {got}, {repr(drawn)[:60]}: "
                    "it must be a NumPy array of this shape"
                )
            self._value = current_backend().to_device(drawn.astype(self.dtype))
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        if not hasattr(value, "shape"):
            lib = current_backend() if self._value is None else backend_of(self._value)
            value = lib.to_device(value, dtype=self.dtype)
        if tuple(value.shape) != self.shape:
            raise ShapeError(
                f"{self.name} has shape {self.shape}, got an array of shape {tuple(value.shape)}"
            )
        xp = backend_of(value).xp
        dtype = getattr(xp, self.dtype)
        self._value = value if value.dtype == dtype else xp.astype(value, dtype)
        self._assigned = True

    @property
    def grad(self) -> Array | None:
        """The last gradient, None before the first. Raises GraphError where training folded it into the update."""
        if self._grad_folded:
            raise GraphError(
                f"{self.name} has no gradient: training folded it into the update, which is faster; a callback that "
                "reads gradients says so with needs_gradients = True, and layer.backward computes one"
            )
        return self._grad

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if gradient is not None and tuple(getattr(gradient, "shape", ())) != self.shape:
            raise GraphError(
                f"{self.name} has shape {self.shape}, and its gradient shape {getattr(gradient, 'shape', '()')}: "
                "they must be equal"
            )
        self._grad, self._grad_folded = gradient, False

    def fold_gradient(self) -> None:
        """Say that updates leave no gradient, so that reading an old one raises."""
        self._grad, self._grad_folded = None, True

    @property
    def frozen(self) -> bool:
        """Whether training leaves it as it is."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        if not isinstance(frozen, (bool, np.bool_)):
            raise OptionError(f"{self.name}.frozen must be True or False, got {repr(frozen)[:60]}")
        self._frozen = bool(frozen)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def draw_from(self, stream: Stream) -> None:
        """Say which stream the value comes from. What was assigned or trained stays as it is."""
        self._stream = stream
        if not self._assigned:
            self._value = None

    def move(self, source: Backend, target: Backend) -> None:
        """Put value and gradient on another backend; a value that was drawn counts as assigned from then on."""
        self._value, self._assigned = target.to_device(source.to_host(self.value)), True
        if self._grad is not None:
            self._grad = target.to_device(source.to_host(self._grad))

    def __repr__(self) -> str:
        return f"<parameter {self.name} {self.shape} {self.dtype}{' frozen' if self.frozen else ''}>"


class Buffer(Parameter):
    """An array that training keeps without a gradient, such as running statistics: saved, moved and digested."""

    def __init__(self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str) -> None:
        super().__init__(name, shape, initializer, dtype)
        self.frozen = True
