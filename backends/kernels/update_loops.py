"""Update rules, clipping, averages of weights and running statistics: loops of one pass, which Numba compiles.

The formulas are those of `xnn.ops.updates`. The options of a rule are float64 numbers in the order of its signature,
and change from step to step. `image_loops.py` explains the loops' arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.kernels.compiled_loops import LANES
from xnn.backends.kernels.image_loops import numbers, part_of, reals
from xnn.backends.kernels.jit import inner

__all__ = [
    "adadelta", "adagrad", "adam", "adamw", "add_squares", "clip_by_norm", "clip_by_value", "lion", "moving_average",
    "nadam", "rmsprop", "running_moments", "scale", "sgd",
]  # fmt: skip

_DOUBLE = np.float64(0)


@inner
def _arrays(row: Any, first: Any, last: Any, like: Any) -> Any:
    """Parameters, gradients and two arrays of the state, which may be missing; then the options, at most ten."""
    r = numbers(row)
    return (
        part_of(r[1], first, last, like), part_of(r[2], first, last, like), part_of(r[3], first, last, like),
        part_of(r[4], first, last, like), reals(r[6], 10, _DOUBLE),
    )  # fmt: skip


@inner
def _third(row: Any, first: Any, last: Any, like: Any) -> Any:
    """The third array of the state."""
    return part_of(numbers(row)[5], first, last, like)


def sgd(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Options: learning_rate, momentum, nesterov, weight_decay. State: the velocity, or nothing without momentum."""
    w, g, v, _, o = _arrays(row, first, last, like)
    real = w.dtype.type
    rate, momentum, nesterov, decay = real(o[0]), real(o[1]), real(o[2]), real(o[3])
    if numbers(row)[3] == 0:
        for i in range(w.size):
            w[i] -= rate * (g[i] + decay * w[i])
        return
    ahead = like - nesterov + nesterov * momentum  # an `if` in the loop would not vectorize
    for i in range(w.size):
        d = g[i] + decay * w[i]
        v[i] = momentum * v[i] + d
        w[i] -= rate * (nesterov * d + ahead * v[i])


def adagrad(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """s <- s + g^2; w <- w - rate g / (sqrt(s) + epsilon)."""
    w, g, total, _, o = _arrays(row, first, last, like)
    real = w.dtype.type
    rate, epsilon, decay = real(o[0]), real(o[1]), real(o[2])
    for i in range(w.size):
        d = g[i] + decay * w[i]
        total[i] += d * d
        w[i] -= rate * (d / (np.sqrt(total[i]) + epsilon))


def rmsprop(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Options: learning_rate, alpha, epsilon, momentum, centered, weight_decay. State: square, mean, velocity.

    Without a mean, the velocity is in its place. Each loop reads only arrays that are there, so that it vectorizes.
    """
    w, g, square, second, o = _arrays(row, first, last, like)
    real, zero, velocity = w.dtype.type, like - like, _third(row, first, last, like)
    rate, alpha, epsilon, momentum, decay = real(o[0]), real(o[1]), real(o[2]), real(o[3]), real(o[5])
    beta = real(1.0 - o[1])
    if o[4]:
        for i in range(w.size):
            d = g[i] + decay * w[i]
            square[i] = alpha * square[i] + beta * (d * d)
            second[i] = alpha * second[i] + beta * d
            variance = square[i] - second[i] * second[i]
            d = d / (np.sqrt(zero if variance < zero else variance) + epsilon)
            if momentum:
                d = velocity[i] = momentum * velocity[i] + d
            w[i] -= rate * d
    elif momentum:
        for i in range(w.size):
            d = g[i] + decay * w[i]
            square[i] = alpha * square[i] + beta * (d * d)
            second[i] = momentum * second[i] + d / (np.sqrt(square[i]) + epsilon)
            w[i] -= rate * second[i]
    else:
        for i in range(w.size):
            d = g[i] + decay * w[i]
            square[i] = alpha * square[i] + beta * (d * d)
            w[i] -= rate * (d / (np.sqrt(square[i]) + epsilon))


def adadelta(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Options: learning_rate, rho, epsilon, weight_decay. State: square, step."""
    w, g, square, step, o = _arrays(row, first, last, like)
    real = w.dtype.type
    rate, rho, epsilon, decay, rest = real(o[0]), real(o[1]), real(o[2]), real(o[3]), real(1.0 - o[1])
    for i in range(w.size):
        d = g[i] + decay * w[i]
        square[i] = rho * square[i] + rest * (d * d)
        d = np.sqrt(step[i] + epsilon) / np.sqrt(square[i] + epsilon) * d
        step[i] = rho * step[i] + rest * (d * d)
        w[i] -= rate * d


@inner
def _adam(row: Any, first: Any, last: Any, coupled: Any, rest: Any, like: Any) -> None:
    """Adam for g + coupled w and rest w, in place of g and w. State: mean, square, perhaps the largest square."""
    w, g, mean, square, o = _arrays(row, first, last, like)
    real, largest = w.dtype.type, _third(row, first, last, like)
    decay, shrink = real(coupled), real(rest)
    b1, b2, c1, c2 = real(o[1]), real(o[2]), real(1.0 - o[1]), real(1.0 - o[2])
    step, unbias, epsilon = real(o[0] / (1.0 - o[3])), real(1.0 / np.sqrt(1.0 - o[4])), real(o[5])
    # One division and one root for each weight: the bias corrections are computed once, before the loop.
    if numbers(row)[5] == 0:
        for i in range(w.size):
            d = g[i] + decay * w[i]
            mean[i] = b1 * mean[i] + c1 * d
            square[i] = b2 * square[i] + c2 * (d * d)
            w[i] = w[i] * shrink - step * mean[i] / (np.sqrt(square[i]) * unbias + epsilon)
        return
    for i in range(w.size):
        d = g[i] + decay * w[i]
        mean[i] = b1 * mean[i] + c1 * d
        square[i] = b2 * square[i] + c2 * (d * d)
        largest[i] = square[i] if not square[i] <= largest[i] else largest[i]  # NaN is the largest
        w[i] = w[i] * shrink - step * mean[i] / (np.sqrt(largest[i]) * unbias + epsilon)


def adam(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Adam, with the gradient of an L2 penalty."""
    o = reals(numbers(row)[6], 7, _DOUBLE)
    _adam(row, first, last, o[6], 1.0, like)


def adamw(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Adam with decoupled weight decay: first w <- w (1 - learning_rate weight_decay)."""
    o = reals(numbers(row)[6], 7, _DOUBLE)
    _adam(row, first, last, 0.0, 1.0 - o[0] * o[6], like)


def nadam(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Options: learning_rate, beta1, beta2, mu, next_mu, mu_product, beta2_power, epsilon, weight_decay."""
    w, g, mean, square, o = _arrays(row, first, last, like)
    real = w.dtype.type
    b1, b2, c1, c2 = real(o[1]), real(o[2]), real(1.0 - o[1]), real(1.0 - o[2])
    now, ahead = real((1.0 - o[3]) / (1.0 - o[5])), real(o[4] / (1.0 - o[5] * o[4]))
    rate, unbias, epsilon, decay = real(o[0]), real(1.0 / np.sqrt(1.0 - o[6])), real(o[7]), real(o[8])
    for i in range(w.size):
        d = g[i] + decay * w[i]
        mean[i] = b1 * mean[i] + c1 * d
        square[i] = b2 * square[i] + c2 * (d * d)
        w[i] -= rate * ((now * d + ahead * mean[i]) / (np.sqrt(square[i]) * unbias + epsilon))


def lion(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Options: learning_rate, beta1, beta2, weight_decay. State: mean. What is not finite has no sign."""
    w, g, mean, _, o = _arrays(row, first, last, like)
    real, zero = w.dtype.type, like - like
    rate, b1, c1, b2, c2, decay = (
        real(o[0]), real(o[1]), real(1.0 - o[1]), real(o[2]), real(1.0 - o[2]), real(o[3])
    )  # fmt: skip
    for i in range(w.size):
        ahead = b1 * mean[i] + c1 * g[i]
        sign = like if ahead > zero else -like if ahead < zero else ahead  # 0 or NaN
        sign = ahead if abs(ahead) == np.inf else sign
        mean[i] = b2 * mean[i] + c2 * g[i]
        w[i] -= rate * (sign + decay * w[i])


def moving_average(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """r[1] <- decay r[1] + (1 - decay) r[2]; the decay is the number at r[6]."""
    average, value, _, _, o = _arrays(row, first, last, like)
    decay, rest = average.dtype.type(o[0]), average.dtype.type(1.0 - o[0])
    for i in range(average.size):
        average[i] = decay * average[i] + rest * value[i]


def running_moments(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Update the means at r[1] and the variances at r[2] by the moments of a batch at r[3], perhaps scaled.

    r[4]: whether they are. The numbers at r[6] are the shares of the old, of the new means, of the new variances. An
    old value stays where the share of the new one is 0.
    """
    r, o = numbers(row), reals(numbers(row)[6], 3, _DOUBLE)
    means, variances, found = reals(r[1], last, like), reals(r[2], last, like), reals(r[3], 3 * last, like)
    old, of_mean, of_variance = means.dtype.type(o[0]), means.dtype.type(o[1]), means.dtype.type(o[2])
    if o[1] != 0:
        for i in range(last):
            means[i] = old * means[i] + of_mean * found[i]
    if o[2] != 0:
        for i in range(last):
            scale = found[2 * last + i] if r[4] else like
            variances[i] = old * variances[i] + of_variance * (found[last + i] / scale / scale)


def clip_by_value(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Limit each number at r[1] to the limit at r[6]. Infinities and NaN stay."""
    g, _, _, _, o = _arrays(row, first, last, like)
    limit, infinite = g.dtype.type(o[0]), g.dtype.type(np.inf)
    for i in range(g.size):
        size = limit if limit < abs(g[i]) and abs(g[i]) < infinite else abs(g[i])
        g[i] = np.copysign(size, g[i])


def add_squares(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Add the squares of the numbers at r[1] to the LANES sums of float64 at r[6]."""
    g, lanes = reals(numbers(row)[1], last, like), reals(numbers(row)[6], LANES, _DOUBLE)
    whole = last - last % LANES
    for start in range(0, whole, LANES):
        for j in range(LANES):
            value = np.float64(g[start + j])
            lanes[j] += value * value
    for i in range(whole, last):
        value = np.float64(g[i])
        lanes[0] += value * value


def clip_by_norm(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Make of the sums at r[6] the factor at r[7] by which gradients are multiplied, with the limit at r[5]."""
    r = numbers(row)
    lanes, total = reals(r[6], LANES, _DOUBLE), np.float64(0)
    for j in range(LANES):
        total += lanes[j]
    lanes[:] = 0.0
    norm, limit = np.sqrt(total), reals(r[5], 1, _DOUBLE)[0]
    factor = reals(r[7], 1, _DOUBLE)
    factor[0] = min(limit / (norm + 1e-6), 1.0) if norm < np.inf else np.nan


def scale(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Multiply the numbers at r[1] by the number at r[7]."""
    g = part_of(numbers(row)[1], first, last, like)
    factor = g.dtype.type(reals(numbers(row)[7], 1, _DOUBLE)[0])
    for i in range(g.size):
        g[i] *= factor
