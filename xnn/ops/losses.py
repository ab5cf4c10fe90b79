"""Losses as ops. A loss gives its terms and their derivatives; `LossOp` weighs them and reduces them to a number.

Losses of probabilities are in `cross_entropy.py`. Your own loss is two methods:

>>> import numpy as np
>>> class LogCosh(LossOp):
...     def terms(self, xp, predicted, target):
...         difference = predicted - target
...         return xp.log(0.5 * (xp.exp(difference) + xp.exp(-difference))), difference
...     def slopes(self, xp, share, difference):
...         dp = xp.tanh(difference) * share
...         return dp, -dp
>>> float(LogCosh()(np.zeros(2), np.zeros(2)))
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xnn.errors import DTypeError, GraphError, OptionError, ShapeError
from xnn.ops.apply import batch_count, batch_part, batch_sum
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.sums import pairwise_sum
from xnn.options import check_real, is_one_of, shown

__all__ = ["LossOp", "check_reduction", "column_mse", "constant", "divided", "hinge", "huber", "l1", "mse"]


def check_reduction(reduction: Any) -> str:
    """The reduction. Raises OptionError for another than those of LossOp."""
    if not is_one_of(reduction, ("mean", "sum_over_batch_size", "sum", "none")):
        raise OptionError(
            f"reduction must be 'sum_over_batch_size', 'mean', 'sum' or 'none', got {shown(reduction)}"
        )
    return str(reduction)


class LossOp(Op):
    """The base class of losses. A loss is called as loss(outputs, targets) or loss(outputs, targets, weights).

        "mean":  L = sum_i w_i terms_i / sum_i w_i counts_i, over the whole batch
        "sum_over_batch_size":  L = sum_i w_i terms_i / the number of terms
        "sum":   L = sum_i w_i terms_i
        "none":  the array of w_i terms_i

    outputs: the model's outputs, floating-point.
    targets: for most losses of the same shape as the outputs.
    weights: a weight w for each sample, shape (n,); may be omitted, which is a weight of 1.
    reduction: "mean" (default), "sum_over_batch_size", "sum" or "none"; by name. Losses have further options.

    counts is 1, except for class weights and ignored labels. So the mean is a weighted average, as numpy.average,
    scikit-learn's sample_weight and PyTorch's class weights have it: a sample of weight 2 counts like two samples.
    In a batch of one sample its weight cancels. "sum_over_batch_size" divides by the number of terms, whatever their
    weights: so do Keras, and PyTorch's (weights * loss).mean(). If nothing counts - no rows, weights that are all 0,
    labels that are all ignored - the mean and its gradient are 0, as in Keras. (In PyTorch they are NaN.) A sample of
    weight 0 is left out even if its loss is infinite or NaN. Outputs, floating-point targets and weights have a
    gradient.

    A subclass defines two methods:

    terms(xp, outputs, targets, **options) -> (terms, saved)
        The terms of the sum, one for each element of the outputs, in their shape, and anything that `slopes` needs.
        With `over_classes`, each term is a sum over axis 1, and the terms have shape (n, 1, ...).
    slopes(xp, share, saved) -> (gradient of outputs, gradient of targets)
        `share` is the gradient of the terms; it broadcasts to them. None for targets without a gradient.

    Raises GraphError for terms and gradients of other shapes, which would be averaged wrongly.
    """

    #: Whether each term is a sum over axis 1, the classes. The terms then have shape (n, 1, ...).
    over_classes = False

    terms: Callable[..., tuple[Array, Any]]
    slopes: Callable[..., tuple[Array, Array | None]]

    def counts(self, xp: Namespace, outputs: Array, targets: Array, **options: Any) -> Array | None:
        """How much each term counts in the divisor of the mean. None stands for 1."""
        return None

    def fit(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """The targets, converted to the dtype of the outputs.

        Raises ShapeError unless the shapes are equal, since (n,) and (n, 1) would broadcast to n * n terms. Raises
        DTypeError for outputs that are not floating-point.
        """
        if outputs.shape != targets.shape:
            raise ShapeError(
                f"the loss got predictions of shape {outputs.shape} and targets of shape {targets.shape}: the shapes "
                "must be equal, since nothing is broadcast. Reshape one of them"
            )
        self.check_floating(xp, outputs)
        return xp.astype(targets, outputs.dtype, copy=False)

    def check_floating(self, xp: Namespace, outputs: Array) -> None:
        """Raise DTypeError unless the outputs are floating-point."""
        if not xp.isdtype(outputs.dtype, "real floating"):
            raise DTypeError(f"the loss got predictions of {outputs.dtype}: they must be floating-point")

    def forward(
        self,
        xp: Namespace,
        outputs: Array,
        targets: Array,
        weights: Array | None = None,
        *,
        reduction: str = "mean",
        **options: Any,
    ) -> tuple[Array, Any]:
        check_reduction(reduction)
        targets = self.fit(xp, outputs, targets)
        terms, own = _checked_terms(self, self.terms(xp, outputs, targets, **options), outputs.shape)
        counts, column, weighted = None, None, terms
        if weights is not None:
            column = _column(xp, weights, outputs)
            weighted = xp.where(column == 0.0, 0.0, terms) * column
        if reduction == "none":
            value, total = xp.reshape(weighted, self._shape(outputs)), None
        else:
            value, total = batch_part(xp, weighted), None
        if reduction == "mean":
            counts = self.counts(xp, outputs, targets, **options)
            total = self._total(xp, outputs, column, counts)
        elif reduction == "sum_over_batch_size":
            total = self._total(xp, outputs, None, None)
        if total is not None:
            value = divided(xp, value, total)
        weighing = None if column is None else (column, terms, counts, value)
        shapes = terms.shape, outputs.shape, targets.shape
        return value, (own, reduction, total, shapes, weighing)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        own, reduction, total, (shape, *of_inputs), weighing = saved
        share = grad
        if reduction == "none":
            share = xp.reshape(grad, shape)
        if total is not None:
            share = divided(xp, grad, total)
        if weighing is None:
            return _checked_slopes(self, self.slopes(xp, share, own), of_inputs)
        column, terms, counts, value = weighing
        if reduction == "mean":  # a weight changes the sum and the divisor of the mean
            terms = terms - (value if counts is None else value * counts)
        terms = share * xp.where(share == 0.0, 0.0, terms)
        dw = pairwise_sum(xp, xp.reshape(terms, (shape[0], size_of(shape[1:]))), axis=1)
        omitted = column == 0.0
        share = xp.where(omitted, 1.0, share * column)  # any number will do where it is not used
        slopes = _checked_slopes(self, self.slopes(xp, share, own), of_inputs)
        return *(None if d is None else xp.where(omitted, 0.0, d) for d in slopes), dw

    def total(
        self,
        xp: Namespace,
        outputs: Array,
        targets: Array,
        weights: Array | None = None,
        *,
        reduction: str = "mean",
        **options: Any,
    ) -> Any:
        """The divisor of the mean: the batch's count or sum of weights, as a number or an array of shape ()."""
        column = None if weights is None else _column(xp, weights, outputs)
        if reduction == "sum_over_batch_size":
            return self._total(xp, outputs, None, None)
        counts = self.counts(xp, outputs, self.fit(xp, outputs, targets), **options)
        return self._total(xp, outputs, column, counts)

    def _total(self, xp: Namespace, outputs: Array, column: Array | None, counts: Array | None) -> Any:
        shape = self._shape(outputs)
        if counts is not None:
            return batch_sum(xp, counts if column is None else counts * column)
        if column is not None:
            return batch_sum(xp, column) * float(size_of(shape[1:]))
        return float(batch_count(xp, shape))

    def _shape(self, outputs: Array) -> tuple[int, ...]:
        """The shape of the loss with reduction "none"."""
        shape: tuple[int, ...] = outputs.shape
        return (*shape[:1], *shape[2:]) if self.over_classes else shape


def _checked_terms(op: LossOp, found: Any, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """What `terms` returned for outputs of this shape. Raises GraphError unless there is a term for each."""
    if type(found) is not tuple or len(found) != 2:
        raise GraphError(
            f"the terms of {op.name} returned {shown(found)}: it must return a pair (terms, saved)"
        )
    wanted = (*shape[:1], 1, *shape[2:]) if op.over_classes else shape
    if getattr(found[0], "shape", None) != wanted:
        raise GraphError(
            f"the terms of {op.name} have shape {getattr(found[0], 'shape', ())} for outputs of shape {shape}: "
            f"return one term for each, {wanted}, without averaging. `over_classes = True` is for terms that are "
            "sums over axis 1, (n, 1, ...)"
        )
    return found


def _checked_slopes(
    op: LossOp, found: Any, shapes: Sequence[tuple[int, ...]]
) -> tuple[Array | None, Array | None]:
    """What `slopes` returned. Raises GraphError unless it is two gradients of these shapes."""
    if type(found) is not tuple or len(found) != 2:
        raise GraphError(
            f"the slopes of {op.name} returned {shown(found)}: it must return a pair, the gradients of outputs "
            "and targets"
        )
    for what, gradient, shape in zip(("outputs", "targets"), found, shapes, strict=True):
        if gradient is not None and getattr(gradient, "shape", None) != shape:
            raise GraphError(
                f"the slopes of {op.name} returned a gradient of shape {getattr(gradient, 'shape', ())} for {what} "
                f"of shape {shape}: the shapes must be equal"
            )
    return found


def _column(xp: Namespace, weights: Array, outputs: Array) -> Array:
    """Sample weights (n,), reshaped to (n, 1, ...) so that they broadcast to the terms."""
    if weights.shape != outputs.shape[:1]:
        raise ShapeError(
            f"the loss got sample weights of shape {weights.shape} for outputs of shape {outputs.shape}: "
            "there must be one weight a sample, (n,)"
        )
    column = xp.reshape(weights, (*weights.shape, *(1 for _ in outputs.shape[1:])))
    return xp.astype(column, outputs.dtype, copy=False)


def divided(xp: Namespace, x: Array, total: Any) -> Array:
    """x / total, or 0 where total is 0."""
    if not hasattr(total, "dtype"):
        return x / (total or 1.0)
    nothing = total == 0.0
    return xp.where(nothing, 0.0, x / xp.where(nothing, 1.0, total))


def constant(xp: Namespace, value: Any, like: Array) -> Any:
    """The value of an option: a number as float, a sequence of numbers as an array of dtype and device of `like`."""
    if isinstance(value, (int, float)):
        return float(value)
    return xp.asarray(value, dtype=like.dtype, device=like.device)


class MSE(LossOp):
    """Mean squared error: terms (p - t)^2; d/dp = 2 (p - t), d/dt = -2 (p - t). As PyTorch's mse_loss.

    Some texts halve the loss, so that the 2 in the gradient disappears. Here the loss is not halved.
    """

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        difference = predicted - target
        return difference * difference, difference

    def slopes(self, xp: Namespace, share: Array, difference: Any) -> tuple[Array, Array | None]:
        dp = difference * (share * 2.0)
        return dp, -dp


class L1(LossOp):
    """Mean absolute error: terms |p - t|; d/dp = sign(p - t), d/dt = -sign(p - t). As PyTorch's l1_loss."""

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        difference = predicted - target
        return xp.abs(difference), difference

    def slopes(self, xp: Namespace, share: Array, difference: Any) -> tuple[Array, Array | None]:
        dp = xp.sign(difference) * share
        return dp, -dp


class Huber(LossOp):
    """Huber loss: squared near the target, linear beyond `delta`. As PyTorch's huber_loss and Keras's Huber.

        d = p - t:  d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) elsewhere;  d/dp = clip(d, -delta, delta)

    delta: a finite number above 0; default 1. Raises OptionError for another.

    PyTorch's smooth_l1_loss(beta) is this loss with delta = beta, divided by beta. Source: Huber, Ann. Math. Statist.
    35 (1964).
    """

    def check_options(self, *, delta: Any = 1.0, **others: Any) -> None:
        if not check_real("delta", delta, 0.0):
            raise OptionError("delta must be a finite number above 0, got 0: use losses.L1 for a linear loss")

    def terms(
        self, xp: Namespace, predicted: Array, target: Array, *, delta: float = 1.0
    ) -> tuple[Array, Any]:
        difference = predicted - target
        clipped = xp.clip(difference, -delta, delta)
        return clipped * (difference - 0.5 * clipped), clipped

    def slopes(self, xp: Namespace, share: Array, clipped: Any) -> tuple[Array, Array | None]:
        dp = clipped * share
        return dp, -dp


class Hinge(LossOp):
    """Hinge loss: terms max(1 - p t, 0) for targets t of -1 and 1; d/dp = -t, d/dt = -p where p t < 1, else 0.

    As Keras's Hinge and scikit-learn's hinge_loss. Source: Cortes and Vapnik, Machine Learning 20 (1995).
    """

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        short = 1.0 - predicted * target
        return xp.maximum(short, 0.0), (short, predicted, target)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        short, predicted, target = saved
        within = xp.logical_not(short <= 0.0)  # also where it is NaN
        return xp.where(within, -target * share, 0.0), xp.where(within, -predicted * share, 0.0)


class ColumnMSE(Op):
    """Mean squared error of a MiniFlow graph, MSE(y, a): the target comes first, and both are flattened to columns.

    So targets (n,) and outputs (n, 1) fit, which other losses refuse.
    """

    def forward(self, xp: Namespace, target: Array, predicted: Array) -> tuple[Array, Any]:
        columns = xp.reshape(predicted, (-1, 1)), xp.reshape(target, (-1, 1))
        loss, saved = mse.forward(xp, *columns)
        return loss, (saved, target.shape, predicted.shape)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        inner, target_shape, predicted_shape = saved
        dp, dt = mse.backward(xp, grad, inner)
        return xp.reshape(dt, target_shape), xp.reshape(dp, predicted_shape)


mse = MSE()
l1 = L1()
huber = Huber()
hinge = Hinge()
column_mse = ColumnMSE()
