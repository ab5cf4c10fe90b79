"""Warnings about the scale of samples and targets: pixels as bytes or scaled twice, prices, other scales later."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from xnn.backends import backend_of
from xnn.data.standardize import far_from_unit
from xnn.errors import ScaleWarning
from xnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    ElasticDeformation,
    Embedding,
    Flatten,
    GlobalAvgPool,
    Identity,
    Layer,
    LayerNorm,
    MaxPool2D,
    RandomAffine,
    Rescale,
    Reshape,
    Sequential,
)
from xnn.losses import Loss

__all__ = ["as_scaled", "never_warn", "warn_of_samples", "warn_of_targets"]

# Layers that leave the size of the numbers as it is, more or less.
_KEEP = (
    Flatten, Reshape, Identity, Dropout, RandomAffine, ElasticDeformation, MaxPool2D, AvgPool2D, GlobalAvgPool,
)  # fmt: skip
# How many samples are looked at. The root mean square of one is 1 for standardized columns, below 1 for pixels in
# [0, 1], and about 80 for pixels in [0, 255]. Columns of ages or years lie far above 20, temperatures in Celsius not.
# Large samples are fewer, so that about _VALUES numbers are copied.
_LOOKED_AT, _FEWEST, _VALUES, _LARGE = 256, 16, 2**16, 20.0
# The deviation of pixels in [0, 1] is about 0.3, and about 0.001 if they are divided by 255 once more. Data that are
# scaled already are not larger than _SCALED.
_SMALL, _SCALED = 0.02, 10.0

# How many times larger than those of training samples of validation may be, and from how many samples one can tell.
_FACTOR, _ENOUGH = 20.0, 8

#: Of what there are warnings: samples, targets, and samples in another scale than those of training.
_SUBJECTS = frozenset({"samples", "targets", "another scale"})
#: What each model was warned about.
_warned: weakref.WeakKeyDictionary[Sequential, set[str]] = weakref.WeakKeyDictionary()
#: The root mean squares of some of the samples that each model was trained on last.
_trained_on: weakref.WeakKeyDictionary[Sequential, np.ndarray] = weakref.WeakKeyDictionary()


def never_warn(model: Sequential) -> None:
    """Give no ScaleWarning about this model's data, for callers with warnings of their own."""
    _warned[model] = {*_SUBJECTS}


def _is_warned_of_all(model: Sequential) -> bool:
    return _warned.get(model) == _SUBJECTS


def _warn_once(model: Sequential, subject: str, message: str, stacklevel: int) -> None:
    """Give a ScaleWarning about this subject, unless the model had one; stacklevel as in `warn_of_samples`."""
    said = _warned.setdefault(model, set())
    if message and subject not in said:
        said.add(subject)
        warnings.warn(message, ScaleWarning, stacklevel=stacklevel + 2)


def warn_of_targets(model: Sequential, loss: Loss, y: np.ndarray, stacklevel: int) -> None:
    """Warn, once for each model, if the training targets of a regression are far from unit size.

    No warning for losses of classes and probabilities, nor for a model that ends in a Rescale. y: the targets, on the
    host. stacklevel: as in `warn_of_samples`.
    """
    if _is_warned_of_all(model):
        return
    last = [*_flattened(model)][-1]
    classes = loss.binary or loss.usual_metrics or getattr(getattr(loss, "op", None), "over_classes", False)
    if classes or y.ndim < 2 or isinstance(last, Rescale):
        return
    size = far_from_unit(y)
    if size is not None:
        _warn_once(
            model,
            "targets",
            f"training targets (typically {size:.3g}) are far from unit size, which makes training slow or unstable: "
            "scaling = data.standardize(y), train on scaling(y), and append scaling.inverse() to the trained layers",
            stacklevel,
        )


def _warn_of_another_scale(model: Sequential, values: np.ndarray, role: str, stacklevel: int) -> None:
    """Warn, once for each model, of samples that are 20 times larger or smaller than those that it was trained on.

    The arguments are those of `warn_of_samples`; samples of training are only remembered. No warning for a few
    samples, for the integers of an Embedding, or if one of the smaller samples is as large as half of the larger.
    """
    with np.errstate(over="ignore"):
        sizes = np.sqrt(np.mean(np.square(values.reshape(len(values), -1)), axis=1))
    if role == "training":
        _trained_on[model] = sizes
        return
    known = _trained_on.get(model)
    if known is None or isinstance(model.first_layer, Embedding) or min(len(known), len(sizes)) < _ENOUGH:
        return
    small, large = sorted((known, sizes), key=np.median)
    if 0.0 < np.median(small) * _FACTOR <= np.median(large) and np.max(small) < np.median(large):
        _warn_once(
            model,
            "another scale",
            f"{role} samples ({len(sizes)} were looked at) have a root mean square of {np.median(sizes):.3g}, those "
            f"of training {np.median(known):.3g}: give the model all samples in the scale that it was trained on",
            stacklevel,
        )


def warn_of_samples(model: Sequential, x: Any, role: str, stacklevel: int) -> None:
    """Warn of samples that are badly scaled for the model, or scaled otherwise than those that it was trained on.

    x: the samples as they were given, an array of any backend. At most a few hundred are looked at.
    role: "training", "validation" or "evaluation".
    stacklevel: how many calls lie between the user's line and this one.
    """
    if _is_warned_of_all(model):
        return
    given = _some(x)
    _warn_of_another_scale(model, given, role, stacklevel + 1)
    if role == "training":
        _warn_of_scale(model, given, stacklevel + 1)


def _warn_of_scale(model: Sequential, given: np.ndarray, stacklevel: int) -> None:
    """Warn, once for each model, if its first weights get numbers that are far too large or were scaled twice.

    No warning if the model does not begin with a Dense or Conv2D that learns, if BatchNorm or LayerNorm stands
    before or after it, and for the integers of an Embedding.
    """
    flat = list(_flattened(model))
    values, scaled = given, False
    for layer, following in zip(flat, [*flat[1:], None], strict=True):
        if isinstance(layer, Rescale):
            rescaled = _rescaled(values, layer)
            if rescaled is None:
                return
            values, scaled = rescaled, True
        elif isinstance(layer, (Dense, Conv2D)):
            learns = not layer.weight.frozen and not isinstance(following, (BatchNorm, LayerNorm))
            message = _fault(given, values, scaled, layer) if learns else ""
            _warn_once(model, "samples", message, stacklevel)
            return
        elif not isinstance(layer, _KEEP):
            return


def as_scaled(model: Any, samples: np.ndarray) -> np.ndarray:
    """What the layers with which a model begins make of these samples, if they only scale them; else the samples.

    samples: on the host, (n, ...), of which the first layer takes each.
    """
    values = samples.astype(np.float64)
    for layer in _flattened(model) if isinstance(model, Sequential) else ():
        if isinstance(layer, Rescale):
            scaled = _rescaled(values, layer)
            if scaled is None:
                break
            values = scaled
        elif not isinstance(layer, _KEEP):
            break
    return values


def _flattened(model: Sequential) -> Iterator[Layer]:
    """The layers of a model in order, those of models inside it too."""
    for layer in model.layers:
        if type(layer) is Sequential:
            yield from _flattened(layer)
        else:
            yield layer


def _some(x: Any) -> np.ndarray:
    """Some samples from the whole length of x, on the host in float64."""
    number = min(_LOOKED_AT, max(_FEWEST, _VALUES // max(1, math.prod(x.shape[1:]))))
    part = x[:: max(1, x.shape[0] // number), ...]
    return np.asarray(backend_of(part).to_host(part), dtype=np.float64)


def _rescaled(values: np.ndarray, layer: Rescale) -> np.ndarray | None:
    """What a Rescale makes of the samples, flat or not. None if it takes another shape, as behind a pooling layer."""
    shift = 0.0 if layer.shift is None else layer.shift
    shape = np.broadcast_shapes(*(np.shape(number) for number in (layer.scale, layer.offset, shift)))
    if shape and values[0].size == math.prod(shape):
        values = values.reshape(len(values), *shape)
    try:
        return layer.on_host(values)
    except ValueError:
        return None


def _fault(given: np.ndarray, values: np.ndarray, scaled: bool, layer: Layer) -> str:
    """What is wrong with the scale of the numbers that a layer gets, and what to do; "" if nothing is."""
    with np.errstate(over="ignore", invalid="ignore"):
        # Of the sample in the middle, so that a few damaged samples do not count.
        size = np.median(np.sqrt(np.mean(np.square(values.reshape(len(values), -1)), axis=1)))
        spread = np.std(values)
    low, high = np.min(given), np.max(given)
    runs = f"training samples ({len(given)} were looked at) run from {low:.6g} to {high:.6g}"
    if size > _LARGE:
        whole = low >= 0 and high <= 255 and bool(np.all(given == np.round(given)))
        pixels = "begin the model with layers.Rescale(1 / 255) if they are pixels, and " if whole else ""
        return (
            f"{runs} and reach {layer!r} with a root mean square of {size:.3g}, where about 1 trains best: {pixels}"
            "standardize the columns of a table: data.standardize(x) makes the first layer that does so"
        )
    if scaled and spread < _SMALL and low < high and max(-low, high) <= _SCALED:
        return (
            f"{runs}, so that they are scaled already, and Rescale leaves them a deviation of {spread:.2g}: "
            "remove the Rescale, or give the model the numbers that it is for"
        )
    return ""
