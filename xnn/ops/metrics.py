"""Counts and sums over a batch, from which metrics are computed. They can be added up over batches; no gradients.

Classes: outputs have shape (n, classes) or (n, classes, ...). The predicted class of a sample (or of each position of
a sample) is that of its largest output, the first of equal ones. The true class is given by integer labels (n, ...),
or by probabilities of the outputs' shape, as the class of the largest. No prediction is right for a label outside
0 .. classes - 1.

Yes or no: a single output, of shape (n, 1) or (n,), with targets of the same shape. It says yes if it is above
`threshold` (0 for logits, 1/2 for probabilities). Yes is right if the target is above 1/2. With `binary`, each of
several outputs (n, ...) says yes or no for itself.
"""

from __future__ import annotations

from xnn.errors import DTypeError, ShapeError
from xnn.ops.op import Array, Namespace, size_of
from xnn.ops.sums import pairwise_mean, pairwise_sum, product_over_rows

__all__ = [
    "absolute_error", "accuracy", "class_counts", "confusion", "in_top", "moments", "reliability",
    "squared_error",
]  # fmt: skip


#: Up to this number, float32 counts by ones.
_EXACT = 16777216


def accuracy(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """The number of right samples, shape (); for each position or output that says yes or no, shape (m,)."""
    if targets.shape == outputs.shape[:1] and outputs.ndim == 2 and not binary:
        if not xp.isdtype(targets.dtype, ("bool", "integral")):
            raise DTypeError(
                f"accuracy got labels of {targets.dtype}: it needs integer labels, as labels.astype('int64')"
            )
        best = xp.argmax(outputs, axis=1)
        # Compared as indices, since uint8 labels could not be compared with class 300.
        return _count(xp, best == xp.astype(targets, best.dtype), outputs)
    said, true = _decisions(xp, "accuracy", outputs, targets, binary, threshold)
    if _says_yes(outputs, targets, binary):
        return _count(xp, said == true, outputs, axis=0)
    return _each_place(xp, outputs, xp.any(xp.logical_and(said, true), axis=1))


def class_counts(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """Count for each class how often it was predicted correctly, was predicted, was true: integers (3, classes).

    An output that says yes or no has one column, which counts yes.
    """
    said, true = _decisions(xp, "the count of classes", outputs, targets, binary, threshold)
    return xp.stack([_integers(xp, which, axis=0) for which in (xp.logical_and(said, true), said, true)])


def confusion(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """The confusion matrix (classes, classes): how often class i (row) was true and class j (column) predicted.

    Of an output that says yes or no, the classes are no and yes.
    """
    said, true = _decisions(xp, "a confusion matrix", outputs, targets, binary, threshold)
    if _says_yes(outputs, targets, binary):
        if said.shape[1] > 1:
            raise ShapeError(
                f"a confusion matrix got outputs of shape {outputs.shape}, which say yes or no {said.shape[1]} "
                "times for each sample: give it outputs and targets of a single column"
            )
        said, true = (xp.concat([xp.logical_not(which), which], axis=1) for which in (said, true))
    said, true = xp.astype(said, outputs.dtype), xp.astype(true, outputs.dtype)
    return product_over_rows(xp, true, said)  # sums of zeros and ones are not rounded


def in_top(xp: Namespace, outputs: Array, targets: Array, *, k: int) -> Array:
    """The number of samples whose class is among the k largest outputs. Of equal outputs, the first is larger."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ShapeError(f"top-{k} accuracy got outputs of shape {outputs.shape}: it needs (n, classes)")
    rows, classes, actual = _classes(xp, f"top-{k} accuracy", outputs, targets)
    true = actual == classes
    score = xp.max(xp.where(true, rows, float("-inf")), axis=1, keepdims=True)
    equal_before = xp.logical_and(rows == score, classes < actual)
    # "not <=" instead of ">", so that an output of NaN comes before all others.
    before = xp.astype(xp.logical_or(xp.logical_not(rows <= score), equal_before), classes.dtype)
    return _each_place(xp, outputs, xp.logical_and(xp.sum(before, axis=1) < k, xp.any(true, axis=1)))


def reliability(xp: Namespace, outputs: Array, targets: Array, *, bins: int) -> Array:
    """Sums over the samples of each interval of confidence: of ones, confidences and right samples; shape (3, bins).

    outputs: probabilities (n, classes), or (n, 1) of yes. bins: of equal width, from 0 to 1; the upper end of an
    interval belongs to it. The confidence is the probability of the predicted class.
    """
    if outputs.ndim != 2:
        raise ShapeError(f"reliability got outputs of shape {outputs.shape}: it needs (n, classes) or (n, 1)")
    if _says_yes(outputs, targets, False):
        _check_floating(xp, "reliability", outputs)
        outputs = xp.concat([1.0 - outputs, outputs], axis=1)
        targets = xp.astype(
            xp.astype(targets, outputs.dtype) > 0.5, xp.arange(1, device=outputs.device).dtype
        )
        targets = xp.reshape(targets, (outputs.shape[0],))
    rows, _, actual = _classes(xp, "reliability", outputs, targets)
    confidence = xp.max(rows, axis=1, keepdims=True)
    best = xp.expand_dims(xp.argmax(rows, axis=1), axis=1)
    last = xp.full(confidence.shape, float(bins - 1), dtype=rows.dtype, device=rows.device)
    place = xp.minimum(xp.maximum(xp.ceil(confidence * float(bins)) - 1.0, xp.zeros_like(last)), last)
    inside = place == xp.astype(xp.arange(bins, device=rows.device), rows.dtype)
    right = xp.logical_and(inside, best == actual)
    sums = pairwise_sum(xp, xp.where(inside, confidence, xp.zeros_like(confidence)), axis=0)
    return xp.stack([_count(xp, inside, rows, axis=0), sums, _count(xp, right, rows, axis=0)])


def absolute_error(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """The sum of |output - target| over the batch, for each output."""
    return pairwise_sum(xp, xp.abs(outputs - _like(xp, outputs, targets)), axis=0)


def squared_error(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """The sum of (output - target)^2 over the batch, for each output."""
    error = outputs - _like(xp, outputs, targets)
    return pairwise_sum(xp, error * error, axis=0)


def moments(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """For each output o with targets t: n, a pivot p, sum (t - p), sum (t - p)^2, sum (o - t)^2; shape (5, outputs).

    The pivot is the target nearest to the mean of the batch, so |p - mean| is at most the standard deviation. Without
    a pivot, sum t^2 - (sum t)^2 / n would lose all digits of targets that lie far from 0. The mean itself as pivot
    would be rounded.
    """
    targets = _like(xp, outputs, targets)
    columns = outputs.shape[0], size_of(outputs.shape[1:])
    outputs, targets = xp.reshape(outputs, columns), xp.reshape(targets, columns)
    away = xp.abs(targets - pairwise_mean(xp, targets, axis=0))
    nearest = away == xp.min(away, axis=0)
    pivot = xp.max(xp.where(nearest, targets, float("-inf")), axis=0)
    from_pivot, error = targets - pivot, outputs - targets
    samples = xp.full(pivot.shape, float(columns[0]), dtype=pivot.dtype, device=pivot.device)
    sums = (pairwise_sum(xp, term, axis=0) for term in (from_pivot, from_pivot * from_pivot, error * error))
    return xp.stack([samples, pivot, *sums])


def _decisions(
    xp: Namespace, what: str, outputs: Array, targets: Array, binary: bool, threshold: float
) -> tuple[Array, Array]:
    """Which classes are predicted and which are true: two boolean arrays (n, outputs) or (positions, classes)."""
    if _says_yes(outputs, targets, binary):
        _check_floating(xp, what, outputs)
        columns = outputs.shape[0], size_of(outputs.shape[1:])
        true = xp.astype(targets, outputs.dtype) > 0.5
        return xp.reshape(outputs > threshold, columns), xp.reshape(true, columns)
    if binary:
        raise ShapeError(
            f"{what} got outputs of shape {outputs.shape}, which say yes or no, and targets of shape "
            f"{targets.shape}: the shapes must be equal"
        )
    rows, classes, actual = _classes(xp, what, outputs, targets)
    return xp.expand_dims(xp.argmax(rows, axis=1), axis=1) == classes, actual == classes


def _says_yes(outputs: Array, targets: Array, binary: bool) -> bool:
    """Whether the outputs say yes or no, and are not the outputs of classes."""
    return targets.shape == outputs.shape and (binary or size_of(outputs.shape[1:]) == 1)


def _each_place(xp: Namespace, outputs: Array, right: Array) -> Array:
    """The number of right samples; for outputs (n, classes, ...) the number at each position."""
    if outputs.ndim == 2:
        return _count(xp, right, outputs)
    return _count(xp, xp.reshape(right, (outputs.shape[0], size_of(outputs.shape[2:]))), outputs, axis=0)


def _count(xp: Namespace, mask: Array, outputs: Array, axis: int | None = None) -> Array:
    """How many elements of a mask are true, along `axis` or in all, in the dtype of the outputs."""
    if size_of(mask.shape) <= _EXACT:
        return xp.sum(xp.astype(mask, outputs.dtype), axis=axis)
    return xp.astype(_integers(xp, mask, axis), outputs.dtype)


def _integers(xp: Namespace, mask: Array, axis: int | None = None) -> Array:
    """How many elements of a mask are true, as integers: in float32, counting by ones ends at 2^24."""
    return xp.sum(xp.astype(mask, xp.arange(1, device=mask.device).dtype), axis=axis)


def _classes(xp: Namespace, what: str, outputs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Outputs (positions, classes), numbers of classes (classes,), true class of each position (positions, 1)."""
    _check_floating(xp, what, outputs)
    one_less = outputs.shape[:1] + outputs.shape[2:]
    if outputs.ndim < 2 or targets.shape not in (outputs.shape, one_less):
        raise ShapeError(
            f"{what} got outputs of shape {outputs.shape} and targets of shape {targets.shape}: it needs outputs "
            "(n, classes, ...) with labels (n, ...) or probabilities (n, classes, ...), or one output that says yes "
            "or no, (n, 1), with targets (n, 1)"
        )
    classes = xp.arange(outputs.shape[1], device=outputs.device)
    if targets.shape == outputs.shape:
        actual = xp.argmax(xp.astype(targets, outputs.dtype), axis=1)
    elif xp.isdtype(targets.dtype, "integral"):
        actual = xp.astype(targets, classes.dtype)
    else:
        raise DTypeError(
            f"{what} got labels of {targets.dtype}: it needs integer labels, as labels.astype('int64')"
        )
    if outputs.ndim > 2:
        classes_last = (0, *range(2, outputs.ndim), 1)
        outputs = xp.reshape(xp.permute_dims(outputs, classes_last), (size_of(one_less), outputs.shape[1]))
    return outputs, classes, xp.reshape(actual, (size_of(one_less), 1))


def _check_floating(xp: Namespace, what: str, outputs: Array) -> None:
    """Raise DTypeError unless the outputs are floating-point: predicted classes given as outputs are a mistake."""
    if not xp.isdtype(outputs.dtype, "real floating"):
        raise DTypeError(
            f"{what} got outputs of {outputs.dtype}: it needs a model's outputs, which are floating-point"
        )


def _like(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """The targets in the dtype of the outputs. Raises ShapeError unless the shapes are equal."""
    if outputs.shape != targets.shape:
        raise ShapeError(
            f"the metric got outputs of shape {outputs.shape} and targets of shape {targets.shape}: it needs targets "
            "of the outputs' shape. Reshape one of them"
        )
    _check_floating(xp, "the metric", outputs)
    return xp.astype(targets, outputs.dtype)
