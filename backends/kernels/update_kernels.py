"""Kernels of the optimizers' rules in NumPy, over flat buffers: SGD, Adam, and any other rule of `xnn.ops.updates`.

A group's parameters lie side by side in one buffer. The rules of `xnn.ops.updates` work element by element, so a
rule without a kernel of its own is applied block by block, and a block may hold parts of several parameters. A user's
rule may need whole parameters: it has no kernel, and `xnn.backends.kernels.binding` gives it one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable, chain
from xnn.ops import updates
from xnn.ops.apply import apply_rule

__all__ = ["RULES", "adam", "serves_adam", "serves_update", "sgd", "update_by_rule", "update_stretch"]

#: The rules that have no faster kernel.
RULES = updates.adadelta, updates.adagrad, updates.adamw, updates.lion, updates.nadam, updates.rmsprop

_BLOCK = 16384  # elements: the intermediate results of a rule then stay in the processor's cache


def serves_update(call: Call) -> bool:
    """Whether the group's parameters may be changed in place, in their buffers."""
    return bool(call.rule.in_place)


def serves_adam(call: Call) -> bool:
    """Whether the state is Adam's mean and square only (AMSGrad keeps more)."""
    return serves_update(call) and call.rule.width == 4


def sgd(call: Call) -> Runnable:
    """Take a step of SGD in place: v <- momentum v + g, w <- w - learning_rate * direction. g is not changed."""
    group = call.rule
    return chain(*(_sgd_stretch(group, *arrays) for arrays in group.stretches(call)))


def _sgd_stretch(group: Any, w: np.ndarray, g: np.ndarray, v: np.ndarray | None = None) -> Runnable:
    scratch, decayed = np.empty_like(w), np.empty_like(w)

    def run() -> None:
        o, direction = group.options, g
        rate, momentum, decay = o["learning_rate"], o["momentum"], o["weight_decay"]
        if decay:
            direction = np.add(g, np.multiply(w, decay, out=decayed), out=decayed)
        if v is not None:
            np.add(np.multiply(v, momentum, out=v), direction, out=v)
            ahead = np.multiply(v, momentum, out=scratch)
            direction = np.add(direction, ahead, out=scratch) if o["nesterov"] else v
        np.subtract(w, np.multiply(direction, rate, out=scratch), out=w)

    return run


def adam(call: Call) -> Runnable:
    """Adam's formula, one array operation after the other, in place."""
    group = call.rule
    return chain(*(_adam_stretch(group, *arrays) for arrays in group.stretches(call)))


def _adam_stretch(group: Any, w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray) -> Runnable:
    scratch, scale = np.empty_like(w), np.empty_like(w)

    def run() -> None:
        o, gradient = group.options, g
        if o["weight_decay"]:
            gradient = np.add(g, np.multiply(w, o["weight_decay"], out=scale), out=scale)
        np.multiply(gradient, 1.0 - o["beta1"], out=scratch)
        np.add(np.multiply(mean, o["beta1"], out=mean), scratch, out=mean)
        np.multiply(np.multiply(gradient, gradient, out=scratch), 1.0 - o["beta2"], out=scratch)
        np.add(np.multiply(square, o["beta2"], out=square), scratch, out=square)
        np.sqrt(np.divide(square, 1.0 - o["beta2_power"], out=scale), out=scale)
        np.add(scale, o["epsilon"], out=scale)
        np.divide(mean, 1.0 - o["beta1_power"], out=scratch)
        np.multiply(np.divide(scratch, scale, out=scratch), o["learning_rate"], out=scratch)
        np.subtract(w, scratch, out=w)

    return run


def update_stretch(xp: Any, rule: Callable[..., Any], group: Any, arrays: tuple[np.ndarray, ...]) -> Runnable:
    """Return a function that updates one stretch of memory in place.

    arrays: flat arrays of one length: parameters, gradients, and each array of the rule's state.
    """
    starts = range(0, arrays[0].size, _BLOCK)
    parts = [tuple(array[start : start + _BLOCK] for array in arrays) for start in starts]

    def run() -> None:
        options = group.options
        for part in parts:
            fresh = apply_rule(rule, xp, part, options)
            for array, new in zip((part[0], *part[2:]), fresh, strict=False):
                np.copyto(array, new)

    return run


def update_by_rule(xp: Any) -> Callable[[Call], Runnable]:
    """Return the kernel for any of RULES, computed in the namespace `xp`."""

    def bind(call: Call) -> Runnable:
        steps = [update_stretch(xp, call.op, call.rule, arrays) for arrays in call.rule.stretches(call)]

        def run() -> None:
            for step in steps:
                step()

        return run

    return bind
