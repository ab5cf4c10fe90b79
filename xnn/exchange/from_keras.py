"""from_keras: puts the weights of a Keras file into a model with the same layers. Keras is not needed."""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xnn.errors import CorruptFileError, DTypeError, MissingExtraError, OptionError, ShapeError
from xnn.files import reading
from xnn.layers import Add, Container, Dense, Flatten, Layer, Reshape, Sequential
from xnn.layers.parameter import Parameter
from xnn.layers.sequential import known_shape
from xnn.options import check_shape, shown

__all__ = ["from_keras"]

#: The groups of a file that hold the weights of a layer of ours, by its class's name.
_GROUPS = {
    "Dense": "dense",
    "Conv2D": "conv2d",
    "BatchNorm": "batch_normalization",
    "LayerNorm": "layer_normalization",
    "Embedding": "embedding",
}


#: Arrays of our layers in Keras's order.
_ORDER = ("weight", "bias", "running_mean", "running_var")


#: Where each number of a sample stands in Keras; None if it stands where it stands here.
_Order = np.ndarray | None


class _Theirs(NamedTuple):
    """A layer of the file: its name in Keras, its group without a number, the number, and its arrays in order."""

    name: str
    kind: str
    number: int
    arrays: list[np.ndarray]


class _Ours(NamedTuple):
    """A layer with weights. order: the places of its inputs in Keras's order, if that is another; else None."""

    name: str
    layer: Layer
    order: _Order


def from_keras(
    path: str | os.PathLike[str],
    model: Sequential,
    names: Mapping[str, str] | None = None,
    input_shape: int | tuple[int, ...] | None = None,
) -> Sequential:
    """Put the weights of a Keras 3 network into a model with the same layers; all of them or none.

    path: a `.weights.h5` file of `network.save_weights`, or a `.keras` file of `network.save`.
    model: a Sequential of Dense, Conv2D, BatchNorm, LayerNorm and Embedding, and of layers without weights. It is
        also returned.
    names: the position of the layer for each layer of Keras that has weights, such as {"head": "5"}. By default the
        first Dense belongs to the first Dense, the second to the second, and so on for each kind.
    input_shape: the shape of one sample in xnn, channels first. It may be omitted as in `to_onnx`.

    Keras's images have their channels last. Kernels are turned, and so are the rows of the Dense behind a Flatten of
    images. Weights say nothing of options: Keras's BatchNormalization has epsilon 1e-3, and its momentum is 1 less
    ours. Compare the outputs of both for one batch.

    Raises MissingExtraError without the package h5py, DataNotFoundError and CorruptFileError for the file,
    OptionError if layers do not belong together, ShapeError and DTypeError for arrays that do not fit.

        >>> import tempfile
        >>> from pathlib import Path
        >>> import h5py, xnn
        >>> from xnn import exchange, layers
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "net.weights.h5")
        ...     with h5py.File(path, "w") as file:  # as Keras writes it
        ...         file["layers/dense/vars/0"] = [[1.0], [2.0], [3.0]]
        ...     model = exchange.from_keras(path, xnn.Sequential(layers.Dense(3, 1, bias=False)))
        >>> model.predict([[1.0, 10.0, 100.0]]).tolist()
        [[321.0]]

    Source: the documentation of Keras, "Save, serialize, and export models".
    """
    if not isinstance(model, Sequential):
        raise OptionError(f"from_keras puts weights into a Sequential, got {shown(model)}")
    if input_shape is None and (input_shape := known_shape(model)) is None:
        raise OptionError("from_keras needs input_shape=(channels, height, width), the shape of one sample")
    theirs = _read(path)
    ours = list(_weighted(model, check_shape("input_shape", input_shape)))
    ready = [pair for one, other in _pairs(path, theirs, ours, names) for pair in _fitting(path, one, other)]
    lib = model.backend
    arrays = [(parameter, lib.to_device(array)) for parameter, array in ready]
    for parameter, value in arrays:
        parameter.value = value
    model.numerics = None  # not trained by xnn
    return model


def _read(path: str | os.PathLike[str]) -> list[_Theirs]:
    """The layers with weights of a file."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtraError('files of Keras need the package h5py: pip install ".[keras]"') from error
    with reading(path):
        content = Path(path).read_bytes()
    found: list[_Theirs] = []
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            content = zipfile.ZipFile(io.BytesIO(content)).read("model.weights.h5")
        with h5py.File(io.BytesIO(content), "r") as file:
            groups: list[str] = []
            file.visit(groups.append)
            for group in groups:
                place = group.split("/")
                if (
                    place[0] != "layers"
                    or place[-1] != "vars"
                    or "seed_generator" in place
                    or not len(file[group])
                ):
                    continue
                kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", place[-2]).groups()  # type: ignore[union-attr]
                arrays = [np.asarray(file[group][key]) for key in sorted(file[group], key=int)]
                name = str(file[group].attrs.get("name", place[-2]))
                found.append(_Theirs(name, kind, int(number or 0), arrays))
    except Exception as error:  # of HDF5, which has many for a damaged file, or of the archive
        raise CorruptFileError(
            f"{path} is not a file of weights of Keras 3, .weights.h5 or .keras: {str(error)[:200]}"
        ) from error
    return found


def _weighted(model: Sequential, shape: tuple[int, ...]) -> Iterator[_Ours]:
    """The layers of the table with weights, in order. Raises OptionError where Keras has another order of numbers."""
    found: list[_Ours] = []

    def walk(layer: Layer, name: str, shape: tuple[int, ...], order: _Order) -> _Order:
        """Put the layers into `found`. order: that of the input. Returns that of the output."""
        names = [f"{name}.{position}" if name else str(position) for position in range(len(_inside(layer)))]
        after = layer.output_shape(shape)
        if isinstance(layer, Sequential):
            for place, inner in zip(names, layer, strict=True):
                order, shape = walk(inner, place, shape, order), inner.output_shape(shape)
            return order
        if isinstance(layer, Container):
            orders = [walk(inner, place, shape, order) for place, inner in zip(names, layer, strict=True)]
            return _of_branches(layer, name, shape, orders)
        if isinstance(layer, Flatten | Reshape) and len(shape) == 3 and len(after) == 1:
            channels, height, width = shape
            places = np.arange(height * width * channels).reshape(height, width, channels)
            return places.transpose(2, 0, 1).ravel()
        images = len(after) == 3 and after[0] > 1 and after[1:] != (1, 1)
        if isinstance(layer, Reshape) and (order is not None or (found and images)):
            raise _another_order(layer, name)
        if list(layer.named_state()):
            found.append(_Ours(name, layer, order))
        return None if isinstance(layer, Dense) else order

    walk(model, "", shape, None)
    return iter(found)


def _inside(layer: Layer) -> list[Layer]:
    return layer.layers if isinstance(layer, Container) else []


def _of_branches(layer: Container, name: str, shape: tuple[int, ...], orders: list[_Order]) -> _Order:
    """The order of what branches with these orders make together."""
    known = [order for order in orders if order is not None]
    if not known:
        return None
    if isinstance(layer, Add):
        if len(known) == len(orders) and all(np.array_equal(order, known[0]) for order in known):
            return known[0]
        raise _another_order(layer, name)
    joined: list[np.ndarray] = []
    for inner, order in zip(layer, orders, strict=True):
        width = math.prod(inner.output_shape(shape))
        joined.append(sum(map(len, joined)) + (np.arange(width) if order is None else order))
    return np.concatenate(joined)


def _another_order(layer: Layer, name: str) -> OptionError:
    return OptionError(
        f"layer {name}, {layer!r}, mixes numbers that stand in another order in Keras, whose channels are last: set "
        "such weights yourself, by layer.weight.value = array"
    )


def _pairs(
    path: Any, theirs: list[_Theirs], ours: list[_Ours], names: Mapping[str, str] | None
) -> Iterator[tuple[_Theirs, _Ours]]:
    """Each layer of the file with that of the model."""
    listed = f"{path} has {', '.join(one.name for one in theirs) or 'none'}; the model has " + (
        ", ".join(f"{other.name} {other.layer!r}" for other in ours) or "none"
    )
    if names is not None:
        if not isinstance(names, Mapping):
            raise OptionError(f"names must be a dict such as {{'head': '5'}}, got {shown(names)}: {listed}")
        places = {other.name: other for other in ours}
        if {one.name for one in theirs} != names.keys() or sorted(names.values()) != sorted(places):
            raise OptionError(f"names must give each layer with weights its position once: {listed}")
        yield from ((one, places[names[one.name]]) for one in theirs)
        return
    for kind in dict.fromkeys(
        [*(_GROUPS.get(type(other.layer).__name__, "") for other in ours), *(one.kind for one in theirs)]
    ):
        their = sorted((one for one in theirs if one.kind == kind), key=lambda one: one.number)
        our = [other for other in ours if _GROUPS.get(type(other.layer).__name__, "") == kind]
        if len(their) != len(our) or len({one.number for one in their}) < len(their):
            raise OptionError(
                f"the layers with weights do not belong together: {listed}. Build the same layers, or give names"
            )
        yield from zip(their, our, strict=True)


def _fitting(path: Any, theirs: _Theirs, ours: _Ours) -> Iterator[tuple[Parameter, np.ndarray]]:
    """Each array of a layer of the model with its numbers, in our order."""
    state = dict(ours.layer.own_state())
    parameters = [state[name] for name in _ORDER if name in state]
    shapes = [array.shape for array in theirs.arrays]
    arrays = [array.transpose(3, 2, 0, 1) if array.ndim == 4 else array for array in theirs.arrays]
    if ours.order is not None:
        turned = (
            1 if isinstance(ours.layer, Dense) else len(arrays)
        )  # a Dense's bias has the order of its outputs
        arrays = [
            array[ours.order] if place < turned and len(array) == len(ours.order) else array
            for place, array in enumerate(arrays)
        ]
    if [array.shape for array in arrays] != [parameter.shape for parameter in parameters]:
        raise ShapeError(
            f"{theirs.name} of {path} has arrays of shapes {shapes}, which do not fit layer {ours.name}, "
            f"{ours.layer!r}"
        )
    for parameter, array in zip(parameters, arrays, strict=True):
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = np.array(array, parameter.dtype, order="C")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise DTypeError(
                f"{theirs.name} of {path} has numbers of {array.dtype} that are no finite floats"
            )
        yield parameter, array
