"""Which numerics: argument > `with` block > `use_numerics` > XNN_NUMERICS > fast, read when first needed.

fast is the hardware's own float32. exact gives the same bits on every machine: see `xnn.backends.exact`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from xnn.errors import GraphError, OptionError

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
    """How arithmetic is done now: `asked` if given, else as this file's first line says."""
    if asked is not None:
        return _checked(asked, "numerics")
    chosen = _in_context.get() or _process_wide
    if chosen is not None:
        return chosen
    variable = os.environ.get("XNN_NUMERICS")
    return "fast" if variable is None else _checked(variable.strip() or "fast", "XNN_NUMERICS")


def chosen_numerics() -> str | None:
    """The numerics that a block, the process or the environment asks for; None if nobody does."""
    if _in_context.get() or _process_wide or os.environ.get("XNN_NUMERICS", "").strip():
        return current_numerics()
    return None


def use_numerics(name: str | None) -> None:
    """Choose the numerics for the whole process; None goes back to XNN_NUMERICS or fast.

    exact checks the machine when it is first used on a backend, and refuses one that it cannot trust.
    """
    global _process_wide
    _process_wide = None if name is None else _checked(name, "use_numerics")


@contextmanager
def numerics(name: str | None) -> Iterator[str]:
    """Choose the numerics for a `with` block, in this thread or task alone; None leaves them as they are."""
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
    """Raise GraphError in other numerics than those that the forward pass ran in."""
    if forward != current_numerics():
        raise GraphError(
            f"{who}'s forward ran in {forward} numerics and its backward in {current_numerics()}: keep both inside "
            "one `with xnn.numerics(...)`"
        )


def _checked(name: str, source: str) -> str:
    if name not in NUMERICS:
        raise OptionError(
            f"{source}={name!r} is not known; choose fast (the hardware's float32) or exact (the same "
            "bits everywhere)"
        )
    return name
