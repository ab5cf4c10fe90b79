"""Callbacks that do what scikit-learn does after an epoch: curves, scores, early stopping, and its own callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from xnn.callbacks import Callback
from xnn.history import History
from xnn.optimizers import Optimizer
from xnn.sklearn import network
from xnn.sklearn.solvers import set_rate

__all__ = ["Convergence", "Iterations"]

#: scikit-learn's learning rate, at which "adaptive" ends.
_SMALLEST_RATE = 1e-6


class Iterations(Callback):
    """Tells scikit-learn's callbacks (SLEP023) about each epoch, and ends the training when one asks for it.

    estimator: in training. dtype: of its coefs_. told: X, y and metadata, as callbacks get them. context:
    scikit-learn's CallbackContext of the fit; None if there are no callbacks.
    """

    bystander = True

    def __init__(self, estimator: Any, dtype: Any, told: dict[str, Any], context: Any) -> None:
        self.estimator, self.dtype, self.told, self.context = estimator, dtype, told, context
        self._open: Any = None

    def _state(self) -> dict[str, Any]:
        """The attributes with which the estimator predicts as if training had ended here."""
        coefs, intercepts, others = network.taken(self.model, self.dtype)
        return {"coefs_": coefs, "intercepts_": intercepts, "_others": others, "_model": None}

    def state(self) -> None:
        """Nothing: the estimator keeps what an epoch leaves, and a checkpoint of its training is of no use alone."""

    def restore(self, state: Any) -> None:
        """Take in what `state` returned."""

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._epochs = epochs
        self._begin()

    def _begin(self) -> None:
        if self.context is not None:
            self._open = self.context.subcontext(task_name="iteration")
            self._open.call_on_fit_task_begin(
                estimator=self.estimator, **self.told, reconstruction_attributes=self._state
            )

    def _end(self, task: Any) -> bool:
        """Tell callbacks that a task has ended. Returns whether one asks to stop."""
        return task is not None and bool(
            task.call_on_fit_task_end(
                estimator=self.estimator, **self.told, reconstruction_attributes=self._state
            )
        )

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        task, self._open = self._open, None
        if self._end(task):
            history.stopped = "a callback asked for it"
        elif not history.stopped and len(history.epochs) < self._epochs:
            self._begin()

    def on_fit_end(self, history: History) -> None:
        self._end(self._open)
        self._end(self.context)


class Convergence(Iterations):
    """Keeps the curves of a fit by sgd or adam, and decides after each epoch whether it has converged.

    optimizer: whose learning rate it changes for the schedules "invscaling" and "adaptive". asked: the parameters of
    the optimizer, as attributes. rows: of the training data. score: score(model) -> (score, loss) on the validation
    data; None if there are none.
    """

    def __init__(
        self,
        estimator: Any,
        dtype: Any,
        told: dict[str, Any],
        context: Any,
        optimizer: Optimizer,
        asked: Any,
        rows: int,
        score: Callable[[Any], tuple[float, float]] | None,
    ) -> None:
        super().__init__(estimator, dtype, told, context)
        sgd = asked.solver == "sgd" and asked.optimizer is None
        self._schedule = asked.learning_rate if sgd else "constant"
        self.bystander = self._schedule == "constant"
        self._optimizer, self._asked, self.rows, self.score = optimizer, asked, rows, score

    @property
    def at_least(self) -> int:
        """For how many epochs more the training goes on in any case, at least 1."""
        e = self.estimator
        return max(1, int(min(e.n_iter_no_change + 1 - e._no_improvement_count, e.max_iter)))

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        e = self.estimator
        if self.score is None:
            self.add(np.float64(entry["loss"]), None, None)
        else:
            score, loss = self.score(self.model)
            entry |= {"val_loss": loss, "val_accuracy" if is_classifier(e) else "val_r2": score}
            self.add(np.float64(entry["loss"]), score, loss)
        if self._schedule == "invscaling":
            set_rate(self._optimizer, self._asked.learning_rate_init / (e.t_ + 1) ** self._asked.power_t)
        if e._no_improvement_count > e.n_iter_no_change:
            if self._stops():
                history.stopped = "converged"
            else:
                e._no_improvement_count = 0
        super().on_epoch_end(history, entry)

    def add(self, loss: float, score: float | None, validation_loss: float | None) -> None:
        """Add an epoch to the curves, and count those without improvement."""
        e = self.estimator
        e.n_iter_ += 1
        e.loss_ = loss
        e.t_ += self.rows
        e.loss_curve_.append(loss)
        if e.verbose:
            print(f"Iteration {e.n_iter_}, loss = {loss:.8f}")
        if validation_loss is not None:
            e.validation_loss_curve_.append(validation_loss)
        if not e.early_stopping:
            e._no_improvement_count = e._no_improvement_count + 1 if loss > e.best_loss_ - e.tol else 0
            e.best_loss_ = min(loss, e.best_loss_)
            return
        assert score is not None
        e.validation_scores_.append(score)
        if e.verbose:
            print(f"Validation score: {score:f}")
        e._no_improvement_count = (
            e._no_improvement_count + 1 if score < e.best_validation_score_ + e.tol else 0
        )
        if score > e.best_validation_score_:
            e.best_validation_score_ = score
            e._best = network.taken(self.model, self.dtype)

    def _stops(self) -> bool:
        """Whether to end the training; otherwise the learning rate is divided by 5."""
        e = self.estimator
        what = "Validation score" if e.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={e.tol:f} for {e.n_iter_no_change} consecutive epochs."
        )
        if self._schedule != "adaptive":
            ending, stops = "Stopping.", True
        elif self._optimizer.rate <= _SMALLEST_RATE:
            ending, stops = "Learning rate too small. Stopping.", True
        else:
            set_rate(self._optimizer, self._optimizer.rate / 5.0)
            ending, stops = f"Setting learning rate to {self._optimizer.rate:f}", False
        if e.verbose:
            print(f"{message} {ending}")
        return stops

    def diverged(self) -> None:
        """Add an epoch whose numbers are NaN."""
        self.add(np.nan, np.nan, np.nan if self.score is not None else None)
