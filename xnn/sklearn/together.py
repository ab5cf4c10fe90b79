"""What alike fits share that one thread computes one after the other: the programs of the first of them."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends import current_numerics
from xnn.sklearn.objective import Objective
from xnn.sklearn.progress import Convergence
from xnn.sklearn.stream import is_small
from xnn.training import Trainer
from xnn.training.repeated import Repeated

__all__ = ["Workplace", "kind_of", "workplace"]

#: How many kinds of fits a thread remembers, and of how many steps a fit may be.
_KINDS, _STEPS = 8, 20_000
#: For how many pairs of samples and targets it remembers what scikit-learn's checks made of them.
_CHECKED = 10

_Data = tuple[np.ndarray, np.ndarray]


@dataclass
class _Checked:
    """Samples and targets of an estimator of this kind, what they became, and the attributes that it got."""

    kind: type
    X: np.ndarray
    y: np.ndarray
    made: tuple[np.ndarray, np.ndarray]
    attributes: dict[str, Any]


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


class Workplace:
    """Where one thread computes fits: it keeps the programs of the last kinds of them. repeated: counts their use."""

    def __init__(self) -> None:
        self._kept = OrderedDict[Hashable, Repeated | None]()
        self._checked = deque[_Checked](maxlen=_CHECKED)
        self.repeated = 0

    def can_check(self, e: Any, X: Any, y: Any, incremental: bool) -> bool:
        """Whether `checked` serves this fit: the first of an estimator, on small arrays of the usual kind."""
        if incremental or hasattr(e, "n_features_in_") or not (type(X) is type(y) is np.ndarray):
            return False
        usual = X.ndim == 2 and y.ndim == 1 and X.dtype.kind + y.dtype.kind in ("ff", "fi", "fU")
        return usual and bool(X.flags.c_contiguous) and is_small(X)

    def checked(self, e: Any, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What scikit-learn makes of samples and targets: its checks are done once for equal arrays."""
        for known in self._checked:
            if known.kind is type(e) and _are_equal(known.y, y) and _are_equal(known.X, X):
                vars(e).update(copy.deepcopy(known.attributes))
                return known.made
        X, y, before = X.copy(), y.copy(), {**vars(e)}  # whoever gave the arrays may change them
        made: tuple[np.ndarray, np.ndarray] = e._validate_input(X, y, False, reset=True)
        found = {name: value for name, value in vars(e).items() if name not in before}
        self._checked.appendleft(_Checked(type(e), X, y, made, copy.deepcopy(found)))
        return made

    def fit(
        self,
        e: Any,
        trainer: Trainer,
        data: tuple[Any, np.ndarray],
        epochs: int,
        batch_size: int,
        orders: Callable[[], Callable[[int], np.ndarray] | bool],
        watcher: Convergence,
    ) -> None:
        """Train as `trainer.fit` does, by programs of an earlier fit of this kind if there are some.

        e: an estimator without dropout, weights of samples, data to validate on, and callbacks. orders: makes the
        order of the samples in each epoch.
        """
        kind, loss = kind_of(e, trainer, *data, batch_size, ("numpy",)), trainer.loss
        if epochs * -(-len(data[1]) // batch_size) > _STEPS:
            kind = None
        assert isinstance(loss, Objective)
        repeated = self._kept.get(kind)
        if repeated is not None:
            loss.check(data[1], (e.n_outputs_,))
            self._kept.move_to_end(kind)
            before = {**vars(e), "loss_curve_": [*e.loss_curve_]}
            random = e._random_state.get_state()
            if repeated.fit(trainer, data, loss.strength, orders(), epochs, watcher):
                self.repeated += 1
                return
            vars(e).clear()  # and a fit of its own says what diverged
            vars(e).update(before)
            e._random_state.set_state(random)
        elif kind is not None and kind not in self._kept:
            trainer.keeps_programs = True
            data = data[0].copy(), data[1].copy()
        trainer.fit(data, None, epochs, batch_size, progress=False, shuffle=orders())
        assert trainer.history is not None
        if trainer.keeps_programs and not trainer.history.interrupted:
            self._kept[kind] = Repeated.of(trainer)
            trainer.callbacks = []  # which know the estimator
            if len(self._kept) > _KINDS:
                self._kept.popitem(last=False)


#: That of this thread; None where fits share nothing.
workplace: ContextVar[Workplace | None] = ContextVar("xnn_workplace", default=None)


def kind_of(
    e: Any, trainer: Trainer, X: Any, y: np.ndarray, batch_size: int, backends: Sequence[str]
) -> Hashable | None:
    """What two fits have in common if they are alike; None if this one is like no other.

    backends: the names of those that count, without the numbers of GPUs.

    Alike fits may differ in their samples, random states, penalties, learning rates, numbers of epochs, and rules for
    convergence.
    """
    model = trainer.model
    plain = (
        is_small(X)
        and isinstance(e.random_state, int | np.integer | None)
        and model.backend.name.partition(":")[0] in backends
        and (trainer.numerics or current_numerics()) == "fast"
        and (e.solver == "adam" or e.learning_rate == "constant")
        and all(part is None for part in (e.optimizer, e.schedule, e.model))
        and not (e.dropout or e.batch_norm or e.verbose or e.threads == "auto")
    )
    if not plain:
        return None
    optimizer = e.solver, e.momentum, bool(e.nesterovs_momentum), e.beta_1, e.beta_2, e.epsilon
    network = e.activation, model.dtype, tuple(parameter.shape for parameter in model.parameters())
    targets = e.loss, e.out_activation_, y.shape, y.dtype
    execution = model.backend.name, trainer.kernels, trainer.threads
    return X.shape, targets, network, optimizer, batch_size, e.alpha > 0.0, execution
