"""A warning at the start of `fit` about samples that are badly scaled: pixels as bytes, or scaled twice."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from xnn.backends import backend_of
from xnn.errors import ScaleWarning
from xnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    ElasticDeformation,
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

__all__ = ["warn_of_scale"]

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

#: The models that were warned about.
_warned: weakref.WeakSet[Sequential] = weakref.WeakSet()


def warn_of_scale(model: Sequential, x: Any, stacklevel: int) -> None:
    """Warn, once for each model, if its first weights get numbers that are far too large or were scaled twice.

    x: the training samples as they were given, an array of any backend. At most a few hundred are looked at.
    stacklevel: how many calls lie between the user's line and this one.

    No warning if the model does not begin with a Dense or Conv2D that learns, if BatchNorm or LayerNorm stands
    before or after it, and for the integers of an Embedding.
    """
    flat = list(_flattened(model))
    given = _some(x)
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
            if message and model not in _warned:
                _warned.add(model)
                warnings.warn(message, ScaleWarning, stacklevel=stacklevel + 1)
            return
        elif not isinstance(layer, _KEEP):
            return


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
