"""The arrays of a layer: parameters, which the optimizer changes, and buffers, which the layer changes itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of, current_backend
from xnn.backends.host_arrays import as_host_array
from xnn.backends.memory import check_memory
from xnn.errors import DTypeError, GraphError, MixedArraysError, OptionError, ShapeError
from xnn.graph.habits import RefusedName
from xnn.graph.node import Recorded, next_created
from xnn.graph.scope import current_scope
from xnn.initializers import Initializer, draw
from xnn.ops import Array
from xnn.options import check_dtype, check_shape, explained_class, shown

__all__ = ["Buffer", "Parameter", "check_all_known"]


@explained_class
class Parameter(Recorded):
    """An array that training changes. In `compute` it stands for its array: `x @ self.weight + self.bias`.

    name: a text; in a layer, the attribute that the parameter is assigned to replaces it.
    shape: a tuple of sizes, or an integer for one axis.
    initializer: how the first value is drawn, such as `xnn.initializers.He()`. It is drawn in float64 and rounded to
        `dtype`, on the backend that is current when a Sequential takes the layer in, or else when it is first used.
    dtype: "float32" (the default) or "float64".

    `value` is the array, `grad` its last gradient, and `frozen` says whether training leaves it unchanged. Outside of
    `compute` and `xnn.grad`, `numpy.asarray(parameter)` is a read-only copy of the array, `float(parameter)` its
    number if it has only one, and `len`, iteration and slices are the array's.
    Raises OptionError for other options, ShapeError for an initializer that returns another shape.

        >>> from xnn import initializers, layers
        >>> gain = layers.Parameter("gain", (3,), initializers.Ones())
        >>> gain.value = [1.0, 2.0, 3.0]
        >>> gain
        <Parameter gain (3,) float32>
        >>> import numpy as np
        >>> np.asarray(gain).tolist(), len(gain), float(gain[0])
        ([1.0, 2.0, 3.0], 3, 1.0)
    """

    #: Lower than a recorded value's and a node's: an op of both gives one of those.
    rank: ClassVar[int] = 0
    requires_grad, trainable, freeze, data, lr, learning_rate, weight_decay = (
        RefusedName("value", name)
        for name in (
            "requires_grad", "trainable", "freeze", "data", "lr", "learning_rate", "weight_decay"
        )
    )  # fmt: skip

    def __init__(
        self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str = "float32"
    ) -> None:
        if not callable(initializer) or isinstance(initializer, type):
            raise OptionError(
                f"{name} needs an initializer such as xnn.initializers.He(), got {shown(initializer)}"
            )
        if not isinstance(name, str):
            raise OptionError(f"a parameter's name must be a text, got {shown(name)}")
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
        return self._shape

    @property
    def dtype(self) -> str:
        """The dtype's name: "float32" or "float64"."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the array, which need not be there yet."""
        return self.size * np.dtype(self._dtype).itemsize

    @property
    def array(self) -> Array:
        """The array, drawn if this is its first use. `value` is the same, but raises inside `compute`."""
        if self._value is None:
            check_memory(f"{self.name} of shape {self.shape}", self.nbytes, "build a smaller layer")
            drawn = draw(self.initializer, self._stream, self.shape, self._dtype)
            if not isinstance(drawn, (np.ndarray, np.generic)) or drawn.shape != self.shape:
                kind, shape = type(drawn).__name__, getattr(drawn, "shape", None)
                got = kind if shape is None else f"{kind} of shape {tuple(shape)}"
                raise ShapeError(
                    f"{self.name} has shape {self.shape}, and its initializer returned {got}, {shown(drawn)}: it "
                    "must return a NumPy array of this shape"
                )
            self._value = current_backend().to_device(drawn.astype(self._dtype, copy=False))
        return self._value

    @property
    def value(self) -> Array:
        """The array. Assign an array of any backend or a list, of the same shape, to change it.

        What is assigned is converted to the parameter's dtype. Reading it inside `compute` raises GraphError, since
        the gradient would be lost.
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
        if value is None or value is not self._value:  # as after each step of training in place
            if not (type(value) is np.ndarray and value.dtype == self._dtype and value.shape == self._shape):
                value = self._fitting(value)
            self._value = value
        self._assigned = True

    def _fitting(self, value: Any) -> Array:
        """What was assigned, as an array of the parameter's dtype. Raises for text, another shape and overflow."""
        array = as_host_array(value, self.name)
        if isinstance(array, np.ndarray) and array.dtype.kind in "US":
            raise DTypeError(f"{self.name} was assigned text, {shown(value)}: assign numbers")
        if not hasattr(value, "shape"):
            lib = current_backend() if self._value is None else backend_of(self._value)
            array = lib.to_device(array, dtype=self._dtype)
        if tuple(array.shape) != self.shape:
            raise ShapeError(
                f"{self.name} was assigned an array of shape {tuple(array.shape)}, and has shape {self.shape}"
            )
        xp = backend_of(array).xp
        dtype = getattr(xp, self._dtype)
        if array.dtype == dtype:
            return array
        with np.errstate(over="ignore"):
            cast = xp.astype(array, dtype)
        if isinstance(array, np.ndarray) and (np.isinf(cast) & np.isfinite(array)).any():
            largest = np.abs(array[np.isfinite(array)]).max()
            raise DTypeError(
                f"{self.name} was assigned numbers up to {largest:.3g}, and {self._dtype} has none above "
                f"{np.finfo(self._dtype).max:.3g}: scale them first"
            )
        return cast

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy of the array for NumPy, read-only unless a copy was asked for: what is written there is not trained.

        Raises GraphError inside `compute` and `xnn.grad`, MixedArraysError for an array that is not NumPy's.
        """
        self._check_not_recorded("a NumPy array")
        lib = backend_of(self.array)
        if not lib.is_host:
            raise MixedArraysError(
                f"{self.name} is an array of {lib.address}, and arrays are never moved without being asked: "
                "xnn.backends.backend_of(parameter.value).to_host(parameter.value) moves it"
            )
        if copy is False:
            raise ValueError(f"{self.name} gives NumPy copies only: omit copy=False")
        array = np.array(self.array, dtype=dtype)
        array.flags.writeable = copy is True
        return array

    def __float__(self) -> float:
        self._check_not_recorded("float()")
        if self.size != 1:
            raise TypeError(f"{self.name} has shape {self.shape}, and only a single number becomes a float")
        return float(self[(0,) * self.ndim] if self.shape else self.array)

    def _check_not_recorded(self, what: str) -> None:
        if current_scope() is not None:
            raise GraphError(
                f"{what} of {self.name} inside `compute` or xnn.grad would lose the gradient: write the parameter "
                f"itself, as in x @ self.{self.name}, or as a constant ops.stop_gradient(self.{self.name})"
            )

    @property
    def grad(self) -> Array | None:
        """The last gradient, None before the first. Raises GraphError if training computed none that can be read."""
        if self._grad_folded:
            raise GraphError(
                f"{self.name} has no gradient: training computed gradient and update in one, which is faster; a "
                "callback with needs_gradients = True gets gradients, and layer.backward computes them"
            )
        return self._grad

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if gradient is self._grad:
            self._grad_folded = False
            return
        if gradient is not None and tuple(getattr(gradient, "shape", ())) != self.shape:
            raise GraphError(
                f"{self.name} has shape {self.shape}, and its gradient shape {getattr(gradient, 'shape', '()')}: "
                "they must be equal"
            )
        self._grad, self._grad_folded = gradient, False

    def fold_gradient(self) -> None:
        """Drop the gradient, and make `grad` raise: training computes gradient and update in one."""
        self._grad, self._grad_folded = None, True

    @property
    def frozen(self) -> bool:
        """Whether training leaves the array unchanged."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        if not isinstance(frozen, (bool, np.bool_)):
            raise OptionError(f"{self.name}.frozen must be True or False, got {shown(frozen)}")
        self._frozen = bool(frozen)

    def draw_from(self, stream: Stream) -> None:
        """Draw the value from this random stream when it is next used, unless it was assigned or trained."""
        self._stream = stream
        if not self._assigned:
            self._value = None

    def copies(self, target: Backend) -> tuple[Array, Array | None]:
        """Value and gradient on another backend, for `replace`."""
        arrays = self.array, self._grad
        return tuple(a if a is None else target.to_device(backend_of(a).to_host(a)) for a in arrays)  # type: ignore[return-value]

    def replace(self, value: Array, grad: Array | None) -> None:
        """Take these arrays. The value is not drawn again from then on."""
        self._value, self._assigned, self._grad = value, True, grad

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        """Element by element with numbers, arrays and values; with another parameter, whether it is the same."""
        return ops.equal(self, other) if _is_comparable(other) else self is other

    def __ne__(self, other: object) -> Any:
        return ops.not_equal(self, other) if _is_comparable(other) else self is not other

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Inputs come before what is computed from them, in the process that loads it.
        self.created = next_created()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} {self.shape} {self.dtype}"
            f"{' frozen' if self.frozen and not self.is_constant else ''}>"
        )


@explained_class
class Buffer(Parameter):
    """An array that has no gradient and belongs to a layer, such as a running mean. It is saved and moved with it.

    `Layer.keep` changes it in each training step; it is always frozen.

    name, shape, initializer, dtype: as those of `Parameter`.

        >>> from xnn import initializers, layers
        >>> layers.Buffer("running_mean", (3,), initializers.Zeros())
        <Buffer running_mean (3,) float32>
    """

    is_constant = True

    def __init__(
        self, name: str, shape: int | tuple[int, ...], initializer: Initializer, dtype: str = "float32"
    ) -> None:
        super().__init__(name, shape, initializer, dtype)
        self.frozen = True


def _is_comparable(other: object) -> bool:
    """Whether `==` with a parameter goes element by element."""
    return isinstance(other, (int, float)) or (
        hasattr(other, "shape") and not isinstance(other, (Parameter, type))
    )


def check_all_known(owner: str, order: Sequence[Recorded], parameters: Sequence[Parameter]) -> None:
    """Raise OptionError if a value of `order` is an unfrozen parameter that is not one of `parameters`.

    The optimizer would not change it, and files would not hold it.
    """
    known = set(parameters)
    for node in order:
        if isinstance(node, Parameter) and not node.frozen and node not in known:
            raise OptionError(
                f"{owner} computes with {node!r}, which is not one of its parameters and would stay untrained and "
                "unsaved: assign it, or its layer, to an attribute of a layer of the model, or freeze it"
            )
