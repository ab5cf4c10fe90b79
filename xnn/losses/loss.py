"""Loss, the base class of all losses: one `compute`, from which everything else follows, and a check of targets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from xnn import ops
from xnn.backends import Backend, backend_of, current_numerics
from xnn.backends.numerics import check_same_numerics, pinned
from xnn.errors import DTypeError, GraphError, LabelError, OptionError, ShapeError
from xnn.graph import Node
from xnn.graph.backward import backpropagate, made_from
from xnn.graph.habits import Habitual
from xnn.graph.node import Recorded, array_of
from xnn.graph.scope import Scope, by_hand, check_assignment, current_scope, note_assignment
from xnn.graph.taped import Taped
from xnn.graph.value import Constant, Value
from xnn.layers.by_hand import new_pass, written_by_hand
from xnn.layers.parameter import Parameter
from xnn.losses.batches import check_sample_weight, inside, reshaping_hint
from xnn.losses.by_hand import LossByHand, one_number
from xnn.losses.recognition import check_broadcast, reduction_of
from xnn.ops import Array, LossOp, Op
from xnn.ops.apply import apply_rule, plain_number
from xnn.ops.losses import check_reduction
from xnn.options import attributes_of, check_known, explained, explained_call, takes, written

__all__ = ["Loss"]


@functools.cache
def _options_of(op: Op) -> list[inspect.Parameter]:
    """The parameters of an op's formula, of which the keyword-only ones are its options."""
    takes = op.terms if isinstance(op, LossOp) else op.forward
    return list(inspect.signature(takes).parameters.values())


class Loss(Habitual):
    """One number computed from outputs and targets, which training makes small. The base class of all losses.

    A subclass overrides `compute` (or sets `op`):

        class HalfMSE(losses.Loss):
            def compute(self, outputs, targets):
                difference = outputs - targets
                return ops.mean(difference * difference) / 2.0

    loss(outputs, targets) and forward(outputs, targets, sample_weight=None) compute the loss and keep what `backward`
    needs. backward() returns the gradient for the outputs. Both follow from `compute`, and so do the loss's node in a
    graph, its gradients under `xnn.grad`, and its part in a Trainer's program. What `compute` may do is what `Layer`
    says of its own. A third argument of `compute`, `sample_weight`, gets the sample weights.

    A subclass may instead override both `forward` and `backward`. `losses.Lambda(f)` makes a loss of a function.

    reduction: how the terms of a batch become one number; "mean" by default. "mean": their mean over all elements, or
        over all samples if the terms are sums over classes, weighted by the sample weights if there are any.
        "sum_over_batch_size": their weighted sum, divided by the number of terms whatever their weights. "sum": their
        sum. "none": the terms themselves, of which `backward` returns the gradient of the sum; a Trainer does not
        take it. `xnn.ops.LossOp` has the formulas.
    options: the op's options by name.

    Raises OptionError for other reductions or options.

        >>> import numpy as np
        >>> from xnn import losses, ops
        >>> class HalfMSE(losses.Loss):
        ...     def compute(self, outputs, targets):
        ...         difference = outputs - targets
        ...         return ops.mean(difference * difference) / 2.0
        >>> loss = HalfMSE()
        >>> float(loss(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])))
        2.5
        >>> loss.backward().tolist()
        [[0.5], [1.5]]
    """

    op: Op
    _habits = "loss"
    _closed = True
    #: Names of the metrics that a Trainer counts by default.
    usual_metrics: tuple[str, ...] = ()
    #: Whether each output is a yes or no of its own, by which a Trainer's metrics count it.
    binary = False
    #: The op that the loss applies itself, so that the model must not end with it.
    already_includes: Op | None = None
    reduction = "mean"
    #: Whether `forward` and `backward` are written by hand.
    by_hand: ClassVar[bool] = False
    _takes_weight: ClassVar[bool] = True
    _chosen: Mapping[str, Any] = MappingProxyType({})
    #: The last forward's outputs, its loss, and the numerics in force.
    _tape: tuple[Value, Any, str] | None = None
    #: The reduction that `recognize` found out.
    _recognized: str | None = None
    #: The options last used, the backend and dtype that they were used with, and the options on that backend.
    _there: tuple[Any, ...] = (None, None, None, None)

    def __init__(self, reduction: str = "mean", **options: Any) -> None:
        if hasattr(self, "op") and all(p.kind is not p.VAR_KEYWORD for p in _options_of(self.op)):
            check_known(type(self).__name__, options, ("reduction", *self._defaults()))
        self.reduction = reduction
        self.options = {name: value for name, value in options.items() if value is not None}

    @property
    def options(self) -> Mapping[str, Any]:
        """The op's options that were chosen, without the reduction; read-only, but may be assigned as a whole.

        Each is an attribute, too, which a callback may change between steps: `loss.delta = 2.0`.
        """
        return MappingProxyType(self._chosen)

    @options.setter
    def options(self, options: Mapping[str, Any]) -> None:
        given = {name: plain_number(value) for name, value in options.items()}
        if hasattr(self, "op"):
            self.op.check_options(**given)
        self._chosen = given

    def _defaults(self) -> dict[str, Any]:
        """The op's options and their defaults."""
        op = getattr(type(self), "op", None)
        return {} if op is None else {p.name: p.default for p in _options_of(op) if p.kind is p.KEYWORD_ONLY}

    def __init_subclass__(cls) -> None:
        if "__init__" in vars(cls) and cls.__module__.startswith("xnn.losses."):
            cls.__init__ = explained(cls.__init__)  # type: ignore[method-assign]
        cls.by_hand = written_by_hand(cls, Loss)
        if "compute" in vars(cls):
            cls._takes_weight = takes(cls.compute, None, None, None, None)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: all but the last forward pass, which is only this object's."""
        return {name: value for name, value in self.__dict__.items() if name != "_tape"}

    def __repr__(self) -> str:
        return written(self, {**self.options, **attributes_of(self)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._defaults():
            return self._missing(name)
        return self._chosen.get(name, self._defaults()[name])

    def __setattr__(self, name: str, value: Any) -> None:
        check_assignment(self, name)
        if name == "reduction":
            value = check_reduction(value)
        elif not name.startswith("_") and name in self._defaults():
            name, value = "options", {**self._chosen, name: value}
        super().__setattr__(name, value)
        if not name.startswith("_"):
            if not self.by_hand:  # whose `forward` assigns what it keeps
                self.__dict__.pop("_recognized", None)
            note_assignment()

    def __call__(self, outputs: Any, targets: Any, sample_weight: Any = None) -> Any:
        """The loss of arrays, recorded values or graph nodes.

        Arrays outside of `compute` and `xnn.grad` go through `forward`, so that `backward` may follow.

        outputs: what a model returns, (n, ...). targets: what the loss needs; on the host they are checked.
        sample_weight: how much each sample counts, (n,), numbers of at least 0; all alike by default.
        """
        weights = () if sample_weight is None else (sample_weight,)
        if isinstance(outputs, Node) or isinstance(targets, Node):
            return Node(
                Taped(type(self).__name__, self._in_a_graph, training=True),
                (outputs, targets, *weights),
            )
        if (
            current_scope() is None
            and not isinstance(outputs, Recorded)
            and not isinstance(targets, Recorded)
        ):
            return self.forward(outputs, targets, sample_weight)
        return self.run(*self._checked(outputs, targets, *weights))

    def _in_a_graph(self, *arrays: Any) -> Any:
        """The loss as a function of recorded values, for its node."""
        cost = self.run(*self._checked(*arrays))
        _check_reads(self, made_from(cost), ())
        return cost

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
        """The loss, an array of shape () on the backend of the outputs; keeps what `backward` needs.

        The arguments are those of a call. Raises ShapeError, DTypeError, LabelError or OptionError for targets or
        weights that do not fit.
        """
        weights = () if sample_weight is None else (sample_weight,)
        outputs, *rest = self._checked(outputs, targets, *weights)
        given = Value(outputs)
        with Scope(training=True) as scope:
            cost = self._computed(scope, (given, *rest))
            self.__dict__["_tape"] = given, cost, current_numerics()
        return array_of(cost)

    @explained_call("model.backward(loss.backward()) passes the gradient on to the model")
    def backward(self) -> Array:
        """The gradient, with respect to the outputs, of the loss that `forward` computed last.

        Raises GraphError before a forward, and OptionError for a loss that also computes with parameters which are
        not frozen, whose gradients this would lose.
        """
        gradient, _ = self.gradients(())
        return gradient

    def gradients(self, parameters: Sequence[Any]) -> tuple[Array, dict[Any, Array]]:
        """The gradients of the loss that `forward` computed last: for the outputs, and for each of `parameters`.

        A parameter that the loss does not depend on has no entry.
        """
        if self.by_hand:
            return self.backward(), {}
        if self._tape is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward: call forward first")
        given, cost, mode = self._tape
        value = cost.array
        one = backend_of(value).xp.ones(value.shape, dtype=value.dtype, device=value.device)
        with pinned():
            check_same_numerics(type(self).__name__, mode)
            order = made_from(cost)
            _check_reads(self, order, parameters)
            handed = backpropagate(order, {cost: one}, {given, *parameters})
        gradient = handed[given][0] if given in handed else None
        if gradient is None:
            raise GraphError(
                f"{type(self).__name__} does not depend on the outputs: it has no gradient for them"
            )
        own = {p: handed[p][0] for p in parameters if p in handed and handed[p][0] is not None}
        return gradient, own

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any, **kwargs: Any) -> Any:
        """The loss: by default its op of outputs, targets and perhaps sample weights. Override it.

        The arguments are recorded values, and so is the loss.
        """
        if not hasattr(self, "op"):
            raise OptionError(f"{type(self).__name__} needs an `op`, or a `compute` of its own")
        raw = array_of(outputs)
        options = self._options(backend_of(raw), raw)
        if self.reduction == "sum_over_batch_size" and not sample_weight and not self._chosen:
            options = {}  # without weights it is the mean, which has kernels
        return self.op(outputs, targets, *sample_weight, **options)

    def run(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        """The loss, without checking the targets or keeping anything for `backward`."""
        arrays = (outputs, targets, *sample_weight)
        recorded = any(isinstance(x, Recorded) for x in arrays)
        if self.by_hand and recorded:
            return LossByHand(self)(*arrays)
        if self.by_hand:
            new_pass(self)
            with by_hand(self.forward):
                return one_number(self, self.forward(*arrays), outputs)
        scope = current_scope()
        if scope is not None:
            return self._computed(scope, arrays)
        with Scope(records=recorded) as scope:
            return self._computed(scope, arrays)

    def _computed(self, scope: Scope, arrays: tuple[Any, ...]) -> Any:
        """Call `compute` with outputs, targets and perhaps weights. Raises unless it returns one number a batch."""
        outputs, _, *sample_weight = arrays
        if sample_weight and not self._takes_weight:
            raise OptionError(
                f"{self!r} was given sample_weight, and takes none: give its function a third argument for them"
            )
        given = [x if isinstance(x, Recorded) else Constant(x) for x in arrays]
        before, scope.guarded = scope.guarded, scope.records
        try:
            cost = self.compute(*given)
        finally:
            scope.guarded = before
        if not isinstance(cost, Recorded):
            raise GraphError(
                f"{self!r} must compute its number from the outputs with ops, got {type(cost).__name__}"
            )
        one_number(self, cost, outputs)
        if scope.records and type(self).compute is not Loss.compute:
            check_broadcast(self, cost, given)
        return cost if scope.records else cost.array

    def recognize(self, outputs: Array, targets: Array, *sample_weight: Array) -> None:
        """Find out from a batch whether a loss of the user's is a mean or a sum; see `over_batches`.

        Raises ShapeError if it broadcasts (n, 1) against (n,).
        """
        own = type(self).compute is Loss.compute and isinstance(getattr(self, "op", None), LossOp)
        if self._recognized is None and (self.by_hand or not own):
            self.__dict__["_recognized"] = reduction_of(self, (outputs, targets, *sample_weight))

    @property
    def over_batches(self) -> str:
        """How the losses of batches are combined: its `reduction`, or what `recognize` found out."""
        return self._recognized or self.reduction

    def total(self, outputs: Array, targets: Array, *sample_weight: Array) -> Array | float:
        """The divisor of a batch's mean: the number of its terms, or the sum of their weights."""
        lib = backend_of(outputs, targets, *sample_weight)
        arrays = (outputs, targets, *(lib.xp.astype(w, outputs.dtype, copy=False) for w in sample_weight))
        op = getattr(self, "op", None)
        if isinstance(op, LossOp):
            return apply_rule(op.total, lib.math, arrays, self._options(lib, outputs))
        # The mean of a user's loss counts by its samples, or by their weights if these divide it.
        counting = (outputs,) if self.over_batches == "sum_over_batch_size" else arrays[::2]
        return apply_rule(ops.mse.total, lib.math, (outputs, *counting), {})

    def weights_cancel(self, weighted: bool) -> bool:
        """Whether the weight of a sample or of its class has no effect in a batch of one sample.

        weighted: whether there are sample weights.
        """
        return self.reduction == "mean" and isinstance(getattr(self, "op", None), LossOp) and weighted

    def counts_samples(self, weighted: bool) -> bool:
        """Whether the divisor of a batch's mean is proportional to its samples, so that `total` is not needed.

        weighted: whether there are sample weights.
        """
        return self.reduction != "mean" or not weighted

    def _options(self, lib: Backend, outputs: Array) -> dict[str, Any]:
        """The op's options, on the backend and in the dtype of these outputs.

        Those that have their defaults are left out, since kernels exist only for a loss without options. Sequences of
        numbers are moved to the backend once.
        """
        dtype = "float64" if outputs.dtype == lib.xp.float64 else "float32"
        known, name, kind, options = self._there
        if known is not self._chosen or (name, kind) != (lib.name, dtype):
            options = {
                name: lib.to_device(np.asarray(value, dtype)) if isinstance(value, tuple) else value
                for name, value in self._chosen.items()
            }
            self._there = self._chosen, lib.name, dtype, options
        return options if self.reduction == "mean" else {**options, "reduction": self.reduction}

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Host targets in the dtype that the op takes; dtype: the model's."""
        return np.asarray(targets, dtype=dtype)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Raise for host targets that do not fit the shape of one sample's output, or that are out of range."""
        if tuple(targets.shape[1:]) != output_shape:
            raise ShapeError(
                f"{self!r} got targets of shape {tuple(targets.shape)} for outputs (n, {inside(output_shape)}): they "
                f"must be equal, since nothing is broadcast; {reshaping_hint(targets, output_shape)}"
                + ("" if type(self).__module__.startswith("xnn.") else ", or override `check` and `prepare`")
            )
        if targets.dtype.kind not in "fiub":
            raise DTypeError(f"{self!r} needs numbers as targets, got {targets.dtype}")
        if targets.dtype.kind == "f" and not np.isfinite(targets).all():
            raise LabelError(f"{self!r}: the targets hold NaN or infinities; clean them first")


def _check_reads(loss: Loss, order: Sequence[Recorded], parameters: Sequence[Any]) -> None:
    """Raise OptionError if a loss reads a parameter that is neither frozen nor one of these."""
    for node in order:
        if isinstance(node, Parameter) and not node.frozen and node not in parameters:
            raise OptionError(
                f"{type(loss).__name__} computes with {node!r}, whose gradient would be lost: train with a Trainer "
                "or xnn.value_and_grad, or freeze it"
            )
