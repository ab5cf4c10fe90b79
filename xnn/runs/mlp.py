"""The multilayer perceptron that `xnn train` builds unless a file describes another network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn import layers
from xnn.errors import OptionError
from xnn.layers import Layer, Rescale, Sequential
from xnn.runs.names import ACTIVATIONS

__all__ = ["mlp"]


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "relu",
    dropout: float = 0.0,
    rescale: Rescale | tuple[Any, Any] | None = None,
    seed: int = 0,
    augment: Sequence[Layer] = (),
) -> Sequential:
    """Build a multilayer perceptron: Dense layers, with an activation after each hidden one.

    inputs: the number of features of a sample.
    hidden: the widths of the hidden layers; an empty list makes a linear model.
    outputs: the number of outputs. The last layer gives logits, or the numbers of a regression.
    activation: a name in xnn.runs.names.ACTIVATIONS; default "relu".
    dropout: the rate of a Dropout layer after each hidden layer; default 0, no such layer.
    rescale: a Rescale layer to put in front, or its scale and offset; default None, no such layer.
    seed: the seed of the initial weights; default 0.
    augment: layers to put after the Rescale layer, such as layers.augmentation((28, 28)).

    Raises OptionError for an unknown activation, and for what a layer refuses.

    >>> mlp(784, (100, 200), 10).output_shape((784,))
    (10,)
    """
    if activation not in ACTIVATIONS:
        raise OptionError(f"there is no activation {activation!r}: choose {', '.join(ACTIVATIONS)}")
    stack: list[Layer] = []
    if rescale is not None:
        stack.append(rescale if isinstance(rescale, Rescale) else Rescale(*rescale))
    stack += augment
    for width in hidden:
        stack += [layers.Dense(inputs, width), ACTIVATIONS[activation]()]
        if dropout:
            stack.append(layers.Dropout(dropout))
        inputs = width
    return Sequential(*stack, layers.Dense(inputs, outputs), seed=seed)
