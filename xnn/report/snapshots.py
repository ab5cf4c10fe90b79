"""The weights at some steps: the first layer as pictures, and histograms of weights, gradients and outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xnn.backends import backend_of, numerics
from xnn.errors import XnnError
from xnn.files import by_numbers
from xnn.graph.autograd import value_and_grad
from xnn.layers import Container, Sequential
from xnn.report.layers import is_plain
from xnn.report.picture import data_uri, sheet, small
from xnn.report.run import Run, Snapshot, rounded

__all__ = ["first_weights", "snapshots_of", "tiles_of"]

_MOST = 24  # snapshots
_BINS = 31
_SAMPLES = 256  # that gradients and outputs are computed for
_TENSORS = 24  # of a kind
_TILES, _SIDE = 64, 128  # of the pictures of weights, and the pixels of a tile's side

#: Arrays by kind and name: "weights", "gradients", "outputs".
Arrays = dict[str, dict[str, np.ndarray]]


def snapshots_of(run: Run, budget: int) -> dict[str, Any] | str:
    """The snapshots, each with pictures and histograms, or why there are none. budget: bytes for pictures.

    All histograms of a tensor have the same limits, so that those of two steps can be compared.
    """
    if not run.snapshots:
        return run.missing.get("snapshots", "No weights are known.")
    chosen = run.snapshots
    if len(chosen) > _MOST:
        chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, _MOST).astype(int)]
    without = _why_no_gradients(run)
    limits: dict[tuple[str, str], tuple[float, float]] = {}
    for snapshot in chosen:
        for kind, name, array in _each(_arrays_of(run, snapshot)):
            low, high = limits.get((kind, name), (np.inf, -np.inf))
            finite = array[np.isfinite(array)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            limits[kind, name] = low, high
    steps = []
    for snapshot in chosen:
        arrays = _arrays_of(run, snapshot)
        histograms: dict[str, dict[str, Any]] = {"weights": {}, "gradients": {}, "outputs": {}}
        for kind, name, array in _each(arrays):
            histograms[kind][name] = _histogram(array, *limits[kind, name])
        about = {"step": snapshot.step, "epoch": snapshot.epoch, "name": snapshot.name}
        steps.append(
            {**about, "picture": _picture(run, arrays["weights"], budget // len(chosen)), **histograms}
        )
    thinned = (
        f"{len(chosen)} of {len(run.snapshots)} checkpoints are shown."
        if len(chosen) < len(run.snapshots)
        else ""
    )
    return {"steps": steps, "notes": [note for note in (without, thinned) if note]}


def _each(arrays: Arrays) -> Iterator[tuple[str, str, np.ndarray]]:
    for kind, named in arrays.items():
        names = list(named)
        for name in names if len(names) <= _TENSORS else [*names[: _TENSORS // 2], *names[-_TENSORS // 2 :]]:
            if named[name].size:
                yield kind, name, named[name]


def _why_no_gradients(run: Run) -> str:
    """Why there are no gradients or outputs of layers, "" if there are."""
    if run.model is None or run.examples is None or not len(run.examples.x):
        return "Gradients and outputs of layers need a model and samples: " + run.missing.get(
            "classes", "name the data (--data)."
        )
    if run.loss is None:
        return run.missing.get("gradients", "Gradients need the loss, which is not known here.")
    return ""


def _arrays_of(run: Run, snapshot: Snapshot) -> Arrays:
    """The weights of a snapshot, and for some samples the gradients of the loss and the outputs of each layer."""
    weights = dict(sorted(snapshot.load().items(), key=lambda item: by_numbers(item[0])))
    arrays: Arrays = {"weights": weights, "gradients": {}, "outputs": {}}
    if run.model is None or run.examples is None or not len(run.examples.x):
        return arrays
    model = copy.deepcopy(run.model)
    for name, parameter in model.named_state():
        if name not in weights or weights[name].shape != parameter.shape:
            return arrays
        parameter.value = model.backend.to_device(np.asarray(weights[name], dtype=parameter.dtype))
    x = np.asarray(run.examples.x[:_SAMPLES])
    with numerics("fast"), np.errstate(all="ignore"):
        arrays["outputs"] = _outputs(model, x)
        if run.loss is not None:
            arrays["gradients"] = _gradients(run, model, x)
    return arrays


def _outputs(model: Sequential, x: np.ndarray) -> dict[str, np.ndarray]:
    value = model.backend.to_device(model.prepare(x))
    if is_plain(model):
        return dict(_of_layers(model, value, ""))
    return {type(model).__name__: np.asarray(model.backend.to_host(model.run(value, False)))}


def _of_layers(model: Container, value: Any, place: str) -> Iterator[tuple[str, np.ndarray]]:
    """The outputs of all layers in a model, those of inner layers after those of the layer that holds them.

    value: what the model takes. place: where it stands, such as "3.1.", "" for the whole model.
    """
    for number, layer in enumerate(model.layers):
        after = layer.run(value, False)
        yield f"{place}{number} {type(layer).__name__}", np.asarray(model.backend.to_host(after))
        if isinstance(layer, Container) and is_plain(layer):
            yield from _of_layers(layer, value, f"{place}{number}.")
        if isinstance(model, Sequential):  # branches of others all take the same
            value = after


def _gradients(run: Run, model: Sequential, x: np.ndarray) -> dict[str, np.ndarray]:
    """The gradients of the mean loss of the samples, dropout and augmentation off."""
    lib, loss = model.backend, copy.deepcopy(run.loss)
    assert run.examples is not None
    assert loss is not None
    named = [(name, p) for name, p in model.named_parameters() if not p.frozen]
    samples = lib.to_device(model.prepare(x))
    targets = lib.to_device(run.targets(np.asarray(run.examples.y[: len(x)])))
    try:
        _, found = value_and_grad(lambda _: loss(model(samples), targets))([p for _, p in named])
    except XnnError:  # targets of other data than the loss takes
        return {}
    return {
        name: np.asarray(backend_of(gradient).to_host(gradient))
        for (name, _), gradient in zip(named, found, strict=True)
    }


def _histogram(array: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """How many numbers lie in each bin between the limits; their mean, deviation, norm; how many are not finite."""
    numbers = array[np.isfinite(array)].astype(np.float64)
    if not numbers.size:
        return {"counts": [], "low": None, "high": None, "mean": None, "deviation": None, "norm": None,
                "lost": int(array.size)}  # fmt: skip
    if high <= low:
        low, high = low - 0.5, low + 0.5
    counts = np.histogram(numbers, bins=_BINS, range=(low, high))[0]
    measures = numbers.mean(), numbers.std(), np.sqrt((numbers * numbers).sum())
    mean, deviation, norm = (rounded(float(number)) for number in measures)
    return {
        "counts": counts.tolist(),
        "low": rounded(low),
        "high": rounded(high),
        "mean": mean,
        "deviation": deviation,
        "norm": norm,
        "lost": int(array.size - numbers.size),
    }


def first_weights(weights: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first array with two axes or more; None if there is none."""
    return next((name for name, array in weights.items() if array.ndim >= 2), None)


def _picture(run: Run, weights: Mapping[str, np.ndarray], budget: int) -> dict[str, Any] | None:
    """The weights of the first layer as a picture in a text, with what it shows in words; None if there are none.

    budget: about how many bytes it may have.
    """
    first = first_weights(weights)
    if first is None:
        return None
    array = weights[first]
    tiles, what = tiles_of(array, None if run.examples is None else run.examples.image)
    tiles = np.stack([small(tile, _SIDE) for tile in tiles[:_TILES]])
    fits = max(1, int(budget / 1.4) // ((tiles.shape[1] + 1) * (tiles.shape[2] + 1)))
    if fits < len(tiles):
        tiles = tiles[:fits]
    if tiles.shape[0] == 1 and tiles[0].size * 1.4 > budget:
        tiles = np.stack([small(tile, 48) for tile in tiles])
    largest = np.abs(array[np.isfinite(array)]).max(initial=0.0)
    there = array.shape[-1 if array.ndim == 2 else 0]
    shown = "" if len(tiles) in (1, there) else f", {len(tiles)} of {there}"
    alt = f"{first}: {what}{shown}. Blue is below 0, red above; the largest is {rounded(float(largest))}."
    return {"uri": data_uri(sheet(tiles)), "alt": alt}


def tiles_of(array: np.ndarray, image: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """The pictures (n, height, width) of an array of weights, and what they show."""
    if array.ndim == 2 and image is not None and array.shape[0] % (image[0] * image[1]) == 0:
        channels = array.shape[0] // (image[0] * image[1])
        tiles = array.T.reshape(-1, channels, *image).mean(axis=1)
        return tiles, "the weights of each unit, laid out as the image" + _of(channels)
    if array.ndim == 4:
        return array.mean(axis=1), "the filters" + _of(array.shape[1])
    flat = array.reshape(array.shape[0], -1)
    return flat[None], f"the matrix of {flat.shape[0]} x {flat.shape[1]} weights, a row for each input"


def _of(channels: int) -> str:
    return "" if channels == 1 else f" (means over {channels} channels)"
