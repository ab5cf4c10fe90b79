"""Engine: trains scikit-learn's MLP with an xnn.Trainer, and predicts with the trained xnn.Sequential."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, shuffle
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from xnn import ops
from xnn.backends import backend, current_backend, current_numerics, numerics
from xnn.errors import DivergenceError
from xnn.layers import Dense, Drawing, Sequential
from xnn.sklearn import network
from xnn.sklearn.inputs import in_dtype, samples_of, validate
from xnn.sklearn.objective import Objective, data_loss
from xnn.sklearn.progress import Convergence, Iterations
from xnn.sklearn.solvers import continued, kept, new_optimizer
from xnn.training import Trainer

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's mixin where there is none."""


__all__ = ["Engine"]

_NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)
#: More numbers than this in the samples are trained on in float32, where nothing else is asked for.
_MANY_NUMBERS = 2**20
#: For fewer multiplications than this the calls into the network would take longer than the products.
_FEW_PRODUCTS = 2**20
_THEIR_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
#: How many samples a solver that takes all of them at once computes at a time.
_ROWS_AT_A_TIME = 10_000

_OUTPUTS = {"softmax": lambda z: ops.softmax(z, axis=1), "logistic": ops.sigmoid, "exp": ops.exp}


class Engine(CallbackSupportMixin):  # type: ignore[misc]
    """What MLPClassifier and MLPRegressor have in common: it takes the place of scikit-learn's training and predicting.

    scikit-learn's class, which comes after this one among the bases, checks parameters, samples and targets, and turns
    outputs into classes.

    coefs_, intercepts_: the weights, of which predictions are made, as NumPy arrays in the dtype of the samples of the
    fit. _others: the network's other arrays, by name. _solver: what the optimizer needs to go on. _model: the network;
    None after unpickling, until it is needed. _trained_in: its dtype. _target_units: mean and deviation of the
    targets, if they are scaled.
    """

    _others: Mapping[str, np.ndarray] = MappingProxyType({})
    _model: Sequential | None = None
    _trained_in = "float64"
    _target_units: tuple[np.ndarray, np.ndarray] | None = None

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        network.widths(self.hidden_layer_sizes)  # raises
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._validate_input(X, y, incremental, reset=first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        sample_weight = self._with_class_weight(sample_weight, y, incremental)
        self.n_outputs_ = y.shape[1]
        self._random_state = check_random_state(self.random_state)
        with self._on_backend():
            if first:
                self._begin(y)
                self._first_network(X)
            self._train(X, y, sample_weight, incremental)
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(_NOT_FINITE)
        return self

    def _with_class_weight(self, sample_weight: Any, y: np.ndarray, incremental: bool) -> Any:
        """The sample weights, multiplied by those of the classes."""
        given = getattr(self, "class_weight", None)
        if given is None:
            return sample_weight
        if incremental and given == "balanced":
            raise ValueError(
                "class_weight='balanced' cannot be used with partial_fit, which does not see all samples: use "
                "sklearn.utils.compute_class_weight('balanced', classes=classes, y=y), and pass a dict of its weights"
            )
        labels = self._label_binarizer.inverse_transform(y)
        weights = compute_sample_weight(given, labels)
        return weights if sample_weight is None else sample_weight * weights

    def _begin(self, y: np.ndarray) -> None:
        """Set the attributes of an estimator that has seen nothing yet."""
        self.n_iter_ = self.t_ = 0
        if is_classifier(self):
            several = self._label_binarizer.y_type_ == "multiclass"
            self.out_activation_ = "softmax" if several else "logistic"
        else:
            self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        self._target_units = None
        self.__dict__.pop("_solver", None)
        if self.solver == "lbfgs":
            return
        self.loss_curve_ = []
        self._no_improvement_count = 0
        early = self.early_stopping
        self.best_loss_, self.best_validation_score_ = (None, -np.inf) if early else (np.inf, None)
        self.validation_scores_ = [] if early else None
        self.validation_loss_curve_ = [] if early or self.validation_set is not None else None

    def _first_network(self, X: Any) -> None:
        """Build the network, with its first weights, and set the attributes that hold them."""
        plenty = X.shape[0] * X.shape[1] > _MANY_NUMBERS and self.solver != "lbfgs"
        self._trained_in = str(self.dtype or ("float32" if plenty else X.dtype))
        seed = 0 if self.model is None else int(self._random_state.randint(2**31))
        model = self._model = network.build(self, X.shape[1], self.n_outputs_, self._trained_in, seed)
        if self.model is None:
            network.first_weights(self, model, self._random_state)
        self.coefs_, self.intercepts_, self._others = self._best = network.taken(model, X.dtype)
        self.n_layers_ = len(self.coefs_) + 1

    def _network(self) -> Sequential:
        """The network, with the weights that the attributes hold now."""
        if self._model is None:
            with self._on_backend():
                self._model = network.build(self, self.n_features_in_, self.n_outputs_, self._trained_in, 0)
        network.put(self._model, self.coefs_, self.intercepts_, self._others)
        return self._model

    def _on_backend(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.backend is None else backend(self.backend)

    # Training.

    def _train(self, X: Any, y: np.ndarray, sample_weight: Any, incremental: bool) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        model, steps_by_batches, dtype = self._network(), self.solver != "lbfgs", self.coefs_[0].dtype
        given = {"X": X, "y": y}
        held_out = self._held_out() if steps_by_batches else None
        if steps_by_batches and self.early_stopping and held_out is None:
            X, y, sample_weight, held_out = self._split(X, y, sample_weight)
        rows = X.shape[0]
        penalized = [layer.weight for layer in network.dense_layers(model)]
        loss = data_loss(self.loss, self.out_activation_)
        objective = Objective(loss, penalized, float(self.alpha) if steps_by_batches else 0.0)
        batch_size = self._batch_size(rows) if steps_by_batches else min(rows, _ROWS_AT_A_TIME)
        size = rows if sample_weight is None else float(np.sum(sample_weight))
        searches = list[Any]()
        optimizer = new_optimizer(self, penalized, size, -(-rows // batch_size), searches.append)
        if incremental and hasattr(self, "_solver"):
            continued(optimizer, self._solver, model.parameters(), model.backend.to_device)
        epochs = 1 if incremental else self.max_iter
        context = self._callback_context(epochs)
        if context is not None:
            context.call_on_fit_task_begin(estimator=self, **given)
        told = dtype, given, context
        if steps_by_batches:
            score = None if held_out is None else self._scorer(loss, *held_out)
            watcher = Convergence(self, *told, optimizer, rows, score)
            self.n_iter_ = 0
        else:
            watcher = Iterations(self, *told)
        trainer = Trainer(
            model, objective, optimizer, [], [watcher, *(self.callbacks or ())], self.threads, "auto", self.numerics
        )
        order, seed = np.arange(rows), 0
        if any(isinstance(layer, Drawing) for layer in model.all_layers()):
            seed = int(self._random_state.randint(2**31))

        def next_order(epoch: int) -> np.ndarray:
            nonlocal order
            order = shuffle(order, random_state=self._random_state)
            return order

        data = samples_of(X, model.dtype, whole=True), self._targets(y, model.dtype)
        weights = None if sample_weight is None else in_dtype(sample_weight, model.dtype)
        try:
            history = trainer.fit(
                data, None, epochs, batch_size, weights, seed, progress=False, shuffle=next_order if self.shuffle and batch_size < rows else False
            )
        except DivergenceError as error:
            if not (steps_by_batches and self.early_stopping and np.isfinite(self.best_validation_score_)):
                raise ValueError(f"{_NOT_FINITE} ({error})") from error
            watcher.diverged(trainer.history)
            history = trainer.history
        self._take(model, optimizer, dtype)
        if history.interrupted:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        elif steps_by_batches and self.n_iter_ == self.max_iter and not history.stopped and not incremental:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
                stacklevel=4,
            )
        if searches:
            self.loss_ = float(searches[-1].fun)
            self.n_iter_ = _check_optimize_result("lbfgs", searches[-1], self.max_iter)

    def _take(self, model: Sequential, optimizer: Any, dtype: Any) -> None:
        """Keep the trained weights, or the best ones of early stopping, and what the optimizer knows."""
        self.coefs_, self.intercepts_, self._others = network.taken(model, dtype)
        if self.solver != "lbfgs":
            self._solver = kept(optimizer, model.parameters(), model.backend.to_host)
            if self.early_stopping:
                self.coefs_, self.intercepts_, self._others = self._best
        self._network()

    def _batch_size(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        if self.batch_size > rows:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=6
            )
        return int(np.clip(self.batch_size, 1, rows))

    def _targets(self, y: np.ndarray, dtype: str) -> np.ndarray:
        """Targets (n, outputs) as the loss takes them."""
        if self.out_activation_ == "softmax":
            return y.argmax(axis=1)
        if getattr(self, "target_scaling", False):
            if self._target_units is None:
                spread = y.std(axis=0)
                self._target_units = y.mean(axis=0), np.where(spread > 0.0, spread, 1.0)
            mean, spread = self._target_units
            y = (y - mean) / spread
        return in_dtype(y, dtype)

    def _split(self, X: Any, y: np.ndarray, sample_weight: Any) -> tuple[Any, ...]:
        """Set a part of the data aside for early stopping: what is left, and that part."""
        stratify = y if is_classifier(self) and self.n_outputs_ == 1 else None
        parts = (X, y) if sample_weight is None else (X, y, sample_weight)
        split = train_test_split(
            *parts, random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        left, aside = split[::2], split[1::2]
        if aside[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        none = (None,) if sample_weight is None else ()
        return *left, *none, (*aside, *none)

    def _held_out(self) -> tuple[Any, ...] | None:
        """The validation set that was given: samples, targets and perhaps weights of samples."""
        if self.validation_set is None:
            return None
        X, y, *weights = self.validation_set
        X, y = validate(self, X), np.asarray(y)
        if is_classifier(self):
            unknown = np.setdiff1d(y, self.classes_) if y.ndim == 1 else ()
            if len(unknown):
                raise ValueError(f"validation_set has classes {unknown} that the training data do not have")
            y = self._label_binarizer.transform(y).astype(bool)
        return X, y.reshape(-1, 1) if y.ndim == 1 else y, *(weights or [None])

    def _scorer(self, loss: Any, X: Any, y: np.ndarray, sample_weight: Any) -> Any:
        """A function of the model in training: the score and the loss of the data on these samples."""
        truth = self._label_binarizer.inverse_transform(y) if is_classifier(self) else y
        metric = accuracy_score if is_classifier(self) else r2_score

        def score(model: Sequential) -> tuple[float, float]:
            raw = model.predict(samples_of(X, model.dtype, whole=False))
            weights = () if sample_weight is None else (np.asarray(sample_weight, raw.dtype),)
            data = float(loss(raw, self._targets(y, str(raw.dtype)), *weights))
            predicted = self._decided(self._activated(raw, self.coefs_[0].dtype))
            if predicted.dtype.kind == "f" and not np.isfinite(predicted).all():
                return np.nan, data
            return float(metric(truth, predicted, sample_weight=sample_weight)), data

        return score

    def _callback_context(self, epochs: int) -> Any:
        """The context for scikit-learn's callbacks; None if there are none."""
        if not getattr(self, "_skl_callbacks", None) and not hasattr(self, "_parent_callback_ctx"):
            return None
        return self._init_callback_context(max_subtasks=epochs)

    # Predicting.

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        """The network's outputs after the last activation, in the dtype of the samples."""
        if check_input:
            X = validate(self, X)
        dtype = X.dtype if X.dtype.kind == "f" else self.coefs_[0].dtype
        if X.shape[0] * sum(coef.size for coef in self.coefs_) < _FEW_PRODUCTS and self._is_plain():
            return super()._forward_pass_fast(X, check_input=False).astype(dtype, copy=False)
        with nullcontext() if self.numerics is None else numerics(self.numerics):
            model = self._network()
            return self._activated(model.predict(samples_of(X, model.dtype, whole=False)), dtype)

    def _is_plain(self) -> bool:
        """Whether scikit-learn's own forward pass computes the network, so that a few samples need not go through it."""
        on_host = (current_backend().name if self.backend is None else self.backend) == "numpy"
        fast = (self.numerics or current_numerics()) == "fast"
        theirs = self.activation in _THEIR_ACTIVATIONS and self.out_activation_ != "exp"
        return on_host and fast and theirs and self.model is None and not self._others and self._target_units is None

    def _activated(self, raw: np.ndarray, dtype: Any) -> np.ndarray:
        """The last activation of the network's outputs."""
        activation = _OUTPUTS.get(self.out_activation_)
        outputs = (raw if activation is None else activation(raw)).astype(dtype, copy=False)
        if self._target_units is not None:
            mean, spread = self._target_units
            outputs = (outputs * spread + mean).astype(dtype, copy=False)
        return outputs

    def _predict(self, X: Any, check_input: bool = True) -> np.ndarray:
        return self._decided(self._forward_pass_fast(X, check_input))

    def _decided(self, outputs: np.ndarray) -> np.ndarray:
        """Classes, or numbers, from outputs after the last activation."""
        if self.out_activation_ == "softmax":
            return self.classes_[outputs.argmax(axis=1)]
        outputs = outputs.ravel() if outputs.shape[1] == 1 else outputs
        return self._label_binarizer.inverse_transform(outputs) if is_classifier(self) else outputs

    def _unpack(self, packed_parameters: np.ndarray) -> None:
        """Set the weights from one vector, for scikit-learn's private methods: first coefs_, then intercepts_."""
        arrays = [*self.coefs_, *self.intercepts_]
        parts = np.split(packed_parameters, np.cumsum([a.size for a in arrays])[:-1])
        shaped = [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]
        self.coefs_, self.intercepts_ = shaped[: len(self.coefs_)], shaped[len(self.coefs_) :]

    @property
    def model_(self) -> Sequential:
        """The trained network, an xnn.Sequential without the last activation. It holds the weights of coefs_."""
        check_is_fitted(self)
        return self._network()

    @property
    def _optimizer(self) -> Any:
        """What scikit-learn's own estimators call `_optimizer`: an object with the learning rate."""
        if "_solver" not in self.__dict__:
            raise AttributeError("_optimizer")
        return type("Optimizer", (), self._solver)

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies keep: NumPy arrays, and not the network, which is built again when it is needed."""
        return {name: value for name, value in super().__getstate__().items() if name != "_model"}
