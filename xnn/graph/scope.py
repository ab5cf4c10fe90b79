"""The state around a computation: whether ops are recorded, whether it is training, whether a program is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, Self

from xnn.backends.numerics import current_numerics, pinned
from xnn.errors import GraphError
from xnn.ops.portable import check_portable

__all__ = [
    "Scope", "assignments", "by_hand", "check_assignment", "current_scope", "last_assignment", "note_assignment",
]  # fmt: skip

#: Counts the assignments to attributes of layers and losses. A Trainer sees by it that something changed.
assignments = [0]
_numbers = count(1)
_of_thread = threading.local()

#: Attributes that xnn's own layers and losses assign in a forward pass.
_OF_A_PASS = frozenset({"_tape", "_at", "_there"})


def note_assignment() -> None:
    """Count an assignment. No two have the same number, also in threads."""
    assignments[0] = _of_thread.last = next(_numbers)


def last_assignment() -> int:
    """The number of the last assignment that this thread has made; 0 if there is none."""
    return getattr(_of_thread, "last", 0)


class Scope:
    """The state that layers and ops find while they run: `with Scope(training=True): ...`

    training: what a layer takes for `training` if it is called without.
    records: whether what ops compute is recorded, for a backward pass.
    program: whether the recording becomes a trainer's program, which is made once and run for every step. Then
        numbers may not be read, and buffers are not changed.
    guarded: whether reading a parameter's `value` raises, since its gradient would be lost.
    kept: the changes of buffers (`Layer.keep`), made at the end of the block or in each step of a program.
    """

    __slots__ = ("_pinned", "_token", "guarded", "kept", "program", "records", "training")

    def __init__(
        self, training: bool = False, records: bool = True, program: bool = False, guarded: bool = False
    ) -> None:
        self.training, self.records, self.program, self.guarded = training, records, program, guarded
        self.kept: list[Any] = []
        self._pinned = pinned()

    def __enter__(self) -> Self:
        self._pinned.__enter__()
        self._token = _scope.set(self)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        _scope.reset(self._token)
        self._pinned.__exit__()
        if kind is None and not self.program:
            for change in self.kept:
                change.apply()


_scope: ContextVar[Scope | None] = ContextVar("xnn_scope", default=None)

#: The innermost scope that is open, or None.
current_scope = _scope.get


def check_assignment(owner: object, name: str) -> None:
    """Raise GraphError for an attribute of a layer or loss that is assigned while a program is made of `compute`."""
    scope = current_scope()
    if scope is not None and scope.program and name not in _OF_A_PASS:
        raise GraphError(
            f"{type(owner).__name__}.{name} was assigned in `compute`, which a Trainer runs once and not at every "
            "step: change arrays with Layer.keep, options in a callback, or write forward and backward by hand"
        )


@contextmanager
def by_hand(method: Callable[..., Any]) -> Iterator[None]:
    """Close all scopes for the block: layers called in it keep what their `backward` needs.

    method: the forward or backward that is called in it. Raises NumericsError for one that exact numerics refuse.
    """
    if current_numerics() == "exact":
        check_portable(method, method.__qualname__, "xnn.ops")
    token = _scope.set(None)
    try:
        yield
    finally:
        _scope.reset(token)
