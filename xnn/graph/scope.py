"""What surrounds a computation: whether it is recorded, whether it trains, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Scope", "assignments", "current_scope", "entered"]

#: How often an attribute of any layer or loss was assigned, by which a Trainer sees that something changed.
assignments = [0]


@dataclass
class Scope:
    """What the layers and ops that are called now are part of.

    training: what a layer called without `training` takes for it. records: whether ops on parameters are recorded.
    program: whether the record becomes a trainer's program, which is made once and run for every step: then
    nothing may look at values, and nothing that training counts is changed. guarded: whether reading a parameter's
    `value` raises, since its gradient would be lost. kept: what a program's steps do to buffers.
    """

    training: bool = False
    records: bool = True
    program: bool = False
    guarded: bool = False
    kept: list[Any] = field(default_factory=list)


_ScopeOrNone = TypeVar("_ScopeOrNone", Scope, None)
_scope: ContextVar[Scope | None] = ContextVar("xnn_scope", default=None)


def current_scope() -> Scope | None:
    """The innermost scope that is open, or None."""
    return _scope.get()


@contextmanager
def entered(scope: _ScopeOrNone) -> Iterator[_ScopeOrNone]:
    """Open a scope for the block. None closes them all for the block: layers called in it run by hand."""
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)
