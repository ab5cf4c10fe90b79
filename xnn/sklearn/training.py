"""One fit or partial_fit of an estimator: its data, its Trainer, and scikit-learn's warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight

from xnn.errors import DivergenceError
from xnn.history import History
from xnn.layers import Drawing, Sequential
from xnn.losses import Loss
from xnn.sklearn import network
from xnn.sklearn.inputs import NOT_FINITE, in_dtype, on_host, rows_of, samples_of, validate
from xnn.sklearn.objective import Objective, WholeObjective, data_loss
from xnn.sklearn.progress import Convergence, Iterations
from xnn.sklearn.solvers import begun_with, continued, kept, new_optimizer
from xnn.sklearn.stream import Prepared, is_stream
from xnn.sklearn.together import workplace
from xnn.training import Trainer
from xnn.training.again import fit_again

__all__ = ["fits_together", "train", "with_class_weight"]

_ADVICE = "Scale the samples, take a smaller learning_rate_init, or for large targets target_scaling=True."
#: NumPy's message for a mean of samples of which none counts.
NO_WEIGHT = "Weights sum to zero, can't be normalized"
#: The multiplications of a forward pass in all epochs, below which a fit takes at most about half a second: Numba's
#: kernels save half of that, and take as long to be loaded. What ran before must not count: it would change the bits.
_FEW_PRODUCTS = 4e9
#: How many fits like this one are computed together, and so load Numba's kernels once.
fits_together: ContextVar[int] = ContextVar("xnn_fits_together", default=1)
#: How many samples a solver that takes all of them at once computes at a time.
_ROWS_AT_A_TIME = 10_000


def with_class_weight(estimator: Any, y: np.ndarray, sample_weight: Any, incremental: bool) -> Any:
    """The sample weights, multiplied by those of the classes. y: the targets, made binary."""
    given = getattr(estimator, "class_weight", None)
    if given is None:
        return sample_weight
    if incremental and given == "balanced":
        raise ValueError(
            "class_weight='balanced' cannot be used with partial_fit, which does not see all samples: give it a dict "
            "of the weights, as sklearn.utils.class_weight.compute_class_weight returns them"
        )
    parts = [] if given == "balanced" else given if isinstance(given, list) else [given]
    if not all(isinstance(part, dict) and all(map(_is_weight, part.values())) for part in parts):
        raise ValueError(
            f"class_weight={given!r} must be 'balanced', a dict of the weights of classes, which are at least 0, or "
            "a list of such dicts for several labels"
        )
    weights = compute_sample_weight(given, estimator._label_binarizer.inverse_transform(y))
    return weights if sample_weight is None else sample_weight * weights


def _is_weight(number: Any) -> bool:
    return isinstance(number, Real) and 0.0 <= float(number) < np.inf


def train(e: Any, X: Any, y: np.ndarray, sample_weight: Any, incremental: bool, told: dict[str, Any]) -> None:
    """Train the network of an estimator, and set its attributes.

    e: the estimator, whose network exists. X, y, sample_weight: checked; y has shape (n, outputs).
    incremental: whether to train for one epoch, and go on with the optimizer of the last fit.
    told: samples, targets and metadata as they were given, for scikit-learn's callbacks.
    """
    if e.early_stopping and incremental:
        raise ValueError("partial_fit does not support early_stopping=True")
    if e.solver == "lbfgs":
        _minimize(e, X, y, sample_weight, told)
    else:
        _descend(e, X, y, sample_weight, incremental, told)


def _minimize(e: Any, X: Any, y: np.ndarray, sample_weight: Any, told: dict[str, Any]) -> None:
    """Train by L-BFGS."""
    model, rows, searches = e._network(), X.shape[0], list[Any]()
    penalized = [layer.weight for layer in network.dense_layers(model)]
    size = rows if sample_weight is None else float(np.sum(sample_weight))
    optimizer = new_optimizer(e, penalized, size, 1, searches.append)
    watcher = Iterations(e, e.coefs_[0].dtype, told, _callback_context(e, told, e.max_iter))
    loss = WholeObjective(data_loss(e.loss, e.out_activation_), (), 0.0)
    trainer = _trainer(e, model, loss, optimizer, rows)
    trainer.callbacks = [watcher, *(e.callbacks or ())]
    with _divergence_as_value_error():
        history = trainer.fit(
            _data(e, model, X, y),
            epochs=e.max_iter,
            batch_size=min(rows, _ROWS_AT_A_TIME),
            sample_weight=_weights(model, sample_weight),
            progress=False,
        )
    e.coefs_, e.intercepts_, e._others = network.taken(model, e.coefs_[0].dtype)
    if history.interrupted:
        _warn("Training interrupted by user.")
    if searches:
        e.loss_ = float(searches[-1].fun)
        e.n_iter_ = int(_check_optimize_result("lbfgs", searches[-1], e.max_iter))


def _descend(
    e: Any, X: Any, y: np.ndarray, sample_weight: Any, incremental: bool, told: dict[str, Any]
) -> None:
    """Train by steps on batches."""
    model, dtype = e._network(), e.coefs_[0].dtype
    held_out = _validation_set(e)
    _begin_curves(e, e.early_stopping or held_out is not None)
    if e.early_stopping and held_out is None:
        X, y, sample_weight, held_out = _split(e, X, y, sample_weight)
    rows = X.shape[0]
    batch_size, epochs = _batch_size(e, rows), 1 if incremental else e.max_iter
    asked = begun_with(e) if incremental else e
    last, e._prepared = e._prepared if incremental else None, None
    if last is not None and not last.fits(e, model, X, sample_weight is not None):
        last = None
    trainer = _descending(e, asked, model, rows, batch_size, incremental) if last is None else last.trainer
    optimizer = trainer.optimizer
    score = None if held_out is None else _scorer(e, data_loss(e.loss, e.out_activation_), *held_out)
    watcher = Convergence(e, dtype, told, _callback_context(e, told, epochs), optimizer, asked, rows, score)
    trainer.callbacks = [watcher, *(e.callbacks or ())]
    draws = any(isinstance(layer, Drawing) for layer in model.all_layers())
    # Other masks in each partial_fit, which begins with the same random numbers.
    seed = (int(e._random_state.randint(2**31)) + e.t_) % 2**31 if draws else 0
    e.n_iter_ = 0
    data, weights = _data(e, model, X, y), _weights(model, sample_weight)
    orders = partial(_orders, e, rows, batch_size, sample_weight)
    plain = (
        not (incremental or draws or e.callbacks or watcher.context) and weights is None and held_out is None
    )
    shared = workplace.get() if plain else None
    if incremental and last is None and is_stream(e, model, X):
        trainer.keeps_programs = True
        data = data[0].copy(), data[1].copy()
    with _divergence_as_value_error():
        try:
            if shared is not None:
                shared.fit(e, trainer, data, epochs, batch_size, orders, watcher)
            elif last is None:
                trainer.fit(data, None, epochs, batch_size, weights, seed, progress=False, shuffle=orders())
            else:
                fit_again(trainer, data, weights, seed, orders())
        except DivergenceError:
            if not (e.early_stopping and np.isfinite(e.best_validation_score_)):
                raise
            watcher.diverged()
    assert isinstance(trainer.history, History)
    e._solver = kept(asked, optimizer, model.parameters(), model.backend.to_host)
    e.coefs_, e.intercepts_, e._others = e._best if e.early_stopping else network.taken(model, dtype)
    if incremental and trainer.keeps_programs:
        e._prepared = Prepared(e, trainer, sample_weight is not None)
    if trainer.history.interrupted:
        _warn("Training interrupted by user.")
    elif e.n_iter_ == e.max_iter and not (trainer.history.stopped or incremental):
        _warn(
            f"Stochastic Optimizer: Maximum iterations ({e.max_iter}) reached and the optimization hasn't converged "
            "yet.",
            ConvergenceWarning,
        )


def _begin_curves(e: Any, validates: bool) -> None:
    """Begin what this fit adds to, where no earlier one has."""
    if not hasattr(e, "loss_curve_"):  # after a fit by L-BFGS
        e._begin_curves()
    if not e.early_stopping:
        e.best_loss_ = np.inf if e.best_loss_ is None else e.best_loss_
    elif e.validation_scores_ is None:
        e.validation_scores_, e.best_validation_score_ = [], -np.inf
        e._best = e.coefs_, e.intercepts_, e._others
    if validates and e.validation_loss_curve_ is None:
        e.validation_loss_curve_ = []


def _descending(
    e: Any, asked: Any, model: Sequential, rows: int, batch_size: int, incremental: bool
) -> Trainer:
    """The Trainer of a fit by steps on batches, whose optimizer goes on from the last one in a partial_fit.

    asked: the parameters of the optimizer, as attributes.
    """
    penalized = [layer.weight for layer in network.dense_layers(model)]
    loss = Objective(data_loss(e.loss, e.out_activation_), penalized, float(e.alpha))
    optimizer = new_optimizer(asked, penalized, rows, -(-rows // batch_size))
    if incremental and e._solver is not None:
        continued(optimizer, e._solver, model.parameters(), model.backend.to_device)
    return _trainer(e, model, loss, optimizer, rows)


def _trainer(e: Any, model: Sequential, loss: Loss, optimizer: Any, rows: int) -> Trainer:
    return Trainer(
        model,
        loss,
        optimizer,
        [],
        threads=e.threads,
        kernels=_kernels(e, model, rows),
        numerics=e.numerics,
    )


def _kernels(e: Any, model: Sequential, rows: int) -> str:
    """The kernels of a fit: NumPy's for a short one, in which Numba's would be loaded longer than they save."""
    products = (
        rows * e.max_iter * sum(parameter.size for parameter in model.parameters()) * fits_together.get()
    )
    return "numpy" if model.backend.name == "numpy" and products < _FEW_PRODUCTS else "auto"


@contextmanager
def _divergence_as_value_error() -> Iterator[None]:
    """Raise scikit-learn's ValueError for weights that are not finite, with what xnn knows about it."""
    try:
        yield
    except DivergenceError as error:
        raise ValueError(f"{NOT_FINITE} ({error.fault or error}) {_ADVICE}") from error


def _warn(message: str, category: type[Warning] = UserWarning) -> None:
    warnings.warn(message, category, stacklevel=7)  # the user's call of fit


def _orders(e: Any, rows: int, batch_size: int, sample_weight: Any) -> Callable[[int], np.ndarray] | bool:
    """The order of the samples in each epoch: scikit-learn's, which shuffles the last one. False: as they are."""
    order, weighs = np.arange(rows), sample_weight is not None and not np.all(sample_weight)
    # A single batch needs no order, but takes numbers from a generator that others use too.
    shuffles = e.shuffle and (batch_size < rows or not isinstance(e.random_state, Integral))

    def next_order(epoch: int) -> np.ndarray:
        nonlocal order
        if shuffles:  # as sklearn.utils.shuffle does, whose checks take longer than this
            drawn = np.arange(rows)
            e._random_state.shuffle(drawn)
            order = order[drawn]
        if weighs and not np.add.reduceat(sample_weight[order], np.arange(0, rows, batch_size)).all():
            raise ZeroDivisionError(NO_WEIGHT)
        return order

    return next_order if shuffles or weighs else False


def _batch_size(e: Any, rows: int) -> int:
    if e.batch_size == "auto":
        size = min(200, rows)
        while e.batch_norm and rows % size == 1 < size:  # BatchNorm takes no batch of one sample
            size -= 1
        return size
    if e.batch_size > rows:
        _warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
    return int(min(e.batch_size, rows))


def _data(e: Any, model: Sequential, X: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    return samples_of(X, model.dtype, whole=True), _targets(e, y, model.dtype)


def _weights(model: Sequential, sample_weight: Any) -> np.ndarray | None:
    if sample_weight is None:
        return None
    if not np.any(sample_weight):
        raise ZeroDivisionError(NO_WEIGHT)
    return in_dtype(sample_weight, model.dtype)


def _targets(e: Any, y: np.ndarray, dtype: str) -> np.ndarray:
    """Targets (n, outputs) as the loss takes them: labels from 0, or numbers, which may be scaled."""
    if e.out_activation_ == "softmax":
        return np.asarray(y.argmax(axis=1))
    if getattr(e, "target_scaling", False):
        if e._target_units is None:
            spread = y.std(axis=0)
            e._target_units = y.mean(axis=0), np.where(spread > 0.0, spread, 1.0)
        mean, spread = e._target_units
        y = (y - mean) / spread
    return in_dtype(y, dtype)


def _split(e: Any, X: Any, y: np.ndarray, sample_weight: Any) -> tuple[Any, ...]:
    """Set a part of the data aside for early stopping: samples, targets and weights that are left, and that part."""
    stratify = y if is_classifier(e) and e.n_outputs_ == 1 else None
    left, aside = train_test_split(
        np.arange(len(y)), random_state=e._random_state, test_size=e.validation_fraction, stratify=stratify
    )
    if len(aside) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
        )
    kept, out = (
        (rows_of(X, rows), y[rows], None if sample_weight is None else sample_weight[rows])
        for rows in (left, aside)
    )
    return *kept, out


def _validation_set(e: Any) -> tuple[Any, ...] | None:
    """The validation set that was given: samples, targets (n, outputs) and perhaps weights of samples."""
    if e.validation_set is None:
        return None
    if len(e.validation_set) not in (2, 3):
        raise ValueError(
            f"validation_set has {len(e.validation_set)} parts: it must be (X, y) or (X, y, sample_weight)"
        )
    try:
        return _checked_set(e, *e.validation_set)
    except ValueError as error:
        raise ValueError(f"validation_set: {error}") from error


def _checked_set(e: Any, X: Any, y: Any, sample_weight: Any = None) -> tuple[Any, ...]:
    X, y = (
        validate(e, X),
        check_array(on_host(y), ensure_2d=False, dtype=None if is_classifier(e) else "numeric"),
    )
    check_consistent_length(X, y)
    y = y.ravel() if y.shape[1:] == (1,) else y
    if sample_weight is not None:
        sample_weight = _check_sample_weight(on_host(sample_weight), y, dtype=np.float64)
        if (sample_weight < 0.0).any():
            raise ValueError("sample_weight must be at least 0")
    if is_classifier(e):
        if unknown := {*y.tolist()} - {*e.classes_.tolist()} if y.ndim == 1 else ():
            raise ValueError(f"labels that the training data do not have: {sorted(unknown)}")
        y = e._label_binarizer.transform(y).astype(bool)
    y = y.reshape(-1, 1) if y.ndim == 1 else y
    if y.shape[1] != e.n_outputs_:
        raise ValueError(f"{y.shape[1]} targets a sample, and the training data have {e.n_outputs_}")
    return X, y, sample_weight


def _scorer(e: Any, loss: Loss, X: Any, y: np.ndarray, sample_weight: Any) -> Callable[[Sequential], Any]:
    """A function of the model in training: the score and the loss of the data on validation samples."""
    truth = e._label_binarizer.inverse_transform(y) if is_classifier(e) else y
    metric = accuracy_score if is_classifier(e) else r2_score

    def score(model: Sequential) -> tuple[float, float]:
        raw = model.predict(samples_of(X, model.dtype, whole=False))
        weights = () if sample_weight is None else (np.asarray(sample_weight, raw.dtype),)
        data = float(loss(raw, _targets(e, y, str(raw.dtype)), *weights))
        predicted = e._decided(e._activated(raw, e.coefs_[0].dtype))
        if predicted.dtype.kind == "f" and not np.isfinite(predicted).all():
            return np.nan, data
        return float(metric(truth, predicted, sample_weight=sample_weight)), data

    return score


def _callback_context(e: Any, told: dict[str, Any], epochs: int) -> Any:
    """The context for scikit-learn's callbacks; None if neither the estimator has any nor those that contain it."""
    callbacks, around = getattr(e, "_skl_callbacks", None), getattr(e, "_parent_callback_ctx", None)
    while not callbacks and around is not None:
        callbacks, around = getattr(around, "_callbacks", True), getattr(around, "parent", None)
    if not callbacks:
        return None
    context = e._init_callback_context(max_subtasks=epochs)
    context.call_on_fit_task_begin(estimator=e, **told)
    return context
