"""Update rules: how one step changes a parameter, given its gradient and the optimizer's state.

Each returns fresh arrays and leaves what it was given alone. The formulas, and what `momentum`,
`weight_decay` and the rest mean, are PyTorch's, against which they are tested.
"""

from __future__ import annotations

from xnn.ops.op import Array, Namespace

__all__ = ["adam", "sgd"]


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
        v = momentum * v + g                     (v = None is v = 0)
        d = g + momentum * v  if nesterov else v (g itself without momentum)
        w = w - learning_rate * d

    Source: Polyak 1964; Nesterov 1983 as rewritten by Sutskever et al., ICML 2013.
    """
    direction = gradient
    if weight_decay:
        direction = direction + weight_decay * parameter
    if momentum:
        velocity = direction if velocity is None else momentum * velocity + direction
        direction = direction + momentum * velocity if nesterov else velocity
    return parameter - learning_rate * direction, velocity


def adam(
    xp: Namespace,
    parameter: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    beta1_power: float,
    beta2_power: float,
    epsilon: float,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Adam; returns the new parameter, mean and square.

        g = gradient + weight_decay * w
        m = beta1 * m + (1 - beta1) * g;    s = beta2 * s + (1 - beta2) * g^2
        w = w - learning_rate * (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon)

    beta1_power and beta2_power are beta1^t and beta2^t, t counted from 1, kept by the optimizer as
    running products (C libraries disagree on `pow`). Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """
    if weight_decay:
        gradient = gradient + weight_decay * parameter
    mean = beta1 * mean + (1.0 - beta1) * gradient
    square = beta2 * square + (1.0 - beta2) * (gradient * gradient)
    unbiased = mean / (1.0 - beta1_power)
    scale = xp.sqrt(square / (1.0 - beta2_power)) + epsilon
    return parameter - learning_rate * (unbiased / scale), mean, square
