"""The architecture: each layer with the shapes that it takes and gives, its parameters and its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from xnn.errors import XnnError
from xnn.layers import Add, Container, Layer, Parallel, Sequential
from xnn.layers.flops import flops_of
from xnn.layers.sequential import known_shape
from xnn.report.run import Run

__all__ = ["is_plain", "layers_of", "sample_shape"]

_LONGEST = 200  # characters of a layer's text


def sample_shape(run: Run) -> tuple[int, ...] | None:
    """The shape of a sample that the model takes; None if nobody says it."""
    if run.examples is not None:
        return tuple(run.examples.x.shape[1:])
    return None if run.model is None else known_shape(run.model)


def layers_of(run: Run) -> dict[str, Any] | str:
    """The rows of all layers and their totals, or why there are none.

    A row has the layer's text, its depth inside other layers, its number if it is a branch of Add or Parallel, the
    shapes of a sample before and after it, the number of its parameters, whether they are trained, and its
    floating-point operations for a sample; None if unknown.
    """
    if run.model is None:
        return run.missing.get("layers", "The model is not known.")
    shape = sample_shape(run)
    if shape is None:
        return "The shape of a sample is not known: name the data (--data)."
    try:
        after, operations = run.model.output_shape(shape), flops_of(run.model, shape)
        rows = list(_rows(run.model, shape, 0)) if is_plain(run.model) else [_row(run.model, shape, after, 0)]
    except XnnError as error:
        return f"The model does not take samples of shape {shape}: {error}"
    return {
        "rows": rows,
        "input": list(shape),
        "output": list(after),
        "parameters": sum(p.size for p in run.model.parameters()),
        "operations": operations,
    }


def _rows(model: Container, shape: tuple[int, ...], depth: int) -> Iterator[dict[str, Any]]:
    branches = not isinstance(model, Sequential)
    for number, layer in enumerate(model.layers, 1):
        after = layer.output_shape(shape)
        yield {**_row(layer, shape, after, depth), "branch": number if branches else 0}
        if isinstance(layer, Container) and is_plain(layer):
            yield from _rows(layer, shape, depth + 1)
        if not branches:  # which all take the same
            shape = after


def is_plain(model: Container) -> bool:
    """Whether a container computes by xnn's own rule, so that it is known what its inner layers take."""
    kind = next(kind for kind in (Sequential, Add, Parallel, Container) if isinstance(model, kind))
    return kind is not Container and type(model).compute is kind.compute


def _row(layer: Layer, before: tuple[int, ...], after: tuple[int, ...], depth: int) -> dict[str, Any]:
    parameters = layer.parameters()
    text = type(layer).__name__ if isinstance(layer, Container) and is_plain(layer) else repr(layer)
    return {
        "text": text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...",
        "kind": type(layer).__name__,
        "depth": depth,
        "before": list(before),
        "after": list(after),
        "units": math.prod(after),
        "parameters": sum(p.size for p in parameters),
        "frozen": bool(parameters) and all(p.frozen for p in parameters),
        "operations": flops_of(layer, before),
    }
