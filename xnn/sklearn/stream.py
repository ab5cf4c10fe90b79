"""partial_fit on one part of a stream after the other: the Trainer and its programs stay for parts of one size."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends import current_backend, current_numerics
from xnn.layers import Sequential
from xnn.training import Trainer

__all__ = ["Prepared", "is_small", "is_stream"]

#: Samples of more bytes than this are not copied: the steps on them take much longer than preparing a fit again.
_MOST_BYTES = 2**22


def is_small(X: Any) -> bool:
    """Whether samples are an array on the host that may be copied."""
    return isinstance(X, np.ndarray) and X.nbytes <= _MOST_BYTES


def is_stream(e: Any, model: Sequential, X: Any) -> bool:
    """Whether the Trainer of this partial_fit is kept for the next: if nothing in it is the user's to change."""
    alone = not e.callbacks and all(isinstance(part, (str, type(None))) for part in (e.optimizer, e.schedule))
    return alone and is_small(X) and model.backend.is_host and e.threads != "auto"


class Prepared:
    """A Trainer with its programs, for the next partial_fit of an estimator.

    It keeps a copy of the last samples, and none of the user's arrays.

    weighted: whether the samples had weights.
    """

    def __init__(self, e: Any, trainer: Trainer, weighted: bool) -> None:
        assert trainer.programs is not None
        self.trainer, self.programs = trainer, trainer.programs
        self._shape, self._weighted, self._solver = self.programs.batches.arrays[0].shape, weighted, e._solver
        self._parameters, self._surroundings = _parameters(e), _surroundings()
        own = isinstance(e.random_state, int)
        self._random: np.random.RandomState | None = e._random_state if own else None
        trainer.callbacks, self.programs.batches.shuffle = [], False  # which know the estimator, and the data

    def random_state(self, e: Any) -> np.random.RandomState | None:
        """What check_random_state makes of the estimator's integer, in a hundredth of the time; None for others."""
        if self._random is not None and isinstance(e.random_state, int) and 0 <= e.random_state < 2**32:
            self._random.seed(e.random_state)
            return self._random
        return None

    def fits(self, e: Any, model: Sequential, X: Any, weighted: bool) -> bool:
        """Whether it is what a new Trainer for these samples would be."""
        return (
            is_stream(e, model, X)
            and (X.shape, weighted) == (self._shape, self._weighted)
            and model is self.trainer.model
            and e._solver is self._solver
            and all(a is b for a, b in zip(_parameters(e), self._parameters, strict=True))
            and _surroundings() == self._surroundings
            and self.programs.stepper.fits()
        )


def _parameters(e: Any) -> list[Any]:
    return [getattr(e, name, None) for name in e._parameter_constraints]


def _surroundings() -> tuple[Any, ...]:
    return current_backend().address, current_numerics()
