"""Dense, the fully connected layer, and Rescale, which turns pixels and columns into inputs of a model."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.graph.node import array_of
from xnn.initializers import Glorot, Initializer, Zeros
from xnn.layers.layer import Layer, check_input_dtype, flatten_hint
from xnn.layers.parameter import Parameter
from xnn.ops import Array
from xnn.options import check_count, check_dtype, check_flag, shown

__all__ = ["Affine", "Dense", "Linear", "Rescale", "check_exact"]


class Dense(Layer):
    """Fully connected layer: y = x W + b, along the last axis of x. Also named Affine and Linear.

    inputs: the size of the last axis of x, an integer of at least 1.
    outputs: the size of the last axis of y, an integer of at least 1.
    bias: whether there is a b; True by default.
    weight_init: how `weight`, W (inputs, outputs), starts; Glorot normal by default.
    bias_init: how `bias`, b (outputs,), starts; zeros by default.
    dtype: "float32" (the default) or "float64".
    seed: an integer, from which the weights are drawn, whatever its place in a model. By default the model's seed
        draws them; outside a model the seed is 0.

    Raises OptionError for other options; ShapeError or DTypeError for inputs of another width or dtype.

        >>> import numpy as np
        >>> from xnn import layers
        >>> dense = layers.Dense(3, 2)
        >>> dense.weight.value = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
        >>> dense(np.array([[1.0, 2.0, 3.0]], np.float32)).tolist()
        [[4.0, 5.0]]
    """

    op = ops.dense
    from_input: ClassVar[dict[str, int]] = {"inputs": -1}

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        weight_init: Initializer = Glorot(),
        bias_init: Initializer = Zeros(),
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.inputs, self.outputs = check_count("inputs", inputs), check_count("outputs", outputs)
        self.dtype = check_dtype(dtype)
        self.weight = Parameter("weight", (self.inputs, self.outputs), weight_init, dtype)
        self.bias = Parameter("bias", (self.outputs,), bias_init, dtype) if check_flag("bias", bias) else None
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), seed=seed)

    def check(self, x: Array) -> None:
        lib = backend_of(x, self.weight.array)  # raises for two backends, and for x that is not an array
        self._check_shape(tuple(x.shape), "an input", 1)
        check_input_dtype(self, x, lib)

    def _check_shape(self, shape: tuple[int, ...], what: str, batch_axes: int) -> None:
        if not shape or shape[-1] != self.inputs:
            raise ShapeError(
                f"{self!r} cannot take {what} of shape {shape}: the last axis must be {self.inputs}"
                f"{flatten_hint(shape[batch_axes:], self.inputs)}"
            )

    def config(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self._check_shape(shape, "samples", 0)
        return (*shape[:-1], self.outputs)

    def flops(self, shape: tuple[int, ...]) -> int:
        # A multiplication and an addition per weight, an addition per bias.
        return math.prod(shape[:-1]) * (2 * self.weight.size + (self.bias.size if self.bias else 0))


#: The names of the blocks article and of PyTorch.
Affine = Linear = Dense


class Rescale(Layer):
    """Rescale inputs: y = x * scale + offset. It is the first layer of a model of pixels or of a table's columns.

    scale: a number, or an array of numbers that is broadcast to a sample, such as one for each feature.
    offset: the same; 0 by default.
    dtype: y's dtype, "float32" (the default) or "float64".
    shift: None (the default), or a number or array that is subtracted first: y = (x - shift) * scale + offset.
        Samples of float64 then stay float64 until y is computed, and only y is rounded to `dtype`. Without a shift,
        x is rounded to `dtype` first, which loses what distinguishes the times 1700000000 and 1700000060.

    Rescale(1 / 255) turns bytes into numbers in [0, 1]; Rescale(1 / std, shift=mean) standardizes, and
    `xnn.data.standardize(x)` makes that layer from an array. As a layer it is saved with the model, so that
    prediction does not forget it. Raises OptionError for numbers that are not finite. With a shift, DTypeError is
    raised for integers beyond 2^53, and for samples that are too far from it for `dtype`.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Rescale(1 / 255)(np.array([[0, 255]], np.uint8)).tolist()
        [[0.0, 1.0]]
        >>> layers.Rescale(1 / 60, shift=1.7e9)(np.array([[1.7e9, 1.7e9 + 60]])).tolist()
        [[0.0, 1.0]]
    """

    op = ops.rescale
    takes_integers = True

    def __init__(self, scale: Any, offset: Any = 0.0, dtype: str = "float32", shift: Any = None) -> None:
        self.dtype = check_dtype(dtype)
        try:
            self.scale, self.offset = (
                np.array(as_host_array(value, "scale"), dtype=np.float64) for value in (scale, offset)
            )
            self.shift = None if shift is None else np.array(as_host_array(shift, "shift"), dtype=np.float64)
            finite = all(number.size and np.isfinite(number).all() for number in self._numbers())
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            shifted = "" if shift is None else f" and shift {shown(shift)}"
            raise OptionError(
                f"Rescale needs finite numbers, got scale {shown(scale)} and offset {shown(offset)}{shifted}"
            )
        for number in self._numbers():
            number.flags.writeable = (
                False  # assign another array instead: this one is moved to a backend once
            )
        super().__init__()
        #: For each backend that was used, the arrays and what they were made of.
        self._there: dict[tuple[str, str], tuple[Any, Any]] = {}

    def _numbers(self) -> list[Any]:
        return [number for number in (self.scale, self.offset, self.shift) if number is not None]

    @property
    def takes_float64(self) -> bool:  # type: ignore[override]
        """Whether samples of float64 stay so until y is computed: if there is a shift."""
        return self.shift is not None

    def compute(self, x: Any) -> Any:
        # Without a shift, a program fuses it into the gathering of a batch.
        lib = backend_of(array_of(x))
        options: dict[str, Any] = {name: self._on(lib, name) for name in ("scale", "offset")}
        if self.shift is not None:
            options |= {"shift": self._on(lib, "shift"), "wide": lib.xp.float64}
        return self.op(x, dtype=getattr(lib.xp, self.dtype), **options)

    def _on(self, lib: Backend, name: str) -> Any:
        """One of the numbers: a single one as a Python number, several as an array, moved to the backend once."""
        number = getattr(self, name)
        if not getattr(number, "ndim", 0):
            return float(number)
        made_of, array = self._there.get((lib.name, name), (None, None))
        if made_of is not number:
            array = lib.to_device(number if self.takes_float64 else number.astype(self.dtype))
            self._there[lib.name, name] = number, array
        return array

    def check_integers(self, x: np.ndarray) -> None:
        if self.takes_float64:
            check_exact("samples", x)
        self.check_wide(x)

    def on_host(self, x: np.ndarray) -> np.ndarray:
        """y of NumPy's arrays, in float64."""
        numbers = {"scale": self.scale, "offset": self.offset, "shift": self.shift}
        y: np.ndarray = ops.rescale.forward(np, x, dtype=np.float64, wide=np.float64, **numbers)[0]
        return y

    def check_wide(self, x: np.ndarray) -> None:
        """Raise DTypeError for finite samples whose y is too large for `dtype`."""
        if self.shift is None or x.ndim < 1 or not len(x):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            for extreme in (x.min(axis=0), x.max(axis=0)):
                try:
                    y = self.on_host(extreme)
                except ValueError:
                    return  # of another shape: the op says so
                wrong = np.isfinite(extreme) & (np.abs(y) > np.finfo(self.dtype).max)
                if wrong.any():
                    raise DTypeError(
                        f"a sample holds {float(extreme[wrong].flat[0]):g}, too far from the numbers that Rescale "
                        f"was made for: less the shift and times the scale it is too large for {self.dtype}"
                    )

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def inverse(self) -> Rescale:
        """The layer that undoes this one, computed in float64: its y is the x of this layer, as float64.

        Put it behind the last layer of a model that was trained on rescaled targets. Raises OptionError for a scale
        of 0.

            >>> import numpy as np
            >>> from xnn import layers
            >>> prices = layers.Rescale(1 / 1000, shift=250_000.0)
            >>> prices.inverse()(prices(np.array([[251_500.0]]))).tolist()
            [[251500.0]]
        """
        if not self.scale.all():
            raise OptionError("a Rescale with a scale of 0 has no inverse: give another scale")
        shift = 0.0 if self.shift is None else self.shift
        return Rescale(1.0 / self.scale, shift, "float64", shift=self.offset)

    def config(self) -> dict[str, Any]:
        shift = {} if self.shift is None else {"shift": np.asarray(self.shift).tolist()}
        return {
            "scale": np.asarray(self.scale).tolist(),
            "offset": np.asarray(self.offset).tolist(),
            "dtype": self.dtype,
            **shift,
        }


def check_exact(what: str, x: np.ndarray) -> None:
    """Raise DTypeError for an array with integers beyond 2^53, of which float64 has not all. what: the numbers."""
    if x.dtype.kind in "iu" and x.size and max(int(x.max()), -int(x.min())) > 2**53:
        raise DTypeError(
            f"{what} hold the integer {max(int(x.max()), int(x.min()), key=abs)}, and float64 has all integers up to "
            "2^53 only: such numbers are often names, which are no measurements; else give x.astype(float)"
        )
