"""Engine: trains scikit-learn's MLP with an xnn.Trainer, and predicts with the trained xnn.Sequential."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from xnn import ops
from xnn.backends import available_backends, backend, backend_of, current_backend, current_numerics, numerics
from xnn.callbacks import Callback
from xnn.errors import OptionError
from xnn.layers import Sequential
from xnn.options import shown
from xnn.sklearn import network
from xnn.sklearn.inputs import (
    NOT_FINITE,
    checked_samples,
    checked_there,
    dispatches,
    dtype_of_predictions,
    floating,
    handed_back,
    is_on_device,
    namespace,
    on_host,
    received,
    stand_in,
    validate,
)
from xnn.sklearn.stream import Prepared
from xnn.sklearn.together import workplace
from xnn.sklearn.training import train, with_class_weight

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's mixin where there is none."""


__all__ = ["Engine"]

#: More numbers than this in the samples are trained on in float32, where nothing else is asked for.
_MANY_NUMBERS = 2**20
#: For fewer multiplications than this the calls into the network would take longer than the products. Each number is
#: multiplied at least once: samples that are checked batch by batch (`checked_samples`) have more.
_FEW_PRODUCTS = 2**20
_THEIR_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")

#: The last activation of outputs, where there is one.
_OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda z: ops.softmax(z, axis=1),
    "logistic": ops.sigmoid,
    "exp": ops.exp,
}


class Engine(CallbackSupportMixin):  # type: ignore[misc]
    """What MLPClassifier and MLPRegressor have in common: training and predicting in place of scikit-learn's.

    scikit-learn's class, which comes after this one among the bases, checks parameters, samples and targets, and
    makes classes binary.

    coefs_, intercepts_: the weights, of which predictions are made, as NumPy arrays in the dtype of the samples.
    _others: the network's other arrays, by name. _solver: what the optimizer needs to go on. _best: the best weights
    of early stopping. _target_units: mean and deviation of the targets, if they are scaled. _model: the network; None
    after unpickling, until it is needed. _trained_in: its dtype. _made_of: the parameters it was built by. _prepared:
    the Trainer for the next partial_fit.
    """

    classes_: np.ndarray
    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    loss_curve_: list[float]
    best_loss_: float | None
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    validation_loss_curve_: list[float] | None
    _others: Mapping[str, np.ndarray] = MappingProxyType({})
    _model: Sequential | None = None
    _trained_in = "float64"
    _target_units: tuple[np.ndarray, np.ndarray] | None = None
    _solver: dict[str, Any] | None = None
    _best: network.Weights | None = None
    _made_of: tuple[Any, ...] = ()
    _prepared: Prepared | None = None

    @classmethod
    @cache
    def _get_param_names(cls) -> list[str]:
        """The names of the parameters, which scikit-learn would look for again in each copy of an estimator."""
        return list(super()._get_param_names())

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        hidden = network.widths(self.hidden_layer_sizes)
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        told = {"X": X, "y": y, "metadata": {} if sample_weight is None else {"sample_weight": sample_weight}}
        X, y, sample_weight = received(X), on_host(y), on_host(sample_weight)
        there = is_on_device(X)
        place = workplace.get()
        if place is not None and place.can_check(self, X, y, incremental):
            checked, y = place.checked(self, X, y)
        else:
            checked, y = self._validate_input(stand_in(X) if there else X, y, incremental, reset=first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, checked)
        X = checked_there(self, X, checked.dtype) if there else checked
        if not is_classifier(self) and y.dtype.kind not in "fiub":
            raise ValueError(
                f"y holds {y.dtype.name}: the targets of a {type(self).__name__} must be numbers"
            )
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        sample_weight = with_class_weight(self, y, sample_weight, incremental)
        self.n_outputs_ = y.shape[1]
        for callback in self.callbacks or ():
            if not isinstance(callback, Callback):
                raise OptionError(
                    f"callbacks takes objects of xnn.callbacks, got {shown(callback)}: scikit-learn's own are set by "
                    "set_callbacks"
                )
        again = None if self._prepared is None else self._prepared.random_state(self)
        self._random_state = check_random_state(self.random_state) if again is None else again
        with self._on_backend():
            if first:
                self._begin(y)
                self._first_network(X, hidden)
            else:
                self._check_goes_on()
            train(self, X, y, sample_weight, incremental, told)
            for callback in self.callbacks or ():  # which would keep the network in pickles
                vars(callback).pop("model", None)
            self._network()
        if not all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_)):
            raise ValueError(NOT_FINITE)
        return self

    def _begin(self, y: np.ndarray) -> None:
        """Set the attributes of an estimator that has seen nothing yet."""
        self.n_iter_ = self.t_ = 0
        if is_classifier(self):
            several = self._label_binarizer.y_type_ == "multiclass"
            self.out_activation_ = "softmax" if several else "logistic"
        else:
            self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
            if self.loss == "poisson" and self.target_scaling:
                raise ValueError(
                    "target_scaling=True is for loss='squared_error': Poisson's counts have their own scale"
                )
        self._target_units = self._solver = None
        if self.solver != "lbfgs":
            self._begin_curves()

    def _begin_curves(self) -> None:
        """Set the attributes that sgd and adam add to."""
        self.loss_curve_ = []
        self._no_improvement_count = 0
        self.best_loss_ = self.best_validation_score_ = None
        self.validation_scores_ = self.validation_loss_curve_ = None

    def _check_goes_on(self) -> None:
        """Raise OptionError where the weights of the last fit are of no use for this one's targets."""
        scales = getattr(self, "target_scaling", False) and self.loss == "squared_error"
        if scales != (self._target_units is not None) or (self.loss == "poisson") != (
            self.out_activation_ == "exp"
        ):
            raise OptionError(
                "loss or target_scaling were changed after the fit: fit again, with warm_start=False"
            )

    def _first_network(self, X: Any, hidden: Sequence[int]) -> None:
        """Build the network, with its first weights, and set the attributes that hold them."""
        given = np.dtype(float) if self.solver == "lbfgs" else floating(X)  # SciPy's L-BFGS has float64 alone
        plenty = X.shape[0] * X.shape[1] > _MANY_NUMBERS and self.solver != "lbfgs"
        exact = (self.numerics or current_numerics()) == "exact"  # which has no float64
        if exact and self.dtype == "float64":
            raise OptionError("numerics='exact' computes in float32: leave out dtype='float64'")
        self._trained_in = str(self.dtype or ("float32" if plenty or exact else given))
        seed = 0 if self.model is None else int(self._random_state.randint(2**31))
        model = self._model = network.build(self, X.shape[1], hidden, self.n_outputs_, self._trained_in, seed)
        if self.model is None:
            network.first_weights(self, model, self._random_state)
        self._made_of = self._makings()
        self.coefs_, self.intercepts_, self._others = network.taken(model, given)
        self.n_layers_ = len(self.coefs_) + 1

    def _network(self) -> Sequential:
        """The network, with the weights that the attributes hold now; a new one if parameters were changed."""
        model = self._model  # of this thread, while another may build one as well
        if model is None or self._made_of != self._makings():
            with self._on_backend(training=False):
                sizes = self.n_features_in_, [coef.shape[1] for coef in self.coefs_[:-1]], self.n_outputs_
                model = self._model = network.build(self, *sizes, self._trained_in)
            self._made_of = self._makings()
        network.put(model, self.coefs_, self.intercepts_, self._others)
        return model

    def _makings(self) -> tuple[Any, ...]:
        """The parameters that decide how the network is built, and that may be changed after a fit."""
        return self.activation, self.dropout, self.batch_norm, self.model, self.backend

    def _on_backend(self, training: bool = True) -> AbstractContextManager[Any]:
        """The backend that was asked for; to predict, the CPU where that does not run, as after unpickling."""
        if self.backend is None:
            return nullcontext()
        there = training or not available_backends().get(self.backend.partition(":")[0])
        return backend(self.backend if there else "numpy")

    # Predicting.

    def predict(self, X: Any) -> Any:
        """The class of each sample (n,), or the numbers; (n, outputs) if there are several for each."""
        check_is_fitted(self)
        return handed_back(self._predict(X), X)

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there are weights. (scikit-learn would read all attributes, which another thread may add to.)"""
        return hasattr(self, "coefs_")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy, or R2, of predictions from the samples X; y: what is true."""
        plain = type(X) is type(y) is np.ndarray and y.shape == X.shape[:1] != (0,) and sample_weight is None
        if plain and is_classifier(self) and hasattr(self, "classes_"):
            known = y.dtype.kind in "iu" and y.dtype == self.classes_.dtype
            predicted = self.predict(X) if known else None
            if predicted is not None and predicted.shape == y.shape:  # there is nothing to be checked in y
                return float(np.mean(predicted == y))
        with config_context(array_api_dispatch=False):
            return float(super().score(X, on_host(y), on_host(sample_weight)))

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Any:
        """The network's outputs after the last activation.

        They are on the host, or where the samples are if predictions stay there.
        """
        stays = dispatches(X)
        if check_input:
            X = validate(self, X, finite=False)
        stays = stays and is_on_device(X)
        dtype = dtype_of_predictions(X, self.coefs_[0])
        if X.shape[0] * sum(coef.size for coef in self.coefs_) < _FEW_PRODUCTS and self._is_plain():
            outputs = super()._forward_pass_fast(on_host(X), check_input=False)
            return np.asarray(outputs, dtype)
        with nullcontext() if self.numerics is None else numerics(self.numerics):
            model = self._network()
            raw = model.predict(checked_samples(self, X, model.dtype), on_host=not stays)
            return self._activated(raw, dtype)

    def _is_plain(self) -> bool:
        """Whether scikit-learn's own forward pass computes the same as the network."""
        on_host = (current_backend().name if self.backend is None else self.backend) == "numpy"
        fast = (self.numerics or current_numerics()) == "fast"
        theirs = self.activation in _THEIR_ACTIVATIONS and self.out_activation_ != "exp"
        return (
            on_host
            and fast
            and theirs
            and self.model is None
            and not self._others
            and self._target_units is None
        )

    def _activated(self, raw: Any, dtype: Any) -> Any:
        """The last activation of the network's outputs."""
        lib, activation = backend_of(raw), _OUTPUTS.get(self.out_activation_)
        outputs = raw if activation is None else activation(raw)
        if self._target_units is not None:
            mean, spread = map(lib.to_device, self._target_units)
            outputs = lib.xp.astype(outputs, mean.dtype) * spread + mean
        return lib.xp.astype(outputs, getattr(lib.xp, np.dtype(dtype).name), copy=False)

    def _predict(self, X: Any, check_input: bool = True) -> Any:
        return self._decided(self._forward_pass_fast(X, check_input))

    def _decided(self, outputs: Any) -> Any:
        """Classes, or numbers, from outputs after the last activation."""
        if self.out_activation_ == "softmax":
            return np.asarray(self.classes_[on_host(namespace(outputs).argmax(outputs, axis=1))])
        if outputs.shape[1] == 1:
            outputs = outputs[:, 0]
        return self._label_binarizer.inverse_transform(on_host(outputs)) if is_classifier(self) else outputs

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
        return SimpleNamespace(**(self._solver or {}))

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies keep: NumPy arrays, and not the network, which is built again when it is needed."""
        dropped = "_model", "_made_of", "_prepared"
        kept = {name: value for name, value in super().__getstate__().items() if name not in dropped}
        if isinstance(self.validation_set, (tuple, list)):
            kept["validation_set"] = tuple(map(on_host, self.validation_set))
        return kept
