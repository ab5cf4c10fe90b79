"""The search of an optimizer such as LBFGS by several ranks: rank 0 searches, and all compute loss and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.ranks.group import Ranks

__all__ = ["search"]


def search(
    ranks: Ranks | None,
    optimizer: Any,
    function: Callable[[np.ndarray], Any],
    start: np.ndarray,
    iterations: int,
    after_each: Callable[[np.ndarray], None],
) -> None:
    """Call optimizer.minimize(function, start, iterations, after_each), on rank 0.

    Before it calls `function` or `after_each`, rank 0 tells the others, which call it with the same numbers. What
    these raise, they raise on all ranks.
    """
    if ranks is None:
        optimizer.minimize(function, start, iterations, after_each)
        return
    if ranks.rank:
        _follow(ranks, {"function": function, "after_each": after_each})
        return

    def told(name: str, call: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
        def run(x: np.ndarray) -> Any:
            ranks.of_first((name, x))
            return call(x)

        return run

    optimizer.minimize(told("function", function), start, iterations, told("after_each", after_each))
    ranks.of_first(("end", None))


def _follow(ranks: Ranks, calls: dict[str, Callable[[np.ndarray], Any]]) -> None:
    """Do what rank 0 says until it has found the minimum."""
    while True:
        name, x = ranks.of_first(None)
        if name == "end":
            return
        try:
            calls[name](x)
        except StopIteration:  # rank 0 ends its search for the same reason
            continue
