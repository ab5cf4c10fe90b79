"""What a loss is: a number computed from outputs and targets, and a look at the targets before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of, current_numerics
from xnn.backends.numerics import check_same_numerics, pinned
from xnn.errors import DTypeError, GraphError, LabelError, OptionError, ShapeError
from xnn.graph import Node
from xnn.graph.backward import backpropagate, made_from
from xnn.graph.node import Recorded, array_of
from xnn.graph.scope import Scope, assignments, by_hand, current_scope
from xnn.graph.taped import Taped
from xnn.graph.value import Constant, Value
from xnn.ops import Array, LossOp, Namespace, Op
from xnn.ops.apply import apply_rule
from xnn.options import check_known

__all__ = ["Lambda", "Loss", "LossOverBatches", "check_sample_weight", "inside"]


def _takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function may be called with so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


class Loss:
    """The loss of a batch: loss(outputs, targets) is one number, which training makes small.

    A subclass sets `op`, or overrides `compute`:

        class HalfMSE(losses.Loss):
            def compute(self, outputs, targets):
                difference = outputs - targets
                return ops.mean(difference * difference) / 2.0

    forward(outputs, targets, sample_weight=None) computes the loss and keeps what backward needs; backward() returns
    the gradient for the outputs. Both follow from `compute`, and so do the loss's node in a graph, its gradients
    under `xnn.grad`, and its part in a Trainer's program. `losses.Lambda(f)` makes a loss of a function.

    reduction: "mean" over all elements of the batch (of a sum over classes, over all samples), weighted by the
        sample weights if there are some; "sum"; or "none", the terms as they are, of which backward gives the sum's
        gradient. `xnn.ops.LossOp` says exactly what they are. A Trainer needs one number: "mean" or "sum".
    options: the op's options.
    Raises OptionError for other reductions or options.
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
    #: Whether `forward` and `backward` are written by hand.
    by_hand: ClassVar[bool] = False
    _takes_weight: ClassVar[bool] = True
    _tape: tuple[Value, Any, str] | None = (
        None  # the last forward's outputs, its loss, and the numerics in force
    )
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

    def __init_subclass__(cls) -> None:
        forward, backward = cls.forward is not Loss.forward, cls.backward is not Loss.backward
        if forward != backward:
            has, lacks = ("forward", "backward") if forward else ("backward", "forward")
            raise OptionError(
                f"{cls.__name__} has a {has} of its own and no {lacks}: write both, or say in `compute` what the "
                "loss is, from which both follow"
            )
        cls.by_hand = forward
        if "compute" in vars(cls):
            cls._takes_weight = _takes(cls.compute, None, None, None, None)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):
            assignments[0] += 1

    def __call__(self, outputs: Any, targets: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays, recorded values or graph nodes.

        Of arrays, outside of `compute` and `xnn.grad`, it goes through `forward`, so that `backward` may follow.
        Targets on the host are checked. sample_weight: (n,), how much each sample counts.
        """
        weights = () if sample_weight is None else (sample_weight,)
        if isinstance(outputs, Node) or isinstance(targets, Node):
            return Node(
                Taped(type(self).__name__, lambda *arrays: self.run(*self._checked(*arrays)), training=True),
                (outputs, targets, *weights),
            )
        if (
            current_scope() is None
            and not isinstance(outputs, Recorded)
            and not isinstance(targets, Recorded)
        ):
            return self.forward(outputs, targets, sample_weight)
        return self.run(*self._checked(outputs, targets, *weights))

    def _checked(self, outputs: Any, targets: Any, *weights: Any) -> tuple[Any, ...]:
        """Outputs, targets and weights as `compute` takes them. Raises for those on the host that do not fit."""
        raw, wanted = array_of(outputs), array_of(targets)
        lib = backend_of(raw, wanted)
        if lib.is_host:
            self.check(wanted, tuple(raw.shape[1:]))
        return outputs, targets, *(self._as_weights(lib, weight, raw) for weight in weights)

    def _as_weights(self, lib: Backend, weight: Any, outputs: Array) -> Any:
        """Sample weights in the outputs' dtype."""
        if isinstance(weight, Recorded):
            return weight
        if not hasattr(weight, "shape") or backend_of(weight).is_host:
            weight = check_sample_weight(weight, int(outputs.shape[0]))
        backend_of(outputs, weight)  # raises for two backends
        return lib.xp.astype(weight, outputs.dtype, copy=False)

    def forward(self, outputs: Array, targets: Array, sample_weight: Array | None = None) -> Array:
        """The loss, an array of shape () that stays on the device; keeps what `backward` needs.

        Targets on the host are checked. sample_weight: (n,), how much each sample counts.
        """
        weights = () if sample_weight is None else (sample_weight,)
        outputs, *rest = self._checked(outputs, targets, *weights)
        given = Value(outputs)
        with Scope(training=True) as scope:
            cost = self._computed(scope, (given, *rest))
            self.__dict__["_tape"] = given, cost, current_numerics()
        return array_of(cost)

    def backward(self) -> Array:
        """The gradient of the last forward's loss for its outputs. Raises GraphError before a forward."""
        if self._tape is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        given, cost, mode = self._tape
        value = cost.array
        one = backend_of(value).xp.ones(value.shape, dtype=value.dtype, device=value.device)
        with pinned():
            check_same_numerics(type(self).__name__, mode)
            handed = backpropagate(made_from(cost), {cost: one}, {given})
        gradient = handed[given][0] if given in handed else None
        if gradient is None:
            raise GraphError(
                f"{type(self).__name__} does not depend on the outputs: it has no gradient for them"
            )
        return gradient

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any, **kwargs: Any) -> Any:
        """The loss: the op of all of them, with its options, unless overridden.

        They are recorded values, and so is the loss.
        """
        if not hasattr(self, "op"):
            raise OptionError(f"{type(self).__name__} needs an `op`, or a `compute` of its own")
        raw = array_of(outputs)
        return self.op(outputs, targets, *sample_weight, **self._options(backend_of(raw), raw))

    def run(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        """The loss as a part of something larger: keeps nothing for `backward`."""
        arrays = (outputs, targets, *sample_weight)
        recorded = any(isinstance(x, Recorded) for x in arrays)
        if self.by_hand and recorded:
            return _ByHand(self)(*arrays)
        if self.by_hand:
            with by_hand():
                return self.forward(*arrays)
        scope = current_scope()
        if scope is not None:
            return self._computed(scope, arrays)
        with Scope(records=recorded) as scope:
            return self._computed(scope, arrays)

    def _computed(self, scope: Scope, arrays: tuple[Any, ...]) -> Any:
        """What `compute` makes of outputs, targets and perhaps weights."""
        _, _, *sample_weight = arrays
        if sample_weight and not self._takes_weight:
            raise OptionError(
                f"the compute of {type(self).__name__} takes no sample_weight: give it a third argument for them"
            )
        given = [x if isinstance(x, Recorded) else Constant(x) for x in arrays]
        before, scope.guarded = scope.guarded, scope.records
        try:
            cost = self.compute(*given)
        finally:
            scope.guarded = before
        if not isinstance(cost, Recorded):
            raise GraphError(
                f"{type(self).__name__} must compute the loss from the outputs with ops, got {type(cost).__name__}"
            )
        if self.reduction != "none" and cost.shape != ():
            raise ShapeError(
                f"{type(self).__name__} must be one number a batch, got shape {tuple(cost.shape)}; ops.mean makes "
                "one of an array"
            )
        return cost if scope.records else cost.array

    def total(self, outputs: Array, targets: Array, *sample_weight: Array) -> Array | float:
        """What the mean of a batch was divided by: the number of its terms, or the sum of their weights."""
        lib = backend_of(outputs, targets, *sample_weight)
        arrays = (outputs, targets, *(lib.xp.astype(w, outputs.dtype, copy=False) for w in sample_weight))
        op = getattr(self, "op", None)
        if isinstance(op, LossOp):
            return apply_rule(op.total, lib.math, arrays, self._options(lib, outputs))
        # A loss of the user's counts by its samples.
        return apply_rule(ops.mse.total, lib.math, (outputs, *arrays[::2]), {})

    def counts_samples(self, weighted: bool) -> bool:
        """Whether a batch's mean was divided by its samples, so that `total` need not be computed."""
        return self.reduction != "mean" or not weighted

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


class Lambda(Loss):
    """A function of yours as a loss: Lambda(lambda outputs, targets: ops.mean(ops.abs(outputs - targets))).

    function: takes a batch's outputs and targets, and a third argument, the sample weights, if there are to be some;
    returns one number, computed with ops. It says what is averaged: a Trainer weighs each batch's number by its
    samples. Its code is in no record. A Trainer takes the plain function, too: Trainer(model, function, optimizer).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function) or isinstance(function, (Loss, type)):
            raise OptionError(
                f"losses.Lambda needs a function of outputs and targets, got {repr(function)[:60]}"
            )
        super().__init__()
        self.function = function

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        """function(outputs, targets), with the weights if there are some."""
        if sample_weight and not _takes(self.function, None, None, None):
            raise OptionError(
                "the function of a losses.Lambda takes no sample_weight: give it a third argument"
            )
        return self.function(outputs, targets, *sample_weight)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Nothing: only the function knows what fits."""

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Integers as int64, other numbers in the model's dtype."""
        return np.asarray(targets, dtype=np.int64 if targets.dtype.kind in "iu" else dtype)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', 'function')})"


class _ByHand(Op):
    """A loss as one op: the forward and backward that its class has of its own."""

    takes_stored = True

    def __init__(self, loss: Loss) -> None:
        self.owner = loss

    def forward(
        self, xp: Namespace, outputs: Array, targets: Array, *sample_weight: Array
    ) -> tuple[Array, Any]:
        with by_hand():
            return self.owner.forward(outputs, targets, *sample_weight), sample_weight

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        with by_hand():
            return self.owner.backward() * grad, None, *(None for _ in saved)

    @property
    def name(self) -> str:
        return type(self.owner).__name__


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


def inside(shape: tuple[int, ...]) -> str:
    """A shape as it is written after `(n, `."""
    return ", ".join(map(str, shape))
