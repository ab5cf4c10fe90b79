"""Update rules: the formula by which each optimizer changes a parameter in a step; and clipping of gradients.

A rule is given the parameter w, its gradient and the optimizer's state for it, and returns new arrays. It does not
change its arguments. All rules work element by element. Formulas and the meaning of options are PyTorch's (Lion's are
optax's), and the rules are tested against these. `weight_decay` adds the gradient of an L2 penalty,
g = gradient + weight_decay * w, except where a rule says that it is decoupled.
"""

from __future__ import annotations

from xnn.ops.op import Array, Namespace

__all__ = [
    "adadelta", "adagrad", "adam", "adamw", "clip_by_norm", "clip_by_value", "lion", "moving_average", "nadam",
    "rmsprop", "sgd",
]  # fmt: skip


def sgd(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    velocity: Array | None = None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Array, Array | None]:
    """Stochastic gradient descent; returns the new parameter and velocity.

        g = gradient + weight_decay * w
        v = momentum * v + g                     (velocity None stands for 0)
        d = g + momentum * v  if nesterov else v (g itself without momentum)
        w = w - learning_rate * d

    Source: Polyak 1964; Nesterov 1983 as rewritten by Sutskever et al., ICML 2013.
    """
    direction = _with_decay(parameter, gradient, weight_decay)
    if momentum:
        velocity = direction if velocity is None else momentum * velocity + direction
        direction = direction + momentum * velocity if nesterov else velocity
    return parameter - learning_rate * direction, velocity


def adagrad(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    total: Array,
    *,
    learning_rate: float,
    epsilon: float,
    weight_decay: float = 0.0,
) -> tuple[Array, Array]:
    """AdaGrad; returns the new parameter w and total s, the sum of squared gradients.

        g = gradient + weight_decay * w
        s = s + g^2
        w = w - learning_rate * g / (sqrt(s) + epsilon)

    Source: Duchi, Hazan and Singer, JMLR 12, 2011.
    """
    gradient = _with_decay(parameter, gradient, weight_decay)
    total = total + gradient * gradient
    return parameter - learning_rate * (gradient / (xp.sqrt(total) + epsilon)), total


def rmsprop(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    square: Array,
    *kept: Array,
    learning_rate: float,
    alpha: float,
    epsilon: float,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Array, ...]:
    """RMSProp; returns the new parameter w, square s, mean m (if centered) and velocity v (if there is momentum).

        g = gradient + weight_decay * w
        s = alpha * s + (1 - alpha) * g^2;    m = alpha * m + (1 - alpha) * g
        d = g / (sqrt(s) + epsilon),    centered: g / (sqrt(s - m^2) + epsilon)
        v = momentum * v + d
        w = w - learning_rate * v       (d itself without momentum)

    If rounding makes the variance s - m^2 negative, it counts as 0. (PyTorch's root is NaN then.)
    Source: Hinton, lecture 6e of "Neural Networks for Machine Learning", 2012; centered: Graves, 2013.
    """
    gradient = _with_decay(parameter, gradient, weight_decay)
    square = variance = _average(square, gradient * gradient, alpha)
    fresh: tuple[Array, ...] = ()
    if centered:
        mean = _average(kept[0], gradient, alpha)
        variance, fresh = xp.maximum(square - mean * mean, 0.0), (mean,)
    direction = gradient / (xp.sqrt(variance) + epsilon)
    if momentum:
        direction = momentum * kept[-1] + direction
        fresh = (*fresh, direction)
    return (parameter - learning_rate * direction, square, *fresh)


def adadelta(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    square: Array,
    step: Array,
    *,
    learning_rate: float,
    rho: float,
    epsilon: float,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """AdaDelta; returns the new parameter, square (mean square s of gradients) and step (mean square u of steps).

        g = gradient + weight_decay * w
        s = rho * s + (1 - rho) * g^2
        d = g * sqrt(u + epsilon) / sqrt(s + epsilon)
        u = rho * u + (1 - rho) * d^2
        w = w - learning_rate * d

    Source: Zeiler, arXiv 1212.5701, 2012; there the learning rate is 1.
    """
    gradient = _with_decay(parameter, gradient, weight_decay)
    square = _average(square, gradient * gradient, rho)
    direction = xp.sqrt(step + epsilon) / xp.sqrt(square + epsilon) * gradient
    step = _average(step, direction * direction, rho)
    return parameter - learning_rate * direction, square, step


def adam(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    largest: Array | None = None,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    beta1_power: float,
    beta2_power: float,
    epsilon: float,
    weight_decay: float = 0.0,
) -> tuple[Array, ...]:
    """Adam; returns the new parameter, mean, square and, if it was given, largest.

        g = gradient + weight_decay * w
        m = beta1 * m + (1 - beta1) * g;    s = beta2 * s + (1 - beta2) * g^2
        w = w - learning_rate * (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon)

    With `largest`, which makes it AMSGrad: largest = max(largest, s), and the last line takes it instead of s.
    beta1_power and beta2_power are beta1^t and beta2^t in step t = 1, 2, ... The optimizer computes them by
    multiplication, since C libraries' `pow` differ. Source: Kingma and Ba, ICLR 2015, algorithm 1;
    AMSGrad: Reddi, Kale and Kumar, ICLR 2018, with the bias corrected as in PyTorch.
    """
    gradient = _with_decay(parameter, gradient, weight_decay)
    mean, square = _average(mean, gradient, beta1), _average(square, gradient * gradient, beta2)
    kept = () if largest is None else (xp.maximum(largest, square),)
    unbiased = mean / (1.0 - beta1_power)
    scale = _scale(xp, kept[0] if kept else square, beta2_power, epsilon)
    return (parameter - learning_rate * (unbiased / scale), mean, square, *kept)


def adamw(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    *state: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    beta1_power: float,
    beta2_power: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[Array, ...]:
    """Adam with decoupled weight decay, which does not enter the mean and the square; returns the same as `adam`.

        w = w * (1 - learning_rate * weight_decay), then the step of adam without weight decay

    Source: Loshchilov and Hutter, ICLR 2019.
    """
    shrunk = parameter * (1.0 - learning_rate * weight_decay)
    return adam(
        xp, shrunk, gradient, *state, learning_rate=learning_rate, beta1=beta1, beta2=beta2,
        beta1_power=beta1_power, beta2_power=beta2_power, epsilon=epsilon,
    )  # fmt: skip


def nadam(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    mu: float,
    next_mu: float,
    mu_product: float,
    beta2_power: float,
    epsilon: float,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Nadam: Adam with Nesterov momentum; returns the new parameter, mean and square.

        g = gradient + weight_decay * w
        m = beta1 * m + (1 - beta1) * g;    s = beta2 * s + (1 - beta2) * g^2
        d = (1 - mu_t) * g / (1 - mu_1 ... mu_t) + mu_(t+1) * m / (1 - mu_1 ... mu_(t+1))
        w = w - learning_rate * d / (sqrt(s / (1 - beta2^t)) + epsilon)

    mu is mu_t, next_mu is mu_(t+1), mu_product is mu_1 ... mu_t, beta2_power is beta2^t, in step t = 1, 2, ... The
    optimizer computes them.
    Source: Dozat, ICLR workshop 2016.
    """
    gradient = _with_decay(parameter, gradient, weight_decay)
    mean, square = _average(mean, gradient, beta1), _average(square, gradient * gradient, beta2)
    now, ahead = (1.0 - mu) / (1.0 - mu_product), next_mu / (1.0 - mu_product * next_mu)
    scale = _scale(xp, square, beta2_power, epsilon)
    return parameter - learning_rate * ((now * gradient + ahead * mean) / scale), mean, square


def lion(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    mean: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    weight_decay: float = 0.0,
) -> tuple[Array, Array]:
    """Lion, whose weight decay is decoupled; returns the new parameter and mean.

        d = sign(beta1 * m + (1 - beta1) * gradient)
        m = beta2 * m + (1 - beta2) * gradient
        w = w - learning_rate * (d + weight_decay * w)

    Where d is not finite, its sign is not taken: the parameter becomes infinite or NaN, so that the fault is seen.
    Source: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
    """
    ahead = _average(mean, gradient, beta1)
    direction = xp.where(xp.isfinite(ahead), xp.sign(ahead), ahead)
    mean = _average(mean, gradient, beta2)
    return parameter - learning_rate * _with_decay(parameter, direction, weight_decay), mean


def clip_by_value(xp: Namespace, *gradients: Array, limit: float) -> tuple[Array, ...]:
    """Limit every element of the gradients to -limit .. limit. Infinity and NaN stay, so that the fault is seen."""
    return tuple(xp.where(xp.isfinite(g), xp.clip(g, -limit, limit), g) for g in gradients)


def common_norm(xp: Namespace, *arrays: Array) -> tuple[Array]:
    """The Euclidean norm of all elements of all arrays together: sqrt(sum of their squares)."""
    total = xp.sum(arrays[0] * arrays[0])
    for array in arrays[1:]:
        total = total + xp.sum(array * array)
    return (xp.sqrt(total),)


def clip_by_norm(xp: Namespace, *gradients: Array, limit: float) -> tuple[Array, ...]:
    """Multiply all gradients by one factor, so that their common norm is at most `limit`.

        factor = min(1, limit / (norm + 1e-6)),    norm = sqrt(sum of the squares of all elements)

    If the norm is not finite, all gradients become NaN, so that the fault is seen. (In PyTorch, finite elements
    become 0.) Source: Pascanu, Mikolov and Bengio, ICML 2013; the 1e-6 is PyTorch's.
    """
    (norm,) = common_norm(xp, *gradients)
    factor = xp.where(xp.isfinite(norm), xp.minimum(limit / (norm + 1e-6), 1.0), xp.nan)
    return tuple(gradient * xp.astype(factor, gradient.dtype) for gradient in gradients)


def _with_decay(parameter: Array, gradient: Array, weight_decay: float) -> Array:
    return gradient + weight_decay * parameter if weight_decay else gradient


def _average(average: Array, new: Array, rate: float) -> Array:
    """The exponential moving average after one more value."""
    return rate * average + (1.0 - rate) * new


def _scale(xp: Namespace, square: Array, beta2_power: float, epsilon: float) -> Array:
    """The divisor of Adam: the root of the unbiased mean square, plus epsilon."""
    return xp.sqrt(square / (1.0 - beta2_power)) + epsilon


def moving_average(xp: Namespace, average: Array, value: Array, *, decay: float) -> tuple[Array]:
    """Update the moving average of a parameter: average = decay * average + (1 - decay) * value.

    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992), who average without decay.
    """
    return (_average(average, value, decay),)
