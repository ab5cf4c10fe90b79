"""Layers without parameters: one line for each op."""

from __future__ import annotations

import math
from typing import Any

from xnn import ops
from xnn.errors import OptionError
from xnn.layers.layer import Layer
from xnn.ops import Op

__all__ = ["Flatten", "Function", "ReLU", "Sigmoid", "Softmax", "Tanh"]


class Function(Layer):
    """Any op of one input as a layer: Function(ops.exp), Function(my_op)."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        if not isinstance(op, Op):
            raise OptionError(f"Function needs an op such as ops.exp or your own, got {op!r}")
        self.op = op

    def config(self) -> dict[str, Any]:
        """The op's name; only xnn's own can be found again by it."""
        return {"op": self.op.name}


class _Named(Layer):
    """A layer whose op is fixed; its docstring is the op's."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = type(cls.op).__doc__


class ReLU(_Named):  # noqa: D101
    op = ops.relu


class Sigmoid(_Named):  # noqa: D101
    op = ops.sigmoid


class Tanh(_Named):  # noqa: D101
    op = ops.tanh


class Softmax(_Named):  # noqa: D101
    op = ops.softmax


class Flatten(_Named):  # noqa: D101
    op = ops.flatten

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One axis."""
        return (math.prod(shape),)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Nothing is computed."""
        return 0
