"""The arrays of a layer: parameters, which gradients change, and buffers, which training keeps otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from xnn.backends import Backend, Purpose, Stream, backend_of, current_backend
from xnn.errors import GraphError, OptionError, ShapeError
from xnn.graph.node import Recorded
from xnn.graph.scope import current_scope
from xnn.initializers import Initializer
from xnn.ops import Array
from xnn.options import check_dtype, check_shape

__all__ = ["Buffer", "Parameter", "check_all_known"]


class Parameter(Recorded):
    """An array that training changes. In `compute` it stands for its array: `x @ self.weight + self.bias`.

    name: inside a layer, the attribute that it is assigned to.
    shape: a tuple of extents, or an integer for one axis.
    initializer: what the first value is drawn by, such as `xnn.initializers.He()`: in float64, rounded to `dtype`, on
        the backend that is current when a Sequential takes the layer in, or else when the value is first used.
    dtype: "float32" or "float64".

    value: the array; grad: its last gradient; frozen: whether training leaves it as it is.
    Raises OptionError or ShapeError for arguments that do not fit.

        >>> from xnn import initializers, layers
        >>> gain = layers.Parameter("gain", (3,), initializers.Ones())
        >>> gain.value = [1.0, 2.0, 3.0]
        >>> gain
        <Parameter gain (3,) float32>
    """

    #: In an op, a recorded value or a node makes the result.
    rank: ClassVar[int] = 0

    def __init__(
        self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str = "float32"
    ) -> None:
        if not callable(initializer) or isinstance(initializer, type):
            raise OptionError(
                f"{name} needs an initializer such as xnn.initializers.He(), got {repr(initializer)[:60]}"
            )
        super().__init__()
        self.name = name
        self._shape = check_shape(name, shape)
        self.initializer = initializer
        self._dtype = check_dtype(dtype)
        self._grad: Array | None = None
        self._grad_folded = False
        self.frozen = False
        self._stream = Stream(0, Purpose.WEIGHTS)
        self._value: Array | None = None
        self._assigned = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._shape

    @property
    def dtype(self) -> str:
        """The array's dtype by name: "float32" or "float64"."""
        return self._dtype

    @property
    def array(self) -> Array:
        """The array, drawn if it has not been used; for xnn's own use, where `value` may refuse."""
        if self._value is None:
            drawn = self.initializer(self._stream, self.shape)
            if not isinstance(drawn, (np.ndarray, np.generic)) or drawn.shape != self.shape:
                kind, shape = type(drawn).__name__, getattr(drawn, "shape", None)
                got = kind if shape is None else f"{kind} of shape {tuple(shape)}"
                raise ShapeError(
                    f"{self.name} has shape {self.shape}, and its initializer returned {got}, {repr(drawn)[:60]}: "
                    "it must be a NumPy array of this shape"
                )
            self._value = current_backend().to_device(drawn.astype(self._dtype))
        return self._value

    @property
    def value(self) -> Array:
        """The array; assign one of the same shape to change it: an array of any backend, or a list.

        It is converted to the parameter's dtype, so that float64 does not creep into a float32 model. Raises
        GraphError inside `compute`, where its gradient would be lost.
        """
        scope = current_scope()
        if scope is not None and scope.guarded:
            raise GraphError(
                f"{self.name}.value read inside `compute` would lose its gradient, and a program would keep the "
                f"first array: write the parameter itself, as in x @ self.{self.name}, or as a constant "
                f"ops.stop_gradient(self.{self.name})"
            )
        return self.array

    @value.setter
    def value(self, value: Any) -> None:
        if not hasattr(value, "shape"):
            lib = current_backend() if self._value is None else backend_of(self._value)
            value = lib.to_device(value, dtype=self._dtype)
        if tuple(value.shape) != self.shape:
            raise ShapeError(
                f"{self.name} has shape {self.shape}, got an array of shape {tuple(value.shape)}"
            )
        xp = backend_of(value).xp
        dtype = getattr(xp, self._dtype)
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

    def draw_from(self, stream: Stream) -> None:
        """Say which stream the value comes from. What was assigned or trained stays as it is."""
        self._stream = stream
        if not self._assigned:
            self._value = None

    def move(self, source: Backend, target: Backend) -> None:
        """Put value and gradient on another backend; a value that was drawn counts as assigned from then on."""
        self._value, self._assigned = target.to_device(source.to_host(self.array)), True
        if self._grad is not None:
            self._grad = target.to_device(source.to_host(self._grad))

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} {self.shape} {self.dtype}{' frozen' if self.frozen else ''}>"
        )


class Buffer(Parameter):
    """An array that training keeps without a gradient, such as running statistics. It is saved and moved as well.

    `Layer.keep` changes it in each training step.
    """

    is_constant = True

    def __init__(
        self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str = "float32"
    ) -> None:
        super().__init__(name, shape, initializer, dtype)
        self.frozen = True


def check_all_known(owner: str, order: Sequence[Recorded], parameters: Sequence[Parameter]) -> None:
    """Raise OptionError if `order` reads a parameter that is not one of these: it would silently stay untrained."""
    known = set(parameters)
    for node in order:
        if isinstance(node, Parameter) and not node.frozen and node not in known:
            raise OptionError(
                f"{owner} computes with {node!r}, which is not one of its parameters and would stay untrained and "
                "unsaved: assign it, or its layer, to an attribute of the layer that uses it, or freeze it"
            )
