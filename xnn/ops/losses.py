"""Losses as ops: how terms become one number is said once, in LossOp; a loss says its terms and their derivative.

The losses of probabilities are in `cross_entropy.py`. A loss of your own:

    class LogCosh(LossOp):
        def terms(self, xp, predicted, target):
            difference = predicted - target
            return xp.log(0.5 * (xp.exp(difference) + xp.exp(-difference))), difference
        def slopes(self, xp, share, difference):
            dp = xp.tanh(difference) * share
            return dp, -dp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.ops.apply import batch_count, batch_sum
from xnn.ops.op import Array, Namespace, Op, size_of

__all__ = ["LossOp", "column_mse", "constant", "hinge", "huber", "l1", "mse"]


class LossOp(Op):
    """A loss from outputs, targets and perhaps a weight for each sample; its options and a `reduction`.

        "mean":  L = sum_i w_i terms_i / sum_i w_i counts_i, over the whole batch
        "sum":   L = sum_i w_i terms_i
        "none":  w_i terms_i, each

    w (n,) are the sample weights, 1 where none are given; every element of a sample has its weight. counts are 1
    but where a loss says otherwise (class weights, ignored labels). So the mean is the weighted average of
    numpy.average, of scikit-learn's sample_weight and of PyTorch's class weights, and a sample of weight 2 is one
    that is there twice; Keras's default divides by n instead. Where nothing counts - no rows, only weights of 0,
    only ignored labels - the mean and its gradient are 0, as in Keras: PyTorch has NaN there, which would end a run.
    Each of outputs, real targets and weights has a gradient.

    A subclass has two methods:

    terms(xp, outputs, targets, **options) -> (terms, saved)
        Each element's (or each sample's) part in the sum, and what slopes needs.
    slopes(xp, share, saved) -> (for outputs, for targets)
        The gradients, `share` being the terms', to which it broadcasts; None for targets without one.
    """

    #: Whether a term is a sum over axis 1, the classes, which it then has with extent 1: (n, 1, ...).
    over_classes = False

    terms: Callable[..., tuple[Array, Any]]
    slopes: Callable[..., tuple[Array, Array | None]]

    def counts(self, xp: Namespace, outputs: Array, targets: Array, **options: Any) -> Array | None:
        """How much each term counts in the mean; None stands for 1."""
        return None

    def fit(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """The targets in the outputs' dtype. Equal shapes only: (n,) against (n, 1) would broadcast to n * n.

        Raises ShapeError for other shapes, DTypeError for outputs that are not floating-point numbers.
        """
        if outputs.shape != targets.shape:
            raise ShapeError(
                f"the loss got predictions of shape {outputs.shape} and targets of shape {targets.shape}; "
                "they must be equal (nothing is broadcast): reshape one of them"
            )
        self.check_floating(xp, outputs)
        return xp.astype(targets, outputs.dtype, copy=False)

    def check_floating(self, xp: Namespace, outputs: Array) -> None:
        """Raise DTypeError unless the outputs are floating-point numbers."""
        if not xp.isdtype(outputs.dtype, "real floating"):
            raise DTypeError(f"the loss needs floating-point predictions, got {outputs.dtype}")

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
        """The loss, and what backward needs."""
        if reduction not in ("mean", "sum", "none"):
            raise OptionError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        targets = self.fit(xp, outputs, targets)
        terms, own = self.terms(xp, outputs, targets, **options)
        counts, column, weighted = self.counts(xp, outputs, targets, **options), None, terms
        if weights is not None:
            column = _column(xp, weights, outputs)
            weighted = terms * column
        if reduction == "none":
            value, total = xp.reshape(weighted, self._shape(outputs)), None
        else:
            value, total = batch_sum(xp, weighted), None
        if reduction == "mean":
            total = self._total(xp, outputs, column, counts)
            value = _divided(xp, value, total)
        weighing = None if column is None else (column, terms, counts, value)
        return value, (own, reduction, total, terms.shape, weighing)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        """The gradients of outputs and targets, and of the weights where there are some."""
        own, reduction, total, shape, weighing = saved
        share = grad
        if reduction == "none":
            share = xp.reshape(grad, shape)
        if reduction == "mean":
            share = _divided(xp, grad, total)
        if weighing is None:
            return self.slopes(xp, share, own)
        column, terms, counts, value = weighing
        if reduction == "mean":  # what a weight adds to the sum, less what it adds to the count
            terms = terms - (value if counts is None else value * counts)
        dw = xp.sum(xp.reshape(share * terms, (shape[0], size_of(shape[1:]))), axis=1)
        return *self.slopes(xp, share * column, own), dw

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
        """What the mean was divided by: the batch's count, or the sum of weights; a number or a 0-d array."""
        column = None if weights is None else _column(xp, weights, outputs)
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
        """The shape of the unreduced loss."""
        shape: tuple[int, ...] = outputs.shape
        return (*shape[:1], *shape[2:]) if self.over_classes else shape


def _column(xp: Namespace, weights: Array, outputs: Array) -> Array:
    """Sample weights (n,) as (n, 1, ...) beside the terms."""
    if weights.shape != outputs.shape[:1]:
        raise ShapeError(
            f"the loss got sample weights of shape {weights.shape} for outputs of shape {outputs.shape}: "
            "one weight a sample, (n,)"
        )
    column = xp.reshape(weights, (*weights.shape, *(1 for _ in outputs.shape[1:])))
    return xp.astype(column, outputs.dtype, copy=False)


def _divided(xp: Namespace, x: Array, total: Any) -> Array:
    """x / total, 0 where total is 0."""
    if not hasattr(total, "dtype"):
        return x / (total or 1.0)
    nothing = total == 0.0
    return xp.where(nothing, 0.0, x / xp.where(nothing, 1.0, total))


def constant(xp: Namespace, value: Any, like: Array) -> Any:
    """An option that is a number, as it is, or an array or sequence of numbers, as an array beside `like`."""
    if isinstance(value, (int, float)):
        return float(value)
    return xp.asarray(value, dtype=like.dtype, device=like.device)


class MSE(LossOp):
    """Mean squared error, terms (p - t)^2; d/dp = 2 (p - t) = -d/dt.

    The articles differ on the factor: MiniFlow has 1/n with gradient 2/n, as here and in PyTorch; the
    blocks article halves the loss, or leaves the 2 out of the gradient alone, which is not its gradient.
    """

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        difference = predicted - target
        return difference * difference, difference

    def slopes(self, xp: Namespace, share: Array, difference: Any) -> tuple[Array, Array | None]:
        dp = difference * (share * 2.0)
        return dp, -dp


class L1(LossOp):
    """Mean absolute error, terms |p - t|; d/dp = sign(p - t) = -d/dt, 0 where p = t, as PyTorch's l1_loss."""

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        difference = predicted - target
        return xp.abs(difference), difference

    def slopes(self, xp: Namespace, share: Array, difference: Any) -> tuple[Array, Array | None]:
        dp = xp.sign(difference) * share
        return dp, -dp


class Huber(LossOp):
    """Squared near the target, linear beyond `delta`; PyTorch's huber_loss and Keras's Huber.

        d = p - t:  d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) elsewhere;  d/dp = clip(d, -delta, delta)

    PyTorch's smooth_l1_loss(beta) is this loss of delta = beta, divided by beta. Source: Huber, Ann. Math. Statist.
    35 (1964).
    """

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
    """Terms max(1 - p t, 0) for targets -1 and 1 of the outputs' shape: Keras's Hinge, scikit-learn's hinge_loss.

    d/dp = -t, d/dt = -p where p t < 1, else 0. Source: Cortes and Vapnik, Machine Learning 20 (1995).
    """

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        short = 1.0 - predicted * target
        return xp.maximum(short, 0.0), (short, predicted, target)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        short, predicted, target = saved
        share = xp.where(short > 0.0, share, 0.0)
        return -target * share, -predicted * share


class ColumnMSE(Op):
    """MSE(y, a) as MiniFlow's node has it: target first, both flattened to columns before they meet.

    So targets (n,) and outputs (n, 1) fit, which the losses refuse. Gradients have their inputs' shapes.
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
