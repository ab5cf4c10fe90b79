"""Losses as loops that Numba compiles. `image_loops.py` explains the loops' arguments.

A loss is two rows: its own loop writes the terms and their derivatives by the outputs, the slopes, as if each term
counted by itself; `weigh` then makes of them the loss and its gradient. The formulas are those of `xnn.ops.losses`
and `xnn.ops.cross_entropy`, where their limits are explained. The constants have the dtype of the arrays: one float64
would make the loop one of float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.compiled_loops import LANES
from xnn.backends.kernels.image_loops import integers, numbers, option, reals
from xnn.backends.kernels.intrinsics import exp_low, log_of_one_more, pointer, rounded
from xnn.backends.kernels.jit import inner
from xnn.ops.sums import PIECE, SHORT

__all__ = [
    "as_reals", "binary_cross_entropy", "cross_entropy", "divisor", "focal", "half_poisson_deviance", "hinge",
    "huber", "kl_divergence", "l1", "label_counts", "mse", "plain_cross_entropy", "weigh",
    "weighted_binary_cross_entropy",
]  # fmt: skip


@inner
def _elements(row: Any, last: Any, like: Any) -> Any:
    """Outputs, targets, terms and slopes."""
    r = numbers(row)
    return (
        reals(r[1], last, like), reals(r[2], last, like), reals(r[3], last, like), reals(r[4], last, like)
    )  # fmt: skip


@inner
def _option(row: Any, place: Any) -> Any:
    """An option, a number of float64."""
    return reals(numbers(row)[5], place + 1, np.float64(0))[place]


def mse(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """(p - t)^2."""
    p, t, terms, slopes = _elements(row, last, like)
    for i in range(last):
        difference = p[i] - t[i]
        terms[i] = difference * difference
        slopes[i] = difference + difference


def l1(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """|p - t|."""
    p, t, terms, slopes = _elements(row, last, like)
    zero = like - like
    for i in range(last):
        difference = p[i] - t[i]
        terms[i] = abs(difference)
        slopes[i] = like if difference > zero else -like if difference < zero else difference  # 0 or NaN


def huber(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """c (d - c / 2), with d = p - t and c = clip(d, -delta, delta)."""
    p, t, terms, slopes = _elements(row, last, like)
    delta, half = p.dtype.type(_option(row, 0)), p.dtype.type(0.5)
    for i in range(last):
        difference = p[i] - t[i]
        clipped = delta if difference > delta else -delta if difference < -delta else difference
        terms[i] = clipped * (difference - half * clipped)
        slopes[i] = clipped


def hinge(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """max(1 - p t, 0)."""
    p, t, terms, slopes = _elements(row, last, like)
    zero = like - like
    for i in range(last):
        short = like - p[i] * t[i]
        terms[i] = zero if short <= zero else short
        slopes[i] = zero if short <= zero else -t[i]


def binary_cross_entropy(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """max(z, 0) - z t + ln(1 + e^-|z|); of an infinite logit z the limit, 0 if the target agrees, else infinity."""
    z, t, terms, slopes = _elements(row, last, like)
    zero, infinite = like - like, z.dtype.type(np.inf)
    for i in range(last):
        size, e = abs(z[i]), exp_low(-abs(z[i]))
        near = z[i] if size != infinite else like if z[i] > zero else -like
        doubt = (near if near > zero else zero) - near * t[i]
        far = infinite if doubt > zero else doubt
        terms[i] = far if size == infinite else doubt + log_of_one_more(e)
        slopes[i] = (like if z[i] >= zero else e) / (like + e) - t[i]


def weighted_binary_cross_entropy(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """The same plus more t ln(1 + e^-z), where `more` is pos_weight - 1: one number, or one for each column."""
    z, t, terms, slopes = _elements(row, last, like)
    zero, infinite, count = like - like, z.dtype.type(np.inf), numbers(row)[6]
    weights = reals(numbers(row)[7], count, like)
    for i in range(last):
        more, size, e = weights[i % count], abs(z[i]), exp_low(-abs(z[i]))
        near = z[i] if size != infinite else like if z[i] > zero else -like
        doubt, curve = (near if near > zero else zero) - near * t[i], log_of_one_more(e)
        slope = (like if z[i] >= zero else e) / (like + e) - t[i]
        slopes[i] = slope - more * t[i] * ((e if z[i] >= zero else like) / (like + e))
        if size == infinite:
            doubt = doubt if near > zero else doubt * (more + like)
            terms[i] = infinite if doubt > zero else doubt
        else:
            terms[i] = doubt + curve + more * t[i] * ((zero if near > zero else -near) + curve)


def focal(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """a q^gamma c; the numbers are gamma, alpha - or NaN for no weights."""
    z, t, terms, slopes = _elements(row, last, like)
    real, zero, infinite = z.dtype.type, like - like, z.dtype.type(np.inf)
    gamma, alpha = real(_option(row, 0)), real(_option(row, 1))
    for i in range(last):
        size, e = abs(z[i]), exp_low(-abs(z[i]))
        p, rest = (like if z[i] >= zero else e) / (like + e), (e if z[i] > zero else like) / (like + e)
        away = p * (like - t[i]) + rest * t[i]
        near = z[i] if size != infinite else like if z[i] > zero else -like
        doubt = (near if near > zero else zero) - near * t[i]
        entropy = doubt + log_of_one_more(e)
        factor = away * away if gamma == like + like else away**gamma
        if alpha == alpha:  # not NaN
            factor *= alpha * t[i] + (like - alpha) * (like - t[i])
        whole = entropy if size != infinite else infinite if doubt > zero else doubt
        terms[i] = factor * (zero if factor == zero else whole)
        share = zero if size == infinite else entropy / (like if away == zero else away)
        slopes[i] = factor * (p - t[i] + gamma * share * (like - t[i] - t[i]) * (p * rest))


def half_poisson_deviance(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """t ln t - t z - t + e^z; t ln t is 0 where t is 0."""
    z, t, terms, slopes = _elements(row, last, like)
    zero = like - like
    for i in range(last):
        rate = math.exp(z[i])
        entropy = t[i] * math.log(t[i]) if t[i] > zero else zero
        terms[i] = entropy - t[i] * z[i] - t[i] + rate
        slopes[i] = rate - t[i]


def kl_divergence(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """t (ln t - y); 0 where t is 0. What belongs to one sample is added by `weigh`."""
    y, t, terms, slopes = _elements(row, last, like)
    zero = like - like
    for i in range(last):
        slopes[i] = -t[i]
        if t[i] == zero:
            terms[i] = zero if abs(y[i]) == np.inf else t[i] * -y[i]
        else:
            terms[i] = t[i] * (math.log(t[i]) - y[i])


def as_reals(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy `last` numbers, int64, at r[1] to r[2], in the dtype of the loss."""
    r = numbers(row)
    source, target = integers(r[1], last), reals(r[2], last, like)
    for i in range(last):
        target[i] = source[i]


def cross_entropy(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Softmax cross-entropy with its options: sum_j a_j (ln sum_k e^(z_k) - z_j), one term a row.

    r[1]: logits (last, r[6]). r[2]: labels, or probabilities if r[8] is 0. r[3]: terms. r[4]: slopes. r[5]: numbers:
    label smoothing, the label to ignore, whether there is one. r[7]: weights of the classes. r[9]: room for a row.
    """
    r = numbers(row)
    m, labels, shares = r[6], integers(r[2], last), reals(r[2], last * r[6], like)
    z, terms, slopes = reals(r[1], last * m, like), reals(r[3], last, like), reals(r[4], last * m, like)
    real, zero, weights, aims = z.dtype.type, like - like, reals(r[7], m, like), reals(r[9], m, like)
    scale, smooth = real(1.0 - _option(row, 0)), real(_option(row, 0) / m)
    for i in range(last):
        start, label, top = i * m, labels[i] if r[8] else 0, z[i * m]
        if r[8] and _option(row, 2) and label == _option(row, 1):
            terms[i] = zero
            slopes[start : start + m] = zero
            continue
        for j in range(1, m):
            if not z[start + j] <= top:  # NaN counts as the largest
                top = z[start + j]
        for j in range(m):
            slopes[start + j] = z[start + j] - top
        if top == np.inf:  # infinity minus infinity is 0 here
            for j in range(m):
                slopes[start + j] = zero if z[start + j] == top else -top
        if r[8]:
            for j in range(m):
                aims[j] = smooth * weights[j]
            if 0 <= label < m:
                aims[label] = (scale + smooth) * weights[label]
        else:
            for j in range(m):
                aims[j] = (shares[start + j] * scale + smooth) * weights[j]
        mass, picked, total = zero, zero, np.float64(0)
        for j in range(m):
            mass += aims[j]
            picked += zero if aims[j] == zero else aims[j] * slopes[start + j]
        for j in range(m):
            slopes[start + j] = exp_low(slopes[start + j])
        for j in range(m):
            total += slopes[start + j]
        whole = real(np.nan if r[8] and not 0 <= label < m else total)
        terms[i] = mass * real(np.log(whole)) - picked
        share = mass / whole
        for j in range(m):
            slopes[start + j] = slopes[start + j] * share - aims[j]


def plain_cross_entropy(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """Compute the mean softmax cross-entropy of logits and labels, and its gradient; wrong labels give NaN."""
    r = numbers(row)
    n, m = r[5], r[6]
    z, labels = carray(pointer(r[1], like), (n, m)), carray(pointer(r[2], np.int64(0)), n)
    loss, g = carray(pointer(r[3], like), 1), carray(pointer(r[4], like), (n, m))
    flat, mean = carray(pointer(r[4], like), n * m), np.float64(0)
    zero, share, columns = like - like, like / rounded(n, like), m if m <= SHORT else PIECE
    for i in range(n):
        top = z[i, 0]
        for j in range(1, m):
            if not z[i, j] <= top:  # NaN counts as the largest, as in NumPy's max
                top = z[i, j]
        for j in range(m):
            g[i, j] = z[i, j] - top
        if top == np.inf:  # its difference from itself is 0
            for j in range(m):
                g[i, j] = zero if z[i, j] == top else -top
        mean -= g[i, labels[i]] if 0 <= labels[i] < m else np.nan
    for i in range(n * m):
        flat[i] = exp_low(flat[i])
    for i in range(n):
        label, whole = labels[i], np.float64(0)
        for start in range(0, m, columns):
            part = zero
            for j in range(start, min(start + columns, m)):
                part += g[i, j]
            whole += part
        if label < 0 or label >= m:
            label, whole = 0, np.float64(np.nan)
        total = rounded(whole, like)
        mean += np.log(total)
        scale = share / total
        for j in range(m):
            g[i, j] *= scale
        g[i, label] -= share
    loss[0] = mean / n


def label_counts(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """What each label counts in the mean: the weight of its class, or 1; an ignored label 0.

    r[1]: labels. r[2]: the counts. r[3]: classes. r[4]: their weights, or 0. r[5]: as for `cross_entropy`.
    """
    r = numbers(row)
    labels, counts, weights = integers(r[1], last), reals(r[2], last, like), reals(r[4], r[3], like)
    for i in range(last):
        label = labels[i]
        kept = 0 <= label < r[3] and not (_option(row, 2) and label == _option(row, 1))
        counts[i] = (weights[label] if r[4] else like) if kept else like - like


@inner
def _total(row: Any, last: Any, like: Any) -> Any:
    """What the sum is divided by: the number at r[6], times the weights of all samples and what they count, if any.

    r[5]: the weights (last,). r[7]: what each sample counts, (last,).
    """
    r = numbers(row)
    total, sum_ = reals(r[6], 1, np.float64(0))[0], np.float64(0)
    if r[5] == 0 and r[7] == 0:
        return total
    weights, counts = reals(r[5], last, like), reals(r[7], last, like)
    for i in range(last):
        sum_ += (weights[i] if r[5] else like) * (counts[i] if r[7] else like)
    return total * sum_


def divisor(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Store what the sum is divided by."""
    reals(numbers(row)[1], 1, like)[0] = _total(row, last, like)


@inner
def _sum(terms: Any, lanes: Any) -> Any:
    """The sum of all terms, several sums side by side, for SIMD."""
    lanes[:] = 0.0
    whole = terms.size - terms.size % LANES
    for start in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += terms[start + j]
    total = np.float64(0)
    for i in range(whole, terms.size):
        total += terms[i]
    for j in range(LANES):
        total += lanes[j]
    return total


def weigh(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Make of `last` samples' terms the loss, and of their slopes its gradient: each times its weight / the divisor.

    A sample of weight 0 is left out. If the divisor is 0, so are the loss and the gradient.

    r[1]: terms. r[2]: slopes. r[3]: the loss. r[4]: slopes of a sample. r[5] to r[7]: of the
    divisor. r[8]: terms of a sample. r[9]: LANES numbers of scratch. r[10]: the weights of the samples, or 0.
    r[11]: how many times the loss counts, and its gradient, float64.
    """
    r = numbers(row)
    wide, each = r[4], r[8]
    terms, slopes = reals(r[1], last * each, like), reals(r[2], last * wide, like)
    total, zero = _total(row, last, like), like - like
    share = (zero if total == 0 else like / terms.dtype.type(total)) * option(r[11], 1, like)
    if r[10] == 0:
        for i in range(last * wide):
            slopes[i] *= share
    else:
        weights = reals(r[10], last, like)
        for i in range(last):
            weight = weights[i]
            factor = share * weight
            for j in range(wide):
                slopes[i * wide + j] = zero if weight == zero else slopes[i * wide + j] * factor
            for j in range(each):
                terms[i * each + j] = zero if weight == zero else terms[i * each + j] * weight
    sum_ = _sum(terms, reals(r[9], LANES, np.float64(0)))
    reals(r[3], 1, like)[0] = 0.0 if total == 0 else sum_ / total * option(r[11], 0, np.float64(1))
