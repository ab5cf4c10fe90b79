"""Layers that a network file describes, before the data are known: their arguments, and how they are built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends.memory import check_memory
from xnn.errors import OptionError, ShapeError, XnnError
from xnn.layers import Layer, Sequential

__all__ = ["Classes", "LayerPlan", "arguments_of", "build_chain", "construct"]


class Classes:
    """A placeholder for "classes", a number that depends on the data."""


@dataclass(frozen=True)
class LayerPlan:
    """A layer to be built: its class, its file and line, and its arguments, which may contain other plans."""

    kind: type[Layer]
    place: str
    given: dict[str, Any]

    def build(self, shape: tuple[int, ...], classes: int) -> Layer:
        """Build the layer for samples of this shape.

        Inside a Sequential, each layer takes the output of the one before it. Inside any other layer, each one takes
        the input of that layer.
        """
        given: dict[str, Any] = {}
        inside: list[Any] = []
        for name, argument in arguments_of(self.kind).items():
            value: Any = self.given.get(name)
            if name not in self.given:
                if argument.default is argument.empty and name in self.kind.from_input and shape:
                    if name == "in_channels" and len(shape) != 3:
                        raise ShapeError(
                            f"{self.place}: {self.kind.__name__} takes images (channels, height, width), and its "
                            f"input is {shape}: put a Reshape first, as in shape = [1, 28, 28]"
                        )
                    given[name] = shape[self.kind.from_input[name]]
                continue
            if isinstance(value, list) and issubclass(self.kind, Sequential):
                value = build_chain(value, shape, classes)
            elif isinstance(value, list):
                value = [_filled(inner, shape, classes) for inner in value]
            else:
                value = _filled(value, shape, classes)
            if argument.kind is argument.VAR_POSITIONAL:
                inside = value
            else:
                given[name] = value
        layer: Layer = construct(self.kind, given, self.place, inside)
        for parameter in layer.own_parameters:
            what = f"{self.place}: a {parameter.name} of shape {parameter.shape}"
            check_memory(what, parameter.size * np.dtype(parameter.dtype).itemsize, "choose a smaller one")
        return layer


def _filled(value: Any, shape: tuple[int, ...], classes: int) -> Any:
    """An argument, with its plan built, or with "classes" replaced by the number."""
    if isinstance(value, LayerPlan):
        return value.build(shape, classes)
    return classes if value is Classes else value


def build_chain(plans: list[LayerPlan], shape: tuple[int, ...], classes: int) -> list[Layer]:
    """Build layers of which each one takes the output of the one before it."""
    stack = []
    for plan in plans:
        layer = plan.build(shape, classes)
        try:
            shape = layer.output_shape(shape)
        except ShapeError as error:
            raise ShapeError(f"{plan.place}: {error}") from error
        stack.append(layer)
    return stack


def construct(kind: Any, given: dict[str, Any], place: str, inside: Sequence[Any] = ()) -> Any:
    """Call the constructor. If it raises an error, add the file and line."""
    try:
        return kind(*inside, **given)
    except XnnError as error:
        raise type(error)(f"{place}: {kind.__name__}: {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise OptionError(f"{place}: {kind.__name__} cannot be built: {error}") from error


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor that a file may give.

    The seed is that of the whole model. Parameters and **keywords have no form in TOML.
    """
    return {
        name: argument
        for name, argument in inspect.signature(kind).parameters.items()
        if name != "seed" and argument.annotation != "Parameter" and argument.kind is not argument.VAR_KEYWORD
    }
