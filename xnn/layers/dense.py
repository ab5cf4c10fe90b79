"""Dense, the fully connected layer, and Rescale, which turns pixels and columns into inputs of a model."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of
from xnn.backends.host_arrays import as_host_array
from xnn.errors import OptionError, ShapeError
from xnn.graph.node import array_of
from xnn.initializers import Glorot, Initializer, Zeros
from xnn.layers.layer import Layer, check_input_dtype
from xnn.layers.parameter import Parameter
from xnn.ops import Array
from xnn.options import check_count, check_dtype, check_flag, shown

__all__ = ["Affine", "Dense", "Linear", "Rescale"]


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
        self._check_shape(tuple(x.shape), "an input")
        check_input_dtype(self, x, lib)

    def _check_shape(self, shape: tuple[int, ...], what: str) -> None:
        if not shape or shape[-1] != self.inputs:
            raise ShapeError(
                f"{self!r} cannot take {what} of shape {shape}: the last axis must be {self.inputs}"
            )

    def config(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self._check_shape(shape, "samples")
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

    Rescale(1 / 255) turns bytes into numbers in [0, 1]; Rescale(1 / std, -mean / std) standardizes. As a layer it is
    saved with the model, so that prediction does not forget it. Raises OptionError for numbers that are not finite.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Rescale(1 / 255)(np.array([[0, 255]], np.uint8)).tolist()
        [[0.0, 1.0]]
    """

    op = ops.rescale
    takes_integers = True

    def __init__(self, scale: Any, offset: Any = 0.0, dtype: str = "float32") -> None:
        self.dtype = check_dtype(dtype)
        try:
            self.scale, self.offset = (
                np.array(as_host_array(value, "scale"), dtype=np.float64) for value in (scale, offset)
            )
            finite = all(number.size and np.isfinite(number).all() for number in (self.scale, self.offset))
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise OptionError(
                f"Rescale needs finite numbers, got scale {shown(scale)} and offset {shown(offset)}"
            )
        for number in (self.scale, self.offset):
            number.flags.writeable = (
                False  # assign another array instead: this one is moved to a backend once
            )
        super().__init__()
        #: For each backend that was used, the arrays and what they were made of.
        self._there: dict[tuple[str, str], tuple[Any, Any]] = {}

    def compute(self, x: Any) -> Any:
        # A program fuses it into the gathering of a batch.
        lib = backend_of(array_of(x))
        scale, offset = self._on(lib, "scale"), self._on(lib, "offset")
        return self.op(x, dtype=getattr(lib.xp, self.dtype), scale=scale, offset=offset)

    def _on(self, lib: Backend, name: str) -> Any:
        """Scale or offset: a single number as a Python number, several as an array, moved to the backend once."""
        number = getattr(self, name)
        if not getattr(number, "ndim", 0):
            return float(number)
        made_of, array = self._there.get((lib.name, name), (None, None))
        if made_of is not number:
            array = lib.to_device(number.astype(self.dtype))
            self._there[lib.name, name] = number, array
        return array

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def config(self) -> dict[str, Any]:
        return {
            "scale": np.asarray(self.scale).tolist(),
            "offset": np.asarray(self.offset).tolist(),
            "dtype": self.dtype,
        }
