"""The network of an estimator: how it is built, and its weights as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np

from xnn import layers
from xnn.errors import OptionError, ShapeError
from xnn.initializers import Zeros
from xnn.layers import Dense, Layer, Sequential
from xnn.options import takes
from xnn.runs.names import ACTIVATIONS
from xnn.training.scale import never_warn

__all__ = ["ACTIVATION_NAMES", "Weights", "build", "dense_layers", "first_weights", "put", "taken", "widths"]

#: scikit-learn's own names of activations, and the names of xnn's layers.
_NAMES = {"logistic": "sigmoid", "identity": ""}
#: What the parameter `activation` may be.
ACTIVATION_NAMES = {*_NAMES, *(name.replace("-", "_") for name in ACTIVATIONS)}

#: A network's weights as NumPy arrays: coefs_ and intercepts_, and all other parameters and buffers by name.
Weights = tuple[list[np.ndarray], list[np.ndarray], dict[str, np.ndarray]]


def widths(hidden_layer_sizes: Any) -> list[int]:
    """The widths of the hidden layers. Raises ValueError, as scikit-learn does, for one that is not above 0."""
    sizes = list(hidden_layer_sizes) if hasattr(hidden_layer_sizes, "__iter__") else [hidden_layer_sizes]
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [index(size) for size in sizes]


def build(
    estimator: Any, features: int, hidden: Sequence[int], outputs: int, dtype: str, seed: int = 0
) -> Sequential:
    """The network that an estimator's parameters describe, on the current backend.

    hidden: the widths of the hidden layers. seed: of the initial weights, where the parameter `model` builds it.
    Raises OptionError or ShapeError if that function returns no network of this many outputs.
    """
    if estimator.model is not None:
        model = _of_users(estimator, features, outputs, seed)
    else:
        model = Sequential(*_layers(estimator, features, hidden, outputs, dtype))
    never_warn(model)
    return model


def _layers(estimator: Any, features: int, hidden: Sequence[int], outputs: int, dtype: str) -> list[Layer]:
    """The layers of a multilayer perceptron; its weights are 0."""
    name = _NAMES.get(estimator.activation, estimator.activation).replace("_", "-")
    stack: list[Layer] = []
    for width in hidden:
        stack.append(Dense(features, width, weight_init=Zeros(), dtype=dtype))
        stack += [layers.BatchNorm(width, dtype=dtype)] if estimator.batch_norm else []
        stack += [ACTIVATIONS[name]()] if name else []
        stack += [layers.Dropout(estimator.dropout)] if estimator.dropout else []
        features = width
    return [*stack, Dense(features, outputs, weight_init=Zeros(), dtype=dtype)]


def _of_users(estimator: Any, features: int, outputs: int, seed: int) -> Sequential:
    """The network that the user's function builds."""
    function = estimator.model
    if estimator.batch_norm or estimator.dropout:
        raise OptionError(
            "batch_norm and dropout have no effect on the network of model=: put BatchNorm and Dropout layers into it"
        )
    seeds = (seed,) if takes(function, 0, 0, 0) else ()
    if isinstance(function, Layer) or not takes(function, 0, 0, *seeds):
        raise OptionError(
            f"model={function!r} must be a function of the numbers of features and outputs, and perhaps a seed, that "
            "returns an xnn.Sequential"
        )
    model = function(features, outputs, *seeds)
    if not isinstance(model, Sequential):
        raise OptionError(
            f"model={function!r} returned {type(model).__name__}: it must return an xnn.Sequential, built from the "
            "numbers of features and outputs"
        )
    shape = model.output_shape((features,))
    if shape != (outputs,):
        raise ShapeError(
            f"the network of model={function!r} has outputs of shape {shape} for {features} features: the last layer "
            f"must have {outputs} outputs, without a softmax or sigmoid"
        )
    if estimator.dtype not in (None, model.dtype):
        raise OptionError(
            f"the network of model={function!r} has layers of {model.dtype}, and dtype={estimator.dtype!r}: make "
            "them the same"
        )
    return model


def first_weights(estimator: Any, model: Sequential, random: np.random.RandomState) -> None:
    """Draw the initial weights as scikit-learn does, with the same numbers from the same random state.

    Source: Glorot and Bengio, AISTATS 2010.
    """
    factor = 2.0 if estimator.activation == "logistic" else 6.0
    for layer in dense_layers(model):
        bound = np.sqrt(factor / (layer.inputs + layer.outputs))
        for parameter in (layer.weight, layer.bias):
            assert parameter is not None
            drawn = random.uniform(-bound, bound, parameter.shape)
            parameter.value = model.backend.to_device(drawn.astype(parameter.dtype))


def dense_layers(model: Sequential) -> list[Dense]:
    """The Dense layers, whose weights are coefs_ and intercepts_."""
    return [layer for layer in model.all_layers() if isinstance(layer, Dense)]


def _beside(model: Sequential, dense: Sequence[Dense]) -> list[tuple[str, Any]]:
    """The parameters and buffers that are not those of these layers, by name."""
    ours = {id(p) for layer in dense for p in (layer.weight, layer.bias) if p is not None}
    if len(model.parameters()) == len(ours) and not model.buffers():
        return []
    return [(name, array) for name, array in model.named_state() if id(array) not in ours]


def taken(model: Sequential, dtype: Any) -> Weights:
    """A copy of a network's weights; coefs_ and intercepts_ in this dtype."""
    lib, dense = model.backend, dense_layers(model)

    def copied(parameter: Any, dtype: Any = None) -> np.ndarray:
        return np.array(lib.to_host(parameter.value), dtype=dtype)

    biases = [copied(d.bias, dtype) if d.bias is not None else np.zeros(d.outputs, dtype) for d in dense]
    return (
        [copied(d.weight, dtype) for d in dense],
        biases,
        {name: copied(p) for name, p in _beside(model, dense)},
    )


def put(
    model: Sequential,
    coefs: Sequence[np.ndarray],
    intercepts: Sequence[np.ndarray],
    others: Mapping[str, np.ndarray],
) -> None:
    """Assign weights to a network. NumPy arrays of its dtype are shared with it."""
    to_device, dense = model.backend.to_device, dense_layers(model)
    for layer, weight, bias in zip(dense, coefs, intercepts, strict=True):
        layer.weight.value = to_device(np.asarray(weight))
        if layer.bias is not None:
            layer.bias.value = to_device(np.asarray(bias))
    there = dict(_beside(model, dense))
    if there.keys() != others.keys():
        raise OptionError(
            "the parameters batch_norm or model were changed after the fit, and describe another network: fit again"
        )
    for name, parameter in there.items():
        parameter.value = to_device(np.array(others[name]))
