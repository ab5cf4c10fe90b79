"""Losses: an op, what its backward needs, and a look at the targets before training starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import backend_of, current_numerics
from xnn.backends.mode import check_same_numerics
from xnn.errors import DTypeError, GraphError, LabelError, ShapeError
from xnn.graph import Node
from xnn.layers.layer import computed, computes_its_own_way
from xnn.ops import Array, Namespace, Op
from xnn.ops.op import backward_of, forward_of

__all__ = ["MSE", "BinaryCrossEntropy", "Loss", "MSELoss", "SoftmaxCrossEntropy"]


class Loss:
    """The mean loss of a batch. forward(outputs, targets) -> a number on the device; backward() -> its gradient."""

    op: Op
    #: What a Trainer counts besides the loss unless it is told otherwise.
    usual_metrics: tuple[str, ...] = ()
    #: Whether each output says yes or no for itself, which metrics named to a Trainer then count.
    binary = False
    #: The op that must not end a model trained with it, since the loss applies it itself.
    already_includes: Op | None = None

    def __init__(self) -> None:
        self._saved: Any = None
        self._value: Any = None
        self._numerics = ""

    def __call__(self, outputs: Array, targets: Array) -> Array:
        """The same as forward."""
        return self.forward(outputs, targets)

    def forward(self, outputs: Array, targets: Array) -> Array:
        """The loss, a 0-d array that stays on the device. Host targets are checked, as `check` says."""
        if backend_of(outputs, targets).is_host:
            self.check(targets, tuple(outputs.shape[1:]))
        return self.compute(outputs, targets)

    def compute(self, outputs: Array, targets: Array) -> Array:
        """forward without the look at the targets, for a trainer that has looked at all of them once."""
        self._value, self._saved = self.apply(outputs, targets)
        self._numerics = current_numerics()
        return self._value

    def apply(self, outputs: Array, targets: Array) -> tuple[Array, Any]:
        """The loss and what its backward needs; keeps neither."""
        return forward_of(self.op, backend_of(outputs, targets).math, (outputs, targets), {})

    def trace(self, outputs: Node, targets: Node) -> Node:
        """The loss as a node of a graph; a subclass that computes in its own way is traced as one op."""
        own = computes_its_own_way(self, "trace", frozenset({"compute", "apply", "backward"}))
        return computed(_Whole(self) if own else self.op, (outputs, targets))

    def backward(self) -> Array:
        """The gradient of the last forward's value with respect to the outputs."""
        if self._value is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        check_same_numerics(type(self).__name__, self._numerics)
        xp = backend_of(self._value).xp
        one = xp.ones((), dtype=self._value.dtype, device=self._value.device)
        return backward_of(self.op, backend_of(self._value).math, one, self._saved)[0]

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Host targets in the dtype that the op is given: the model's `dtype`."""
        return np.asarray(targets, dtype=dtype)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Raise for host targets that do not fit one sample's output shape, or lie out of range."""
        if tuple(targets.shape[1:]) != output_shape:
            raise ShapeError(
                f"{type(self).__name__} needs targets like the model's outputs (n, {_inside(output_shape)}), "
                f"got {tuple(targets.shape)}: nothing is broadcast, reshape the targets"
            )
        if targets.dtype.kind not in "fiub":
            raise DTypeError(f"{type(self).__name__} needs numbers as targets, got {targets.dtype}")
        if targets.dtype.kind == "f" and not np.isfinite(targets).all():
            raise LabelError(f"{type(self).__name__}: the targets hold NaN or infinities; clean them first")


class SoftmaxCrossEntropy(Loss):
    """From logits (n, classes) and integer labels (n,); the model ends without a Softmax layer.

    Raises LabelError for labels that are not integers in 0 .. classes - 1.
    """

    op = ops.softmax_cross_entropy
    usual_metrics = ("accuracy",)
    already_includes = ops.softmax

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Labels as int64."""
        return np.asarray(targets, dtype=np.int64)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """One integer label a sample, each below the number of classes."""
        if targets.dtype.kind not in "iu":
            raise LabelError(
                f"SoftmaxCrossEntropy needs integer labels, got {targets.dtype}; "
                "labels.astype('int64') if they are whole numbers"
            )
        if targets.ndim != 1:
            raise ShapeError(f"SoftmaxCrossEntropy needs labels of shape (n,), got {tuple(targets.shape)}")
        if len(output_shape) != 1:
            raise ShapeError(
                f"SoftmaxCrossEntropy needs outputs (n, classes), got (n, {_inside(output_shape)})"
            )
        if targets.size:
            low, high, classes = int(targets.min()), int(targets.max()), output_shape[0]
            if low < 0 or high >= classes:
                raise LabelError(
                    f"labels run from {low} to {high}, the model has {classes} outputs: "
                    f"labels must lie in 0 .. {classes - 1}; number the classes from 0 or widen the last layer"
                )


class BinaryCrossEntropy(Loss):
    """From logits and targets in [0, 1] of the same shape; the model ends without a Sigmoid layer."""

    op = ops.binary_cross_entropy
    usual_metrics = ("accuracy",)
    binary = True
    already_includes = ops.sigmoid

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Targets in [0, 1]."""
        super().check(targets, output_shape)
        if targets.size and (targets.min() < 0 or targets.max() > 1):
            raise LabelError(
                f"BinaryCrossEntropy needs targets in [0, 1], got {targets.min()} .. {targets.max()}"
            )


class MSE(Loss):
    """Mean squared error over all elements; its gradient is 2/n (outputs - targets)."""

    op = ops.mse


#: The blocks article's name.
MSELoss = MSE


class _Whole(Op):
    """A loss as one op, by its own compute and backward."""

    takes_stored = True

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def forward(self, xp: Namespace, outputs: Array, targets: Array) -> tuple[Array, Any]:
        return self.loss.compute(outputs, targets), None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return self.loss.backward() * grad, None


def _inside(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
