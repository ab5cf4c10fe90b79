"""Choosing the numerics: how floating-point arithmetic is done.

"fast" is the hardware's float32 arithmetic. "exact" gives the same bits on every machine (`docs/numerics.md`).
The first of these that is set counts: an argument, a `with numerics(...)` block, `use_numerics`, the environment
variable XNN_NUMERICS; the default is "fast". The variable is read when it is needed, not at import.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from xnn.errors import GraphError, OptionError
from xnn.options import shown

__all__ = [
    "NUMERICS",
    "check_same_numerics",
    "chosen_numerics",
    "current_numerics",
    "numerics",
    "use_numerics",
]

NUMERICS = ("fast", "exact")

_process_wide: str | None = None
_in_context: ContextVar[str | None] = ContextVar("xnn_numerics", default=None)


def current_numerics(asked: str | None = None) -> str:
    """Return "fast" or "exact": `asked` if it is given, else the numerics in force.

    Raises OptionError for any other name, also in XNN_NUMERICS.
    """
    if asked is not None:
        return _checked(asked, "numerics")
    chosen = _in_context.get() or _process_wide
    if chosen is not None:
        return chosen
    variable = os.environ.get("XNN_NUMERICS")
    return "fast" if variable is None else _checked(variable.strip() or "fast", "XNN_NUMERICS")


def chosen_numerics() -> str | None:
    """Return the numerics that a `with` block, `use_numerics` or XNN_NUMERICS sets, or None if none of them does."""
    if _in_context.get() or _process_wide or os.environ.get("XNN_NUMERICS", "").strip():
        return current_numerics()
    return None


def use_numerics(name: str | None) -> None:
    """Choose the numerics for the whole process.

    name: "fast" (the hardware's float32), "exact" (the same bits on every machine), or None to go back to
        XNN_NUMERICS, or "fast" if it is not set.

    Raises OptionError for any other name. Exact numerics check each backend when it is first used, and raise
    NumericsError there if its arithmetic does not meet their conditions.

    >>> import xnn
    >>> xnn.use_numerics("exact")
    >>> xnn.backends.current_numerics()
    'exact'
    >>> xnn.use_numerics(None)
    """
    global _process_wide
    _process_wide = None if name is None else _checked(name, "use_numerics")


@contextmanager
def numerics(name: str | None) -> Iterator[str]:
    """Choose the numerics for a `with` block, in this thread or task only. The block's value is the name in force.

    name: "fast", "exact", or None to change nothing.

    Raises OptionError for any other name.

    >>> import numpy as np, xnn
    >>> x = np.asarray([1e8, 1.0, -1e8], dtype="float32")
    >>> with xnn.numerics("exact") as name:
    ...     print(name, xnn.ops.sum(x))
    exact 1.0
    """
    if name is None:
        yield current_numerics()
        return
    token = _in_context.set(current_numerics(name))
    try:
        yield current_numerics()
    finally:
        _in_context.reset(token)


class pinned:  # noqa: N801 - a context manager, as `numerics` is
    """Look the numerics up once for a `with` block, in which `current_numerics` then costs next to nothing."""

    def __enter__(self) -> None:
        self._token = _in_context.set(current_numerics())

    def __exit__(self, *error: object) -> None:
        _in_context.reset(self._token)


def check_same_numerics(who: str, forward: str) -> None:
    """Raise GraphError if a backward pass runs in other numerics than its forward pass did.

    who: what the message calls the layer or op. forward: the numerics of its forward pass.
    """
    if forward != current_numerics():
        raise GraphError(
            f"{who}'s forward ran in {forward} numerics and its backward in {current_numerics()}: keep both inside "
            "one `with xnn.numerics(...)` block"
        )


def _checked(name: str, source: str) -> str:
    if name not in NUMERICS:
        raise OptionError(
            f"{source}={shown(name)} is not a kind of numerics: choose fast (the hardware's float32) or exact (the "
            "same bits on every machine)"
        )
    return name
