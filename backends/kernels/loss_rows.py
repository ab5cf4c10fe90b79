"""Compiled kernels of losses and of the divisors of their means: each call becomes rows for `loss_loops.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import loss_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.compiled_loops import LANES
from xnn.backends.kernels.rows import Rows, Writer
from xnn.ops.deviances import OF_SCIKIT_LEARN

__all__ = ["LOSS_ROWS"]

#: The losses whose terms belong to one output and one target, with their options and the defaults.
_DISTANCES: dict[Any, tuple[Any, dict[str, Any]]] = {
    ops.mse: (loops.mse, {}),
    ops.l1: (loops.l1, {}),
    ops.huber: (loops.huber, {"delta": 1.0}),
    ops.hinge: (loops.hinge, {}),
    ops.binary_cross_entropy: (loops.binary_cross_entropy, {"pos_weight": None}),
    ops.focal: (loops.focal, {"gamma": 2.0, "alpha": 0.25}),
    ops.kl_divergence: (loops.kl_divergence, {}),
    OF_SCIKIT_LEARN["squared_error"]: (loops.mse, {}),
    OF_SCIKIT_LEARN["poisson"]: (loops.half_poisson_deviance, {}),
    OF_SCIKIT_LEARN["log_loss"]: (loops.binary_cross_entropy, {}),
}
#: For multiples of what their loop computes, for k outputs: how many times the loss counts, and its gradient.
_FACTORS: dict[Any, Callable[[int], tuple[float, float]]] = {
    OF_SCIKIT_LEARN["squared_error"]: lambda k: (0.5, 0.5 * k),
    OF_SCIKIT_LEARN["poisson"]: lambda k: (k, k),
    OF_SCIKIT_LEARN["log_loss"]: lambda k: (k, k),
}
_OF_CLASSES = {"label_smoothing", "class_weight", "ignore_index"}


def _serves(call: Call, options: set[str]) -> bool:
    """Whether outputs and weights have one dtype, float32 or float64, and the loss becomes one number."""
    outputs, _, *weights = call.reads
    alike = all(w.dtype == outputs.dtype and w.shape == outputs.shape[:1] for w in weights)
    real = np.dtype(outputs.dtype) in (np.float32, np.float64) and bool(outputs.shape)
    return (
        real
        and alike
        and set(call.options) <= options | {"reduction"}
        and call.options.get("reduction") != "none"
    )


def _serves_distance(call: Call) -> bool:
    outputs, targets = call.reads[:2]
    _, options = _DISTANCES[call.op]
    positive = call.options.get("pos_weight")
    shape = () if positive is None or isinstance(positive, (int, float)) else np.shape(positive)
    alike = targets.shape == outputs.shape and targets.dtype == outputs.dtype
    enough = len(outputs.shape) > 1 or not (call.op.over_classes or call.op in _FACTORS)
    return _serves(call, {*options}) and alike and enough and shape in ((), outputs.shape[-1:])


def _serves_classes(call: Call) -> bool:
    """Whether there are logits (n, classes), and int64 labels (n,) or probabilities, which may be int64 too."""
    z, targets = call.reads[:2]
    labels = targets.shape == z.shape[:1] and targets.dtype == np.int64
    given = targets.shape == z.shape and targets.dtype in (z.dtype, np.int64)
    shares = given and call.options.get("ignore_index") is None
    weights = call.options.get("class_weight")
    fits = weights is None or np.shape(weights) == z.shape[1:]
    return _serves(call, _OF_CLASSES) and len(z.shape) == 2 and z.shape[1] > 0 and (labels or shares) and fits


def _numbers_of_classes(call: Call, dtype: Any) -> tuple[np.ndarray, Any]:
    """Label smoothing, the label to ignore and whether there is one; the weights of the classes, or None."""
    ignored, weights = call.options.get("ignore_index"), call.options.get("class_weight")
    numbers = np.asarray(
        [call.options.get("label_smoothing") or 0.0, ignored or 0, ignored is not None], float
    )
    return numbers, None if weights is None else np.ascontiguousarray(weights, dtype)


def _divisor(call: Call, out: Writer) -> tuple[Any, np.ndarray, Any]:
    """The three columns that say what the sum of the terms is divided by: see `loss_loops.divisor`."""
    outputs, targets, *weights = (slot.array for slot in call.reads)
    n, *others = outputs.shape
    width, reduction = math.prod(others[call.op.over_classes :]), call.options.get("reduction", "mean")
    if reduction == "sum_over_batch_size" or (reduction == "sum" and call.kind == "loss"):
        return None, np.asarray([float(n * width) if reduction != "sum" else 1.0]), None
    counts = None
    labels = targets.dtype == np.int64 and targets.ndim == 1
    if labels and not {"class_weight", "ignore_index"}.isdisjoint(call.options):
        counts, (numbers, of_classes) = np.empty(n, outputs.dtype), _numbers_of_classes(call, outputs.dtype)
        out.loop(loops.label_counts, n, targets, counts, outputs.shape[1], of_classes, numbers)
    plain = counts is None and not weights
    return weights[0] if weights else None, np.asarray([float(n * width if plain else width)]), counts


def _total(call: Call) -> Rows:
    out = Writer(call.reads[0].dtype)
    columns = _divisor(call, out)
    out.loop(loops.divisor, len(call.reads[0].array), call.writes[0].array, None, None, None, *columns)  # type: ignore[union-attr]
    return out.made


def _weighed(call: Call, out: Writer, terms: np.ndarray) -> Rows:
    """Add the rows that make of terms and slopes the loss and its gradient."""
    columns, weights = _divisor(call, out), call.reads[2].array if len(call.reads) > 2 else None
    n, (loss, g) = len(call.reads[0].array), (slot.array for slot in call.writes)  # type: ignore[union-attr]
    wide, each = (array.size // max(1, n) for array in (g, terms))
    factors = np.asarray(_FACTORS[call.op](g.shape[1]) if call.op in _FACTORS else (1.0, 1.0), float)
    out.loop(loops.weigh, n, terms, g, loss, wide, *columns, each, np.empty(LANES), weights, factors)
    return out.made


def _distance(call: Call) -> Rows:
    p, t, g = call.reads[0].array, call.reads[1].array, call.writes[1].array  # type: ignore[union-attr]
    out, terms = Writer(p.dtype), np.empty(p.size, p.dtype)
    loop, options = _DISTANCES[call.op]
    given = [call.options.get(name, default) for name, default in options.items()]
    if call.op is ops.binary_cross_entropy:
        if given[0] is not None:
            more = np.ravel(np.asarray(given[0], p.dtype) - p.dtype.type(1))
            out.loop(loops.weighted_binary_cross_entropy, p.size, p, t, terms, g, None, more.size, more)
            return _weighed(call, out, terms)
        given = []
    out.loop(loop, p.size, p, t, terms, g, np.asarray(given, float))  # None becomes NaN
    return _weighed(call, out, terms)


def _classes(call: Call) -> Rows:
    z, targets, g = call.reads[0].array, call.reads[1].array, call.writes[1].array  # type: ignore[union-attr]
    out, terms = Writer(z.dtype), np.empty(len(z), z.dtype)
    if targets.dtype == np.int64 and targets.shape == z.shape:
        whole, targets = targets, np.empty_like(z)
        out.loop(loops.as_reals, z.size, whole, targets)
    numbers, weights = _numbers_of_classes(call, z.dtype)
    labels = targets.dtype == np.int64
    weights = np.ones(z.shape[1], z.dtype) if weights is None else weights
    columns = z.shape[1], weights, labels, np.empty_like(weights)
    out.loop(loops.cross_entropy, len(z), z, targets, terms, g, numbers, *columns)
    return _weighed(call, out, terms)


LOSS_ROWS = {
    **{("loss", op): (_distance, _serves_distance) for op in _DISTANCES},
    **{("total", op): (_total, _serves_distance) for op in _DISTANCES},
    ("loss", ops.softmax_cross_entropy): (_classes, _serves_classes),
    ("total", ops.softmax_cross_entropy): (_total, _serves_classes),
}
