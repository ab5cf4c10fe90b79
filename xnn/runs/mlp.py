"""Ready-made models: the multilayer perceptron that the command line trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn import layers
from xnn.errors import OptionError
from xnn.layers import Layer, Sequential

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": layers.ReLU,
    "leaky-relu": layers.LeakyReLU,
    "elu": layers.ELU,
    "selu": layers.SELU,
    "gelu": layers.GELU,
    "silu": layers.SiLU,
    "softplus": layers.Softplus,
    "sigmoid": layers.Sigmoid,
    "tanh": layers.Tanh,
}


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "relu",
    dropout: float = 0.0,
    rescale: tuple[Any, Any] | None = None,
    seed: int = 0,
    augment: Sequence[Layer] = (),
) -> Sequential:
    """inputs - hidden[0] - ... - outputs, Dense layers with an activation (and dropout) after each hidden one.

    rescale: scale and offset of a Rescale layer in front. augment: layers behind it, such as
    layers.augmentation((28, 28)). The last layer gives logits.
    """
    if activation not in ACTIVATIONS:
        raise OptionError(f"no activation is called {activation!r}; choose {', '.join(ACTIVATIONS)}")
    stack: list[Layer] = [] if rescale is None else [layers.Rescale(*rescale)]
    stack += augment
    for width in hidden:
        stack += [layers.Dense(inputs, width), ACTIVATIONS[activation]()]
        if dropout:
            stack.append(layers.Dropout(dropout))
        inputs = width
    return Sequential(*stack, layers.Dense(inputs, outputs), seed=seed)
