"""Kernels of the optimizer rules that have no faster one: the rule itself, applied block by block to flat buffers.

A group's parameters lie side by side in one buffer. The rules of `xnn.ops.updates` work element by element, so a
block may hold parts of several parameters. A user's rule may need whole parameters: it has no kernel, and
`xnn.backends.kernels.calls` gives it one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.ops import updates
from xnn.ops.apply import apply_rule

__all__ = ["RULES", "update_by_rule", "update_stretch"]

#: The rules that have no faster kernel.
RULES = updates.adadelta, updates.adagrad, updates.adamw, updates.lion, updates.nadam, updates.rmsprop

_BLOCK = 16384  # elements: the intermediate results of a rule then stay in the processor's cache


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
