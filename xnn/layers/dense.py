"""Dense, the layer with weights, and Rescale, which stands before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of
from xnn.errors import OptionError, ShapeError
from xnn.graph.node import array_of
from xnn.initializers import Glorot, Initializer, Zeros
from xnn.layers.layer import Layer, check_input_dtype
from xnn.layers.parameter import Parameter
from xnn.ops import Array
from xnn.options import check_count, check_dtype

__all__ = ["Affine", "Dense", "Linear", "Rescale"]


class Dense(Layer):
    """y = x W + b, W (inputs, outputs), b (outputs,): a fully connected layer, also Affine or Linear.

    Weights start as Glorot normal and biases as zeros unless told otherwise. `seed` draws the weights of
    a layer that stands alone (two of the same shape and no seed start alike); inside a Sequential the
    model's seed does.
    Raises OptionError for sizes below 1 or another dtype than float32 and float64.
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
        self.bias = Parameter("bias", (self.outputs,), bias_init, dtype) if bias else None
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), seed=seed)

    def check(self, x: Array) -> None:
        """Backend, width and dtype as the weights have them."""
        backend_of(x, self.weight.array)  # an array, and not one of another backend
        name = f"Dense({self.inputs}, {self.outputs})"
        if x.ndim < 1 or x.shape[-1] != self.inputs:
            raise ShapeError(
                f"{name} got an input of shape {tuple(x.shape)}; its last axis must be {self.inputs}"
            )
        check_input_dtype(name, x, self.weight)

    def config(self) -> dict[str, Any]:
        """Sizes, bias and dtype; the initializers have done their work."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The last axis becomes `outputs`."""
        if not shape or shape[-1] != self.inputs:
            raise ShapeError(
                f"Dense({self.inputs}, {self.outputs}) cannot take samples of shape {shape}: "
                f"the last axis must be {self.inputs}"
            )
        return (*shape[:-1], self.outputs)

    def flops(self, shape: tuple[int, ...]) -> int:
        """A multiplication and an addition per weight, an addition per bias."""
        return math.prod(shape[:-1]) * (2 * self.weight.size + (self.bias.size if self.bias else 0))


#: The names of the blocks article and of PyTorch.
Affine = Linear = Dense


class Rescale(Layer):
    """y = x * scale + offset in `dtype`, one pair for all features or one for each.

    Rescale(1 / 255) turns bytes into [0, 1]; as a layer it is saved with the model, so prediction
    cannot forget it. Rescale(1 / std, -mean / std) standardizes.
    """

    op = ops.rescale
    takes_integers = True
    #: The arrays of numbers per feature where they were used last, by the numbers' id.
    _there: Mapping[int, tuple[str, Any, Any]] = MappingProxyType({})

    def __init__(self, scale: Any, offset: Any = 0.0, dtype: str = "float32") -> None:
        self.dtype = check_dtype(dtype)
        try:
            self.scale, self.offset = (np.asarray(value, dtype=np.float64) for value in (scale, offset))
            finite = bool(np.isfinite(self.scale).all() and np.isfinite(self.offset).all())
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise OptionError(f"Rescale needs finite numbers, got scale {scale!r} and offset {offset!r}")
        super().__init__()

    def compute(self, x: Any) -> Any:
        """x * scale + offset, which a program fuses into the gathering of a batch."""
        lib = backend_of(array_of(x))
        scale, offset = self._on(lib, self.scale), self._on(lib, self.offset)
        return self.op(x, dtype=getattr(lib.xp, self.dtype), scale=scale, offset=offset)

    def _on(self, lib: Backend, number: np.ndarray) -> Any:
        """One number as a Python number; numbers per feature as an array that goes to the backend once."""
        if not number.ndim:
            return float(number)
        name, known, array = self._there.get(id(number), ("", None, None))
        if name != lib.name or known is not number:
            array = lib.to_device(number.astype(self.dtype))
            self._there = {**self._there, id(number): (lib.name, number, array)}
        return array

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape

    def config(self) -> dict[str, Any]:
        """Scale and offset as numbers or lists."""
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist(), "dtype": self.dtype}
