"""MLPClassifier and MLPRegressor: scikit-learn's estimators, trained by xnn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar, cast

from sklearn import neural_network
from sklearn.base import _fit_context
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target
from sklearn.utils.validation import check_is_fitted

from xnn.callbacks import Callback
from xnn.layers import Sequential
from xnn.optimizers import Optimizer
from xnn.schedules import Schedule
from xnn.sklearn.engine import Engine
from xnn.sklearn.inputs import handed_back, namespace, on_host
from xnn.sklearn.network import ACTIVATION_NAMES

__all__ = ["MLPClassifier", "MLPRegressor"]

#: What the parameters may be that scikit-learn's estimators have differently, or do not have.
_CONSTRAINTS: dict[str, list[Any]] = {
    "activation": [StrOptions(ACTIVATION_NAMES)],
    "backend": [str, None],
    "numerics": [StrOptions({"fast", "exact"}), None],
    "threads": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
    "dtype": [StrOptions({"float32", "float64"}), None],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "batch_norm": ["boolean"],
    "optimizer": [str, Optimizer, None],
    "schedule": [str, callable, None],
    "callbacks": [list, tuple, None],
    "validation_set": [tuple, list, None],
    "model": [callable, None],
}


_Method = TypeVar("_Method", bound=Callable[..., Any])
#: scikit-learn's check of the parameters, around fit and partial_fit.
_checked = cast(Callable[[_Method], _Method], _fit_context(prefer_skip_nested_validation=True))
#: There is a partial_fit for solvers that take batches.
_if_batches = cast(Callable[[_Method], _Method], available_if(lambda estimator: estimator._check_solver()))


class MLPClassifier(Engine, neural_network.MLPClassifier):  # type: ignore[misc]
    """scikit-learn's multilayer perceptron for classes, trained by xnn.

    It has the parameters of sklearn.neural_network.MLPClassifier; `activation` may also be "gelu", "silu", "elu",
    "selu", "leaky_relu" or "softplus". From the same random_state come the same weights, within rounding. These
    parameters are new, and given by name:

    backend: "numpy", "cupy", "cupy:1" and so on; by default the one in force. Attributes are NumPy arrays on each.
    numerics: "fast" or "exact"; by default those in force. Exact numerics have sgd and adam, in float32.
    threads: how many threads BLAS may use in training; see `xnn.Trainer`. Default None.
    dtype: "float32" or "float64", of the training. Default None: that of the samples, but float32 for more than a
        million numbers (rows times features), and float64 for L-BFGS.
    dropout: the rate of a Dropout layer after each hidden layer, in [0, 1). Default 0.
    batch_norm: whether a BatchNorm layer stands before each activation. Default False.
    class_weight: "balanced", or a dict of the weight of each class. Default None, all alike.
    optimizer: an object or a name of xnn.optimizers ("adamw", "nadam", "rmsprop", ...), in place of the solver. A
        name gets learning_rate_init, and else its defaults: momentum, beta_1, epsilon and learning_rate have no
        effect then. alpha counts beside a weight decay of the optimizer's. Default None.
    schedule: of the learning rate: one of xnn.schedules, or its text, such as "cosine" or "step:factor=0.5". A text
        begins with the optimizer's rate, and lasts max_iter epochs: in partial_fit give steps, as in
        "cosine:steps=10000". Default None.
    callbacks: a list of xnn.callbacks. scikit-learn's own callbacks (1.9) are set by `set_callbacks`.
    validation_set: (X, y) or (X, y, sample_weight). early_stopping takes it in place of a part of the data. It is
        not transformed by a Pipeline.
    model: a function of the numbers of features and outputs, and perhaps a seed, that returns the network, an
        xnn.Sequential. It ends without softmax or sigmoid, and its layers have the dtype of the training. A function
        of two arguments draws the same weights for every random_state. hidden_layer_sizes and activation then have
        no effect. Default None.

    Attributes are scikit-learn's, and validation_loss_curve_: the loss on the validation samples after each epoch,
    without the penalty of alpha; None without such samples, and missing after lbfgs. model_: the network, an
    xnn.Sequential.

    Raises scikit-learn's errors, and those of xnn for the parameters that it adds: OptionError, ShapeError,
    BackendUnavailableError, NumericsError. docs/sklearn.md says where the two libraries differ.

    >>> from sklearn.datasets import load_iris
    >>> from xnn.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> MLPClassifier(max_iter=500, random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        backend: str | None = None,
        numerics: str | None = None,
        threads: int | str | None = None,
        dtype: str | None = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        class_weight: Any = None,
        optimizer: Optimizer | str | None = None,
        schedule: Schedule | str | None = None,
        callbacks: Sequence[Callback] | None = None,
        validation_set: tuple[Any, ...] | None = None,
        model: Callable[..., Sequential] | None = None,
    ) -> None:
        parameters = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.__dict__.update(parameters)
        self.loss = "log_loss"

    @_checked
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPClassifier:
        """Train on samples (n, features) and their labels, and return the estimator."""
        self._fit(X, y, sample_weight)
        return self

    @_if_batches
    @_checked
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train for one epoch more. classes: all labels, which the first call needs."""
        y, classes = on_host(y), on_host(classes)
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, (n, classes)."""
        return handed_back(self._chances(X), X)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`."""
        chances = self._chances(X)
        return handed_back(namespace(chances).log(chances), X)

    def _chances(self, X: Any) -> Any:
        check_is_fitted(self)
        outputs = self._forward_pass_fast(X)
        if outputs.shape[1] > 1:
            return outputs
        return namespace(outputs).concat([1 - outputs, outputs], axis=1)


class MLPRegressor(Engine, neural_network.MLPRegressor):  # type: ignore[misc]
    """scikit-learn's multilayer perceptron for numbers, trained by xnn.

    It has the parameters of sklearn.neural_network.MLPRegressor 1.9, `loss` first; `activation` may also be "gelu",
    "silu", "elu", "selu", "leaky_relu" or "softplus". From the same random_state come the same weights, within
    rounding. These parameters are new, and given by name:

    backend: "numpy", "cupy", "cupy:1" and so on; by default the one in force. Attributes are NumPy arrays on each.
    numerics: "fast" or "exact"; by default those in force. Exact numerics have sgd and adam, in float32.
    threads: how many threads BLAS may use in training; see `xnn.Trainer`. Default None.
    dtype: "float32" or "float64", of the training. Default None: that of the samples, but float32 for more than a
        million numbers (rows times features), and float64 for L-BFGS.
    dropout: the rate of a Dropout layer after each hidden layer, in [0, 1). Default 0.
    batch_norm: whether a BatchNorm layer stands before each activation. Default False.
    optimizer: an object or a name of xnn.optimizers ("adamw", "nadam", "rmsprop", ...), in place of the solver. A
        name gets learning_rate_init, and else its defaults: momentum, beta_1, epsilon and learning_rate have no
        effect then. alpha counts beside a weight decay of the optimizer's. Default None.
    schedule: of the learning rate: one of xnn.schedules, or its text, such as "cosine" or "step:factor=0.5". A text
        begins with the optimizer's rate, and lasts max_iter epochs: in partial_fit give steps, as in
        "cosine:steps=10000". Default None.
    callbacks: a list of xnn.callbacks. scikit-learn's own callbacks (1.9) are set by `set_callbacks`.
    validation_set: (X, y) or (X, y, sample_weight). early_stopping takes it in place of a part of the data. It is
        not transformed by a Pipeline.
    target_scaling: whether to train on targets of mean 0 and deviation 1; predictions are in the units of the
        targets, losses and coefs_ in those of the scaled ones. Large targets need it. In partial_fit mean and
        deviation are those of the first call. Default False.
    model: a function of the numbers of features and outputs, and perhaps a seed, that returns the network, an
        xnn.Sequential. It ends without softmax or sigmoid, and its layers have the dtype of the training. A function
        of two arguments draws the same weights for every random_state. hidden_layer_sizes and activation then have
        no effect. Default None.

    Attributes are scikit-learn's, and validation_loss_curve_: the loss on the validation samples after each epoch,
    without the penalty of alpha; None without such samples, and missing after lbfgs. model_: the network, an
    xnn.Sequential.

    Raises scikit-learn's errors, and those of xnn for the parameters that it adds: OptionError, ShapeError,
    BackendUnavailableError, NumericsError. docs/sklearn.md says where the two libraries differ.

    >>> from sklearn.datasets import load_diabetes
    >>> from xnn.sklearn import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor(target_scaling=True, early_stopping=True, learning_rate_init=0.01, random_state=0)
    >>> model.fit(X, y).score(X, y) > 0.5
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **_CONSTRAINTS,
        "loss": [StrOptions({"squared_error", "poisson"})],
        "target_scaling": ["boolean"],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        backend: str | None = None,
        numerics: str | None = None,
        threads: int | str | None = None,
        dtype: str | None = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        optimizer: Optimizer | str | None = None,
        schedule: Schedule | str | None = None,
        callbacks: Sequence[Callback] | None = None,
        validation_set: tuple[Any, ...] | None = None,
        target_scaling: bool = False,
        model: Callable[..., Sequential] | None = None,
    ) -> None:
        parameters = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.__dict__.update(parameters)

    @_checked
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train on samples (n, features) and targets (n,) or (n, outputs), and return the estimator."""
        self._fit(X, y, sample_weight)
        return self

    @_if_batches
    @_checked
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train for one epoch more."""
        self._fit(X, y, sample_weight, incremental=True)
        return self
