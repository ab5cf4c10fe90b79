"""Updates over a group's flat buffers by the rule itself, block by block: for every rule without a kernel of its own.

All of `xnn.ops.updates` work element by element, so that it does not matter where a parameter ends. A rule of the
user's may not, and gets its parameters one by one from `xnn.backends.kernels.calls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.ops import updates
from xnn.ops.apply import apply_rule

__all__ = ["RULES", "update_by_rule", "update_run"]

#: Those that have no faster kernel.
RULES = updates.adadelta, updates.adagrad, updates.adamw, updates.lion, updates.nadam, updates.rmsprop

_BLOCK = 16384  # elements: what a rule makes on its way stays in the cache


def update_run(xp: Any, rule: Callable[..., Any], group: Any, arrays: tuple[np.ndarray, ...]) -> Runnable:
    """The update of one stretch in place: parameters, gradients, and each array of the state."""
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
    """A kernel for any of RULES, in this namespace."""

    def bind(call: Call) -> Runnable:
        runs = [update_run(xp, call.op, call.rule, arrays) for arrays in call.rule.runs(call)]

        def run() -> None:
            for step in runs:
                step()

        return run

    return bind
