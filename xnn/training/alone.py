"""Keeps a trainer, an optimizer or a model from being trained by two fits at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xnn.errors import OptionError

__all__ = ["alone"]

#: For each fit that has not ended: its trainer, optimizer and model, and its thread.
_fits: list[tuple[Any, Any, Any, int]] = []
_lock = threading.Lock()


@contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """A `with` block for a fit of this trainer.

    Raises OptionError if another fit, of a callback or in another thread, uses the trainer or its optimizer, whose
    steps would be mixed up; or if one in another thread trains the model. A callback may train the fit's model by
    another trainer and optimizer: the fit goes on with the weights that this gives.
    """
    this = trainer, trainer.optimizer, trainer.model, threading.get_ident()
    with _lock:
        for other in _fits:
            same_thread = other[3] == this[3]
            parts = ("trainer", "optimizer") if same_thread else ("trainer", "optimizer", "model")
            shared = [name for name, a, b in zip(parts, this, other, strict=False) if a is b]
            if shared:
                where = "inside a callback" if same_thread else "in another thread"
                raise OptionError(
                    f"fit was called {where} while another fit with the same {shared[0]} goes on, and their steps "
                    f"would be mixed up: wait until it ends, or build another {shared[0]}"
                )
        _fits.append(this)
    try:
        yield
    finally:
        with _lock:
            _fits[:] = [fit for fit in _fits if fit is not this]
