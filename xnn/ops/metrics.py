"""What metrics are made of: counts and sums over a batch, to which the next batch's can be added; no gradients.

A sample's class is the largest of its outputs (n, classes), the first of equal ones; what it should be is said by
integer labels (n,) or by probabilities (n, classes), whose largest counts; with more axes, outputs (n, classes, ...)
and labels (n, ...), each place of a sample has a class. A label that no output stands for is no class: it is never
right, and nothing wraps. A single output, (n, 1) or (n,) with targets of the same shape, says yes
where it is above `threshold` (0 for logits, 1/2 for probabilities), and should where the target is above 1/2; with
`binary` each of several outputs (n, ...) says so for itself.
"""

from __future__ import annotations

from xnn.errors import DTypeError, ShapeError
from xnn.ops.op import Array, Namespace, size_of

__all__ = ["absolute_error", "accuracy", "class_counts", "confusion", "in_top", "moments", "squared_error"]


def accuracy(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """The number of samples that are right: 0-d, or for each place of a sample or output that says yes or no, 1-d."""
    if targets.shape == outputs.shape[:1] and outputs.ndim == 2 and not binary:
        if not xp.isdtype(targets.dtype, ("bool", "integral")):
            raise DTypeError(f"accuracy needs integer labels, got {targets.dtype}")
        best = xp.argmax(outputs, axis=1)
        # An index is as wide as it must be: uint8 could not name 300 classes.
        return xp.sum(xp.astype(best == xp.astype(targets, best.dtype), outputs.dtype))
    said, true = _decisions(xp, "accuracy", outputs, targets, binary, threshold)
    if _says_yes(outputs, targets, binary):
        return xp.sum(xp.astype(said == true, outputs.dtype), axis=0)
    return _each_place(xp, outputs, xp.any(xp.logical_and(said, true), axis=1))


def class_counts(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """(3, classes) integers: how often each class was said and true, was said, was true.

    A class is here also an output that says yes or no: it has one column, which counts yes.
    """
    said, true = _decisions(xp, "the count of classes", outputs, targets, binary, threshold)
    counting = xp.arange(1, device=outputs.device).dtype
    rows = (xp.astype(which, counting) for which in (xp.logical_and(said, true), said, true))
    return xp.stack([xp.sum(row, axis=0) for row in rows])


def confusion(
    xp: Namespace, outputs: Array, targets: Array, *, binary: bool = False, threshold: float = 0.0
) -> Array:
    """(classes, classes): how often the row's class was true and the column's said; no and yes are two classes."""
    said, true = _decisions(xp, "a confusion matrix", outputs, targets, binary, threshold)
    if _says_yes(outputs, targets, binary):
        if said.shape[1] > 1:
            raise ShapeError(
                f"a confusion matrix is of one yes or no, and the outputs {outputs.shape} say {said.shape[1]}: "
                "give it one column"
            )
        said, true = (xp.concat([xp.logical_not(which), which], axis=1) for which in (said, true))
    said, true = xp.astype(said, outputs.dtype), xp.astype(true, outputs.dtype)
    return xp.matmul(xp.permute_dims(true, (1, 0)), said)  # zeros and ones: no sum is rounded


def in_top(xp: Namespace, outputs: Array, targets: Array, *, k: int) -> Array:
    """The number of samples whose class is among the k largest outputs; of equal ones the first is the larger."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ShapeError(f"top-{k} accuracy needs outputs (n, classes), got {outputs.shape}")
    rows, classes, actual = _classes(xp, f"top-{k} accuracy", outputs, targets)
    true = actual == classes
    score = xp.max(xp.where(true, rows, float("-inf")), axis=1, keepdims=True)
    equal_before = xp.logical_and(rows == score, classes < actual)
    # Not <=, rather than >: an output that is NaN stands before all others.
    before = xp.astype(xp.logical_or(xp.logical_not(rows <= score), equal_before), classes.dtype)
    return _each_place(xp, outputs, xp.logical_and(xp.sum(before, axis=1) < k, xp.any(true, axis=1)))


def absolute_error(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """sum |o - t| over the batch, for each output."""
    return xp.sum(xp.abs(outputs - _like(xp, outputs, targets)), axis=0)


def squared_error(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """sum (o - t)^2 over the batch, for each output."""
    error = outputs - _like(xp, outputs, targets)
    return xp.sum(error * error, axis=0)


def moments(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """(5, outputs): for each output the samples n, a pivot p, sum (t - p), sum (t - p)^2, sum (o - t)^2.

    The pivot is the target nearest to the batch's mean: sum t^2 - (sum t)^2 / n would lose all digits of targets
    that lie far from zero, and a mean would be rounded. |p - mean| is at most the standard deviation.
    """
    targets = _like(xp, outputs, targets)
    columns = outputs.shape[0], size_of(outputs.shape[1:])
    outputs, targets = xp.reshape(outputs, columns), xp.reshape(targets, columns)
    away = xp.abs(targets - xp.mean(targets, axis=0))
    nearest = away == xp.min(away, axis=0)
    pivot = xp.max(xp.where(nearest, targets, float("-inf")), axis=0)
    from_pivot, error = targets - pivot, outputs - targets
    samples = xp.full(pivot.shape, float(columns[0]), dtype=pivot.dtype, device=pivot.device)
    sums = (xp.sum(term, axis=0) for term in (from_pivot, from_pivot * from_pivot, error * error))
    return xp.stack([samples, pivot, *sums])


def _decisions(
    xp: Namespace, what: str, outputs: Array, targets: Array, binary: bool, threshold: float
) -> tuple[Array, Array]:
    """Booleans (n, outputs) or (places, classes): which are said, and which are true."""
    if _says_yes(outputs, targets, binary):
        _check_floating(xp, what, outputs)
        columns = outputs.shape[0], size_of(outputs.shape[1:])
        true = xp.astype(targets, outputs.dtype) > 0.5
        return xp.reshape(outputs > threshold, columns), xp.reshape(true, columns)
    if binary:
        raise ShapeError(
            f"{what} of outputs that say yes or no needs targets of their shape; got {outputs.shape} and "
            f"{targets.shape}"
        )
    rows, classes, actual = _classes(xp, what, outputs, targets)
    return xp.expand_dims(xp.argmax(rows, axis=1), axis=1) == classes, actual == classes


def _says_yes(outputs: Array, targets: Array, binary: bool) -> bool:
    """Whether the outputs say yes or no, and are no classes."""
    return targets.shape == outputs.shape and (binary or size_of(outputs.shape[1:]) == 1)


def _each_place(xp: Namespace, outputs: Array, right: Array) -> Array:
    """How many samples are right: a number, or one for each place where outputs (n, classes, ...) have several."""
    right = xp.astype(right, outputs.dtype)
    if outputs.ndim == 2:
        return xp.sum(right)
    return xp.sum(xp.reshape(right, (outputs.shape[0], size_of(outputs.shape[2:]))), axis=0)


def _classes(xp: Namespace, what: str, outputs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Outputs (places, classes), every class's number (classes,), and the true one of each place (places, 1)."""
    _check_floating(xp, what, outputs)
    one_less = outputs.shape[:1] + outputs.shape[2:]
    if outputs.ndim < 2 or targets.shape not in (outputs.shape, one_less):
        raise ShapeError(
            f"{what} needs outputs (n, classes) with labels (n,) or probabilities (n, classes), both perhaps with "
            f"more axes, or one output that says yes or no, (n, 1), with targets (n, 1); got {outputs.shape} "
            f"and {targets.shape}"
        )
    classes = xp.arange(outputs.shape[1], device=outputs.device)
    if targets.shape == outputs.shape:
        actual = xp.argmax(xp.astype(targets, outputs.dtype), axis=1)
    elif xp.isdtype(targets.dtype, "integral"):
        actual = xp.astype(targets, classes.dtype)
    else:
        raise DTypeError(f"{what} needs integer labels, got {targets.dtype}")
    if outputs.ndim > 2:
        classes_last = (0, *range(2, outputs.ndim), 1)
        outputs = xp.reshape(xp.permute_dims(outputs, classes_last), (size_of(one_less), outputs.shape[1]))
    return outputs, classes, xp.reshape(actual, (size_of(one_less), 1))


def _check_floating(xp: Namespace, what: str, outputs: Array) -> None:
    """Numbers of classes in the place of outputs would be compared with a threshold, without a word."""
    if not xp.isdtype(outputs.dtype, "real floating"):
        raise DTypeError(f"{what} needs a model's outputs, floating-point numbers, got {outputs.dtype}")


def _like(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """Targets in the outputs' dtype; equal shapes only, nothing is broadcast."""
    if outputs.shape != targets.shape:
        raise ShapeError(
            f"the metric needs targets of the outputs' shape, got {outputs.shape} and {targets.shape}: "
            "reshape one of them"
        )
    _check_floating(xp, "the metric", outputs)
    return xp.astype(targets, outputs.dtype)
