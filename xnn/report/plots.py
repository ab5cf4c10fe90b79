"""Plots for papers, by matplotlib (extra `plot`): a confusion matrix, weights, samples; as PNG, SVG or Figure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends.host_arrays import as_host_array
from xnn.errors import OptionError, ShapeError
from xnn.files import check_matplotlib, check_plot, save_figure
from xnn.layers import Sequential
from xnn.metrics import ConfusionMatrix
from xnn.options import check_count, shown
from xnn.report.samples import image_of, pixels_of
from xnn.report.snapshots import first_weights, tiles_of

__all__ = ["plot_confusion", "plot_samples", "plot_weights"]

_Path = str | os.PathLike[str] | None


def plot_confusion(model: Sequential, x: Any, y: Any, path: _Path = None, names: Sequence[Any] = ()) -> Any:
    """Draw the confusion matrix of a classifier: a row for each true class, a column for each predicted one.

    model: with outputs (n, classes). x: samples (n, ...). y: labels (n,), integers from 0.
    path: the file to write, PNG or SVG by its ending. Default None: the matplotlib Figure is returned.
    names: of class 0, 1, ... Default (): their numbers.

    Raises ShapeError, DTypeError or LabelError for samples or labels that do not fit, OptionError for a file that
    cannot be written, MissingExtraError without matplotlib.

        >>> import numpy as np, xnn
        >>> from xnn.errors import MissingExtraError
        >>> from xnn.report import plot_confusion
        >>> model = xnn.Sequential(xnn.layers.Dense(4, 3), seed=0)
        >>> try:
        ...     figure = plot_confusion(model, np.eye(4), [0, 1, 2, 0])
        ... except MissingExtraError:
        ...     figure = None
    """
    figure = _figure(path, 5.2, 4.6)
    matrix = np.asarray(ConfusionMatrix()(model.predict(x), y))
    labels = [str(name) for name in names] or [str(n) for n in range(len(matrix))]
    if len(labels) != len(matrix):
        raise OptionError(
            f"names has {len(labels)} names, and the model {len(matrix)} classes: give one to each"
        )
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) <= 20:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    return _done(figure, path)


def plot_weights(model: Sequential, path: _Path = None, image: tuple[int, int] | None = None) -> Any:
    """Draw the weights of the first layer that has a matrix or filters: blue is below 0, red above.

    path: the file to write, PNG or SVG by its ending. Default None: the matplotlib Figure is returned.
    image: height and width of a sample. Default None: samples with a square number of features, such as 784, are
        taken for images.

    Of a Dense layer on images each unit is a tile, of a Conv2D each filter; up to 64 are drawn. Other weights are one
    matrix. Raises OptionError for a model without such weights, MissingExtraError without matplotlib.

        >>> import xnn
        >>> from xnn.errors import MissingExtraError
        >>> from xnn.report import plot_weights
        >>> try:
        ...     figure = plot_weights(xnn.Sequential(xnn.layers.Dense(64, 10), seed=0))
        ... except MissingExtraError:
        ...     figure = None
    """
    weights = {name: np.asarray(model.backend.to_host(p.value)) for name, p in model.named_parameters()}
    name = first_weights(weights)
    if name is None:
        raise OptionError(f"plot_weights needs a layer with a matrix or filters, got {shown(model)}")
    array = weights[name]
    side = math.isqrt(array.shape[0])
    square = (side, side) if array.ndim == 2 and side > 1 and side * side == array.shape[0] else None
    tiles = tiles_of(array, image or square)[0][:64]
    largest = float(np.abs(tiles).max(initial=0.0)) or 1.0
    drawn = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    figure, pictures = _grid(path, list(tiles), [""] * len(tiles), **drawn)
    figure.colorbar(pictures[0], ax=figure.axes, shrink=0.6)
    return _done(figure, path)


def plot_samples(
    x: Any,
    titles: Sequence[Any] = (),
    path: _Path = None,
    image: tuple[int, int] | None = None,
    most: int = 25,
) -> Any:
    """Draw samples that are images, such as those that a model gets wrong.

    x: (n, features) or (n, ..., height, width). titles: a text above each. Default (): none.
    path: the file to write, PNG or SVG by its ending. Default None: the matplotlib Figure is returned.
    image: height and width of a sample. Default None: by its shape, or a square number of bytes.
    most: how many are drawn, the first ones. Default 25.

    Raises ShapeError for samples that are no images, OptionError for too few titles, MissingExtraError without
    matplotlib.

        >>> import numpy as np
        >>> from xnn.errors import MissingExtraError
        >>> from xnn.report import plot_samples
        >>> try:
        ...     figure = plot_samples(np.zeros((3, 8, 8)), ["a", "b", "c"])
        ... except MissingExtraError:
        ...     figure = None
    """
    x = np.asarray(as_host_array(x, "x"))
    image = image or (image_of(x) if x.ndim > 1 else None)
    if image is None or not len(x) or math.prod(x.shape[1:]) % math.prod(image):
        raise ShapeError(
            f"plot_samples needs images (n, ..., height, width), got {x.shape}; image=(height, width)"
        )
    count = min(len(x), check_count("most", most))
    if 0 < len(titles) < count:
        raise OptionError(f"titles has {len(titles)} texts for {count} samples: give one to each, or none")
    texts = [str(title) for title in titles[:count]] or [""] * count
    pixels = [pixels_of(sample.ravel(), image, max(image)) for sample in x[:count]]
    return _done(_grid(path, pixels, texts, cmap="gray", vmin=0, vmax=255)[0], path)


def _figure(path: _Path, width: float, height: float) -> Any:
    """An empty figure, after a check that its file can be written."""
    if path is None:
        check_matplotlib()
    else:
        check_plot(path)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(path: _Path, images: list[np.ndarray], titles: list[str], **drawn: Any) -> tuple[Any, list[Any]]:
    """A figure of images side by side, and the pictures in it. drawn: options of imshow."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    figure, pictures = _figure(path, 1.1 * columns + 1.0, 1.2 * rows + 0.4), []
    for place, (pixels, title) in enumerate(zip(images, titles, strict=True), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_axis_off()
        axes.set_title(title, fontsize="small")
        pictures.append(axes.imshow(pixels, interpolation="nearest", **drawn))
    return figure, pictures


def _done(figure: Any, path: _Path) -> Any:
    if path is None:
        return figure
    save_figure(figure, path)
    return None
