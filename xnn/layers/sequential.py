"""Sequential: layers one after another, with the doors that a user goes through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import (
    Purpose,
    Stream,
    admit,
    backend_of,
    chosen_numerics,
    numerics,
)
from xnn.backends.numerics import NUMERICS
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.graph import Node
from xnn.graph.scope import Scope
from xnn.layers import files
from xnn.layers.activations import Reshape
from xnn.layers.containers import Container
from xnn.layers.dense import Dense
from xnn.layers.layer import Layer
from xnn.ops import Op
from xnn.ops.op import size_of
from xnn.options import check_count, check_shape

__all__ = ["Sequential", "classes_of", "first_of", "load"]


class Sequential(Container):
    """A model: each layer's output is the next one's input.

    `seed` (0 if not given) draws the weights, each layer's from its own number, counted through nested
    models as well; the seed of a nested model, if it has one, rules inside it. Layers built with a seed of
    their own, or whose weights were assigned, keep them. Parameters are named by position: `1.weight`,
    `1.bias`, `2.0.weight`.
    """

    def __init__(self, *layers: Layer, seed: int | None = None) -> None:
        super().__init__(*layers, seed=None if seed is None else Stream(seed, Purpose.WEIGHTS).seed)
        self.draw_from(self.seed or 0, 0)
        self.number_from(0)
        self.parameters()  # raises for one that two layers share
        for _, array in self.named_state():
            array.array  # noqa: B018 - draws it

    def compute(self, x: Any, training: bool) -> Any:
        """The last layer's output."""
        for layer in self.layers:
            x = layer.run(x, training)
        return x

    def _node(self, x: Node, training: bool) -> Any:
        """A chain of nodes, one for each layer."""
        for layer in self.layers:
            x = layer(x, training)
        return x

    @property
    def dtype(self) -> str:
        """The first parameter's dtype by name, or the first buffer's; float32 if there are none."""
        held = self.parameters() or self.buffers()
        return held[0].dtype if held else "float32"

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """Whether its first layer does, one that only gives another shape aside."""
        return self.first_layer is not None and self.first_layer.takes_integers

    def check_integers(self, x: np.ndarray) -> None:
        """By that layer."""
        if self.first_layer is not None:
            self.first_layer.check_integers(x)

    def prepare(self, x: Any) -> Any:
        """Samples as the first layer takes them: numbers in the model's dtype, but integers untouched
        before a layer that converts them itself (Rescale). Integers are never scaled here.
        """
        if not hasattr(x, "shape"):
            x = np.asarray(x)
        lib = backend_of(admit(self.backend, x))
        xp = lib.xp
        if x.dtype == getattr(xp, self.dtype):
            return lib.clean(x)
        if not xp.isdtype(x.dtype, ("real floating", "integral", "bool")):
            raise DTypeError(f"samples must be numbers, got an array of {x.dtype}")
        if not xp.isdtype(x.dtype, "real floating") and self.takes_integers:
            if isinstance(x, np.ndarray):
                self.check_integers(x)
            return x
        return lib.clean(xp.astype(x, getattr(xp, self.dtype)))

    def predict(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The outputs for samples x (n, ...), on the host; x may be a host array, list or device array.

        In the numerics in force, or if nobody chose any in those the model was trained in.
        """
        check_count("batch_size", batch_size)
        trained = self.numerics if self.numerics in NUMERICS else None
        with numerics(chosen_numerics() or trained):
            return self._predict(x, batch_size)

    def _predict(self, x: Any, batch_size: int) -> np.ndarray:
        lib = self.backend
        x = self.prepare(x)
        if x.ndim < 1:
            raise ShapeError(f"predict needs a batch of samples (n, ...), got shape {tuple(x.shape)}")
        self.output_shape(tuple(x.shape[1:]))  # a clear error before any work
        parts = []
        with lib.guard(), Scope(records=False):
            for start in range(0, max(1, x.shape[0]), batch_size):
                batch: Any = lib.to_device(x[start : min(start + batch_size, x.shape[0]), ...])
                parts.append(lib.to_host(self.run(batch, training=False)))
        return np.concatenate(parts)

    def predict_classes(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The class of each sample, int64: the largest output's, or whether a single one is above `threshold`."""
        return classes_of(self.predict(x, batch_size), self.threshold)

    @property
    def first_layer(self) -> Layer | None:
        """The first layer that computes with its input, inside nested models too; None if there is none."""
        return first_of(self.layers)

    @property
    def last_op(self) -> Op | None:
        """The op of the last layer, inside nested models too; None if there is none."""
        last = self.layers[-1] if self.layers else None
        return last.last_op if isinstance(last, Sequential) else getattr(last, "op", None)

    @property
    def threshold(self) -> float:
        """Where a single output turns from no to yes: 1/2 after a sigmoid, 0 for a logit."""
        return 0.5 if self.last_op is ops.sigmoid else 0.0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one sample, through every layer."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def flops(self, shape: tuple[int, ...]) -> int:
        """Of one sample's forward pass."""
        total = 0
        for layer in self.layers:
            total += layer.flops(shape)
            shape = layer.output_shape(shape)
        return total

    def summary(self, input_shape: int | tuple[int, ...] | None = None) -> str:
        """A table of layers: output shape, parameters, floating-point operations per sample.

        input_shape is one sample's; without it, the elements of the shape that the model begins with (Reshape), or
        the inputs of the first layer with weights, if that is a Dense.
        """
        start = self.layers[0] if self.layers else None
        if input_shape is None and isinstance(start, Reshape) and -1 not in start.shape:
            input_shape = (size_of(start.shape),)
        if input_shape is None:
            first = next((layer for layer in self.layers if layer.parameters()), None)
            if not isinstance(first, Dense):
                teller = (
                    "no layer has weights" if first is None else f"{type(first).__name__} does not tell it"
                )
                raise OptionError(f"summary needs input_shape=(...), that of one sample: {teller}")
            input_shape = (first.inputs,)
        rows = [("layer", "output shape", "parameters", "FLOPs/sample")]
        input_shape = shape = check_shape("input_shape", input_shape)
        for position, layer in enumerate(self.layers):
            flops = layer.flops(shape)
            shape = layer.output_shape(shape)
            count = sum(p.size for p in layer.parameters())
            rows.append((f"{position} {type(layer).__name__}", str(shape), f"{count:,}", f"{flops:,}"))
        total = sum(p.size for p in self.parameters())
        rows.append(("total", str(shape), f"{total:,}", f"{self.flops(input_shape):,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows
        )

    def config(self) -> dict[str, Any]:
        """The seed and the layers themselves."""
        return {"seed": self.seed, **super().config()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write layers and weights to a .safetensors file; see xnn.layers.files."""
        files.save(self, path)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read the weights alone, for a model built by the same code; see xnn.layers.files."""
        files.load_weights(self, path)


def load(path: str | os.PathLike[str]) -> Sequential:
    """The model that `Sequential.save` wrote, on the current backend.

    Raises DataNotFoundError, CorruptFileError, or OptionError for a model with layers of your own: build it with your
    code, then `model.load_weights(path)`.
    """
    model = files.load(path)
    assert isinstance(model, Sequential)
    return model


def first_of(layers: Sequence[Layer]) -> Layer | None:
    """The first of these layers that does more than give its input another shape, inside nested models too."""
    for layer in layers:
        found = layer.first_layer if isinstance(layer, Sequential) else layer
        if found is not None and getattr(found, "op", None) not in (ops.flatten, ops.reshape, ops.identity):
            return found
    return None


def classes_of(outputs: np.ndarray, threshold: float) -> np.ndarray:
    """The class that each row of outputs (n, classes) stands for; NaN stands for none and is refused."""
    if outputs.ndim != 2:
        raise ShapeError(f"predict_classes needs outputs (n, classes), the model gives {outputs.shape}")
    wrong = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if wrong.size:
        raise DTypeError(
            f"the outputs for sample {int(wrong[0])} are NaN: look for NaN or infinity in the sample or the weights"
        )
    return (outputs[:, 0] > threshold).astype(np.int64) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
