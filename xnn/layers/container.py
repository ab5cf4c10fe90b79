"""Layers made of layers: what a Sequential has in common with branches side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import backend_of
from xnn.errors import OptionError, ShapeError
from xnn.graph import Node
from xnn.layers.layer import Layer, computed, computes_its_own_way
from xnn.layers.parameter import Parameter
from xnn.ops import Array, Namespace
from xnn.ops.op import backward_of, forward_of
from xnn.options import check_integer

__all__ = ["Add", "Container", "Identity", "Parallel"]


class Container(Layer):
    """Layers in a list. Parameters are named by position: `1.weight`, `2.0.weight`."""

    buildable = False

    def __init__(self, *layers: Layer, seed: int | None = None) -> None:
        kind = type(self).__name__
        for layer in layers:
            if not isinstance(layer, Layer):
                raise OptionError(f"{kind} takes layers, as in {kind}(*layers), got {repr(layer)[:60]}")
            if "own_parameters" not in vars(layer):
                name = type(layer).__name__
                raise OptionError(f"{name}.__init__ must call super().__init__(*its parameters)")
        if len({id(layer) for layer in layers}) < len(layers):
            raise OptionError(f"the same layer object stands twice in a {kind}; build a second one")
        self.layers = list(layers)
        super().__init__(seed=seed)

    def draw_from(self, seed: int, number: int) -> int:
        """Give each layer's weights a stream; a model with a seed of its own keeps those it was built with."""
        first = number
        if self.seed is not None:
            seed, number = self.seed, 0
        start = number
        for layer in self.layers:
            number = layer.draw_from(seed, number)
        return first + number - start

    def number_from(self, index: int) -> int:
        """Number the layers, through nested models as well."""
        for layer in self.layers:
            index = layer.number_from(index)
        return index

    def forget(self) -> None:
        """Drop what backward would need."""
        for layer in self.layers:
            layer.forget()
        super().forget()

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """Passed on to every layer."""
        for layer in self.layers:
            layer.set_stream(seed, step, row)

    def parameters(self) -> list[Parameter]:
        """Every layer's, in order. Raises OptionError for one that two layers share: its gradients would not add."""
        named = list(self.named_parameters())
        names: dict[int, str] = {}
        for name, parameter in named:
            first = names.setdefault(id(parameter), name)
            if first != name:
                raise OptionError(
                    f"{first} and {name} are one parameter; each layer needs its own: assign "
                    "`.value` to start from equal weights, or share weights in a graph or by xnn.grad"
                )
        return [parameter for _, parameter in named]

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """`0.weight`, `0.bias`, ...: position and name."""
        for position, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                yield f"{position}.{name}", parameter

    def named_state(self) -> Iterator[tuple[str, Parameter]]:
        """Every layer's parameters and buffers, by position and name."""
        for position, layer in enumerate(self.layers):
            for name, array in layer.named_state():
                yield f"{position}.{name}", array

    def config(self) -> dict[str, Any]:
        """The layers themselves."""
        return {"layers": self.layers}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"


class Identity(Layer):
    """y = x: the branch of a residual connection that does nothing."""

    op = ops.identity

    def flops(self, shape: tuple[int, ...]) -> int:
        """Nothing is computed."""
        return 0


class _Branches(Container):
    """Layers side by side, all of which read x; `op` joins their outputs."""

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise OptionError(f"{type(self).__name__} needs at least one layer")
        super().__init__(*layers)

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """Whether every branch does, as embeddings side by side do."""
        return all(layer.takes_integers for layer in self.layers)

    def check_integers(self, x: np.ndarray) -> None:
        """By every branch."""
        for layer in self.layers:
            layer.check_integers(x)

    def apply(self, x: Array, training: bool) -> tuple[Array, Any]:
        """The branches' outputs, joined."""
        return self._joined([layer.apply(x, training)[0] for layer in self.layers])

    def forward(self, x: Array, training: bool = False) -> Array:
        """The branches' outputs, joined; each branch keeps what its backward needs."""
        return self._keep(*self._joined([layer.forward(x, training) for layer in self.layers]))

    def _joined(self, outputs: list[Array]) -> tuple[Array, Any]:
        self._join([tuple(y.shape[1:]) for y in outputs])
        xp = backend_of(*outputs).math
        return forward_of(self.op, xp, outputs, self.options(xp))

    def trace(self, x: Node) -> Node:
        """The joined branches; each reads a node of its own, so that gradients are added as `backward` adds them."""
        if computes_its_own_way(self, "trace", frozenset({"apply", "forward", "backward"})):
            return super().trace(x)
        outputs = [layer.trace(computed(ops.identity, (x,))) for layer in self.layers]
        self._join([tuple(y.value.shape[1:]) for y in outputs])
        return computed(self.op, tuple(outputs), self.options(backend_of(x.value).math))

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """The sum of the branches' gradients for x, from first to last."""
        xp, total = self._check_backward(dout).math, None
        for layer, gradient in zip(self.layers, backward_of(self.op, xp, dout, self.saved), strict=True):
            dx = layer.backward(gradient, input_gradient)
            total = dx if total is None or dx is None else total + dx
        return total

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one sample, joined. Raises ShapeError for branches that do not fit together."""
        return self._join([layer.output_shape(shape) for layer in self.layers])

    def flops(self, shape: tuple[int, ...]) -> int:
        """All branches'; joining is not counted."""
        return sum(layer.flops(shape) for layer in self.layers)

    def _join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        raise NotImplementedError


class Add(_Branches):
    """y = f(x) + g(x) + ...: Add(Identity(), Sequential(...)) is a residual connection.

    Outputs must have one shape: nothing is broadcast. Source: He et al., CVPR 2016.
    """

    op = ops.add

    def _join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        if len(set(shapes)) > 1:
            raise ShapeError(
                f"the branches of Add give samples of shapes {', '.join(map(str, shapes))}; they must be equal"
            )
        return shapes[0]


class Parallel(_Branches):
    """The outputs of layers that all read x, joined along `axis`: 1 is channels or features, 0 the batch's."""

    op = ops.concat

    def __init__(self, *layers: Layer, axis: int = 1) -> None:
        self.axis = check_integer("axis", axis)
        if self.axis == 0:
            raise OptionError("Parallel joins along axis 1 or later, axis 0 is the batch's")
        super().__init__(*layers)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The axis."""
        return {"axis": self.axis}

    def config(self) -> dict[str, Any]:
        """Layers and axis."""
        return {**super().config(), "axis": self.axis}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, axis={self.axis})"

    def _join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        ndim = len(shapes[0]) + 1
        axis = self.axis + ndim if self.axis < 0 else self.axis
        rest = {(*shape[: axis - 1], *shape[axis:]) for shape in shapes}
        if not 0 < axis < ndim or len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise ShapeError(
                f"the branches of Parallel give samples of shapes {', '.join(map(str, shapes))}; to be joined along "
                f"axis {self.axis} of the batch they must be equal but for that axis"
            )
        return (*shapes[0][: axis - 1], sum(shape[axis - 1] for shape in shapes), *shapes[0][axis:])
