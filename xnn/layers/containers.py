"""Layers made of layers: what a Sequential has in common with branches side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import Purpose, Stream
from xnn.errors import OptionError, ShapeError
from xnn.layers.layer import Layer
from xnn.layers.parameter import Parameter
from xnn.ops import Namespace
from xnn.options import check_integer

__all__ = ["Add", "Container", "Identity", "Parallel"]


class Container(Layer):
    """Layers in a list. Parameters are named by position: `1.weight`, `2.0.weight`."""

    buildable = False
    #: In which numerics it was trained, "mixed" if in both, None if it was not; a weight file keeps it.
    numerics: str | None = None

    def __init__(self, *layers: Layer, seed: int | None = None) -> None:
        kind = type(self).__name__
        for layer in layers:
            if not isinstance(layer, Layer):
                raise OptionError(f"{kind} takes layers, as in {kind}(*layers), got {repr(layer)[:60]}")
        if len({id(layer) for layer in layers}) < len(layers):
            raise OptionError(f"the same layer object stands twice in a {kind}; build a second one")
        self.layers = list(layers)
        super().__init__(seed=seed)

    def _held(self) -> list[tuple[str, Any]]:
        """The layers by position, then what else a subclass assigned to attributes."""
        found = [(str(position), layer) for position, layer in enumerate(getattr(self, "layers", ()))]
        if self._parameters or len(self._others) > 1:  # more than `layers`
            here = {id(layer) for _, layer in found}
            found += [pair for pair in super()._held() if id(pair[1]) not in here]
        return found

    def draw_from(self, seed: int, number: int) -> int:
        """Give each layer's weights a stream; a model with a seed of its own keeps those it was built with."""
        first = number
        if self.seed is not None:
            seed, number = self.seed, 0
        start = number
        for k, parameter in enumerate(self.own_parameters):
            parameter.draw_from(Stream(seed, Purpose.WEIGHTS, number, k))
        for _, layer in self._layers():
            number = layer.draw_from(seed, number)
        return first + number - start

    def number_from(self, index: int) -> int:
        """Number the layers, through nested models as well."""
        for _, layer in self._layers():
            index = layer.number_from(index)
        return index

    def parameters(self) -> list[Parameter]:
        """Every layer's, in order. Raises OptionError for one that two layers share: its gradients would not add."""
        found = [parameter for layer in self.layers for parameter in layer.parameters()]
        if self._parameters or len(self._others) > 1:  # a subclass holds more than `layers`
            found = [parameter for _, parameter in self.named_parameters()]
        if len(set(found)) == len(found):
            return found
        names: dict[int, str] = {}
        for name, parameter in self.named_parameters():
            first = names.setdefault(id(parameter), name)
            if first != name:
                raise OptionError(
                    f"{first} and {name} are one parameter; each layer needs its own: assign "
                    "`.value` to start from equal weights, or share weights in a graph or by xnn.grad"
                )
        return found

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

    def compute(self, x: Any, training: bool) -> Any:
        """The branches' outputs, joined."""
        outputs = [layer.run(x, training) for layer in self.layers]
        self._join([tuple(y.shape[1:]) for y in outputs])
        return self.op(*outputs, **self.options(None))

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
