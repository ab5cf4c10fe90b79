"""What a loss is: an op and its options, what its backward needs, and a look at the targets before training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of, current_numerics
from xnn.backends.mode import check_same_numerics
from xnn.errors import DTypeError, GraphError, LabelError, OptionError, ShapeError
from xnn.graph import Node
from xnn.layers.layer import computed, computes_its_own_way
from xnn.ops import Array, LossOp, Namespace, Op
from xnn.ops.op import apply_rule, backward_of, check_gradients, forward_of
from xnn.options import check_known

__all__ = ["Loss", "LossOverBatches", "check_sample_weight", "inside"]


class Loss:
    """The loss of a batch. forward(outputs, targets) -> a number on the device; backward() -> its gradient.

    reduction: "mean" over all elements of the batch (of a sum over classes, over all samples), weighted by the
    sample weights if there are some; "sum"; or "none", the terms as they are, of which backward gives the sum's
    gradient. Exactly what they are stands with `xnn.ops.LossOp`. A Trainer needs one number: "mean" or "sum".
    """

    op: Op
    #: What a Trainer counts besides the loss unless it is told otherwise.
    usual_metrics: tuple[str, ...] = ()
    #: Whether each output says yes or no for itself, which metrics named to a Trainer then count.
    binary = False
    #: The op that must not end a model trained with it, since the loss applies it itself.
    already_includes: Op | None = None
    reduction = "mean"
    #: The op's options but for the reduction; sequences of numbers become arrays of the outputs' dtype.
    options: Mapping[str, Any] = MappingProxyType({})
    _saved: Any = None
    _value: Any = None
    _numerics = ""
    _shapes: tuple[tuple[int, ...], ...] = ()
    _there: tuple[Any, ...] = (None, None, None, None)  # options, backend, dtype, and what they are there

    def __init__(self, reduction: str = "mean", **options: Any) -> None:
        if reduction not in ("mean", "sum", "none"):
            raise OptionError(f"reduction must be 'mean', 'sum' or 'none', got {repr(reduction)[:60]}")
        if hasattr(self, "op"):
            takes = self.op.terms if isinstance(self.op, LossOp) else self.op.forward
            taken = inspect.signature(takes).parameters.values()
            if all(p.kind is not p.VAR_KEYWORD for p in taken):
                known = (p.name for p in taken if p.kind is p.KEYWORD_ONLY)
                check_known(type(self).__name__, options, ("reduction", *known))
        self.reduction = reduction
        self.options = {name: value for name, value in options.items() if value is not None}

    def __call__(self, outputs: Array, targets: Array, sample_weight: Array | None = None) -> Array:
        """The same as forward."""
        return self.forward(outputs, targets, sample_weight)

    def forward(self, outputs: Array, targets: Array, sample_weight: Array | None = None) -> Array:
        """The loss, a 0-d array that stays on the device. Host targets are checked, as `check` says.

        sample_weight: (n,), how much each sample counts.
        """
        if backend_of(outputs, targets).is_host:
            self.check(targets, tuple(outputs.shape[1:]))
        if sample_weight is None:
            return self.compute(outputs, targets)
        if not hasattr(sample_weight, "shape") or backend_of(sample_weight).is_host:
            sample_weight = check_sample_weight(sample_weight, int(outputs.shape[0]))
        return self.compute(outputs, targets, sample_weight)

    def compute(self, outputs: Array, targets: Array, *sample_weight: Array) -> Array:
        """forward without the look at the targets, for a trainer that has looked at all of them once."""
        self._value, self._saved = self.apply(outputs, targets, *sample_weight)
        self._numerics = current_numerics()
        self._shapes = tuple(tuple(x.shape) for x in (outputs, targets, *sample_weight))
        return self._value

    def apply(self, outputs: Array, targets: Array, *sample_weight: Array) -> tuple[Array, Any]:
        """The loss and what its backward needs; keeps neither."""
        lib, arrays = _together(outputs, targets, sample_weight)
        return forward_of(self.op, lib.math, arrays, self._options(lib, outputs))

    def total(self, outputs: Array, targets: Array, *sample_weight: Array) -> Array | float:
        """What the mean of a batch was divided by: the number of its terms, or the sum of their weights."""
        lib, arrays = _together(outputs, targets, sample_weight)
        op = getattr(self, "op", None)
        if isinstance(op, LossOp):
            return apply_rule(op.total, lib.math, arrays, self._options(lib, outputs))
        return apply_rule(
            ops.mse.total, lib.math, (outputs, *arrays[::2]), {}
        )  # a user's own: by its samples

    def counts_samples(self, weighted: bool) -> bool:
        """Whether a batch's mean counts as much as the batch has samples, so that nobody need ask for `total`."""
        return self.reduction != "mean" or not weighted

    def trace(self, outputs: Node, targets: Node, *sample_weight: Node) -> Node:
        """The loss as a node of a graph; a subclass that computes in its own way is traced as one op."""
        arrays = (outputs, targets, *sample_weight)
        if computes_its_own_way(self, "trace", frozenset({"compute", "apply", "backward"})):
            return computed(_Whole(self), arrays)
        return computed(self.op, arrays, self._options(backend_of(outputs.value), outputs.value))

    def backward(self) -> Array:
        """The gradient of the last forward's value with respect to the outputs."""
        if self._value is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        check_same_numerics(type(self).__name__, self._numerics)
        lib = backend_of(self._value)
        one = lib.xp.ones(self._value.shape, dtype=self._value.dtype, device=self._value.device)
        gradients = backward_of(self.op, lib.math, one, self._saved)
        check_gradients(self.op.name, gradients, self._shapes)
        return gradients[0]

    def _options(self, lib: Backend, outputs: Array) -> dict[str, Any]:
        """The op's options beside these outputs; the plain loss has none, which is what kernels look for.

        Sequences of numbers go to the backend once: a step asks again for what its mean was divided by.
        """
        dtype = "float64" if outputs.dtype == lib.xp.float64 else "float32"
        known, name, kind, options = self._there
        if known is not self.options or (name, kind) != (lib.name, dtype):
            options = {
                name: lib.to_device(np.asarray(value, dtype)) if isinstance(value, tuple) else value
                for name, value in self.options.items()
            }
            self._there = self.options, lib.name, dtype, options
        return options if self.reduction == "mean" else {**options, "reduction": self.reduction}

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Host targets in the dtype that the op is given: the model's `dtype`."""
        return np.asarray(targets, dtype=dtype)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Raise for host targets that do not fit one sample's output shape, or lie out of range."""
        if tuple(targets.shape[1:]) != output_shape:
            raise ShapeError(
                f"{type(self).__name__} needs targets like the model's outputs (n, {inside(output_shape)}), "
                f"got {tuple(targets.shape)}: nothing is broadcast, reshape the targets"
            )
        if targets.dtype.kind not in "fiub":
            raise DTypeError(f"{type(self).__name__} needs numbers as targets, got {targets.dtype}")
        if targets.dtype.kind == "f" and not np.isfinite(targets).all():
            raise LabelError(f"{type(self).__name__}: the targets hold NaN or infinities; clean them first")


class LossOverBatches:
    """What the loss of several batches is together: of means the mean, each by its `total`; of sums the sum."""

    def __init__(self, loss: Loss) -> None:
        self._adds, self._sum, self._total = loss.reduction == "sum", 0.0, 0.0

    def add(self, value: Any, total: Any) -> None:
        """Take in a batch's loss, and what it was divided by."""
        self._sum += float(value) if self._adds else float(value) * float(total)
        self._total += float(total)

    @property
    def value(self) -> float:
        """The loss so far; 0 where nothing counted."""
        return self._sum if self._adds else self._sum / (self._total or 1.0)


class _Whole(Op):
    """A loss as one op, by its own compute and backward."""

    takes_stored = True

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def forward(
        self, xp: Namespace, outputs: Array, targets: Array, *sample_weight: Array
    ) -> tuple[Array, Any]:
        return self.loss.compute(outputs, targets, *sample_weight), sample_weight

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return self.loss.backward() * grad, None, *(None for _ in saved)


def check_sample_weight(sample_weight: Any, rows: int) -> np.ndarray:
    """Host sample weights for so many samples: (n,), finite, none below 0.

    Raises ShapeError, DTypeError or OptionError.
    """
    weights = np.asarray(sample_weight)
    if weights.shape != (rows,):
        raise ShapeError(f"sample_weight must be one number a sample, ({rows},), got {weights.shape}")
    if weights.dtype.kind not in "fiub":
        raise DTypeError(f"sample_weight must be numbers, got {weights.dtype}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise OptionError("sample_weight must be finite and at least 0; 0 leaves a sample out")
    return weights


def _together(
    outputs: Array, targets: Array, sample_weight: tuple[Array, ...]
) -> tuple[Backend, tuple[Array, ...]]:
    """What a loss is applied to, and where it lives; weights in the outputs' dtype, for exact numerics have one."""
    lib = backend_of(outputs, targets, *sample_weight)
    return lib, (outputs, targets, *(lib.xp.astype(w, outputs.dtype, copy=False) for w in sample_weight))


def inside(shape: tuple[int, ...]) -> str:
    """A shape as it is written after `(n, `."""
    return ", ".join(map(str, shape))
