"""Layers that contain layers: Container, the base class (also of Sequential); Add and Parallel; Identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Never, overload

import numpy as np

from xnn import ops
from xnn.backends import Purpose, Stream
from xnn.errors import OptionError, ShapeError
from xnn.layers.flops import added, flops_of
from xnn.layers.layer import Layer
from xnn.layers.parameter import Buffer, Parameter
from xnn.ops import Namespace
from xnn.options import check_integer, shown, written

__all__ = ["Add", "Container", "Identity", "Parallel"]


# How many layers a repr shows, the last one among them: 8, or fewer if the text would be longer than 200 characters.
_SHOWN, _LONGEST = (8, 4, 3), 200


class Container(Layer):
    """A list of layers, the base class of Sequential, Add and Parallel.

    Parameters are named by the positions of their layers, from 0: `1.weight` is that of the second layer, and
    `2.0.weight` that of the first layer inside the third.

    layers: Layer objects, each of them once.
    seed: an integer, from which the weights of all layers are drawn; None by default.

    `layers` is the list; `len`, iteration and positions are its: model[0], model[-1].
    Raises OptionError for something that is not a layer, and for a layer that is there twice.
    """

    buildable = False
    numbers_layers = True
    _closed = False
    #: In which numerics it was trained: "fast", "exact", "mixed" if in both, None if never. Weight files keep it.
    numerics: str | None = None

    def __init__(self, *layers: Layer, seed: int | None = None) -> None:
        kind = type(self).__name__
        for layer in layers:
            if not isinstance(layer, Layer):
                raise OptionError(f"{kind} takes layers, as in {kind}(*layers), got {shown(layer)}")
        if len({id(layer) for layer in layers}) < len(layers):
            raise OptionError(f"the same layer object stands twice in a {kind}: build a second one")
        self.layers = list(layers)
        super().__init__(seed=seed)
        self.draw_from(seed or 0, 0)
        self.number_from(0)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __bool__(self) -> bool:
        return True  # not what __len__ says

    @overload
    def __getitem__(self, position: int) -> Layer: ...
    @overload
    def __getitem__(self, position: slice) -> list[Layer]: ...
    def __getitem__(self, position: int | slice) -> Layer | list[Layer]:
        """The layer at a position, or the list of those in a slice: Sequential(*model[:-1]) is a model of them."""
        return self.layers[position]

    def __setitem__(self, position: Any, layer: Any) -> Never:
        self._refuse_change()

    def __delitem__(self, position: Any) -> Never:
        self._refuse_change()

    def _refuse_change(self) -> Never:
        kind = type(self).__name__
        raise OptionError(
            f"the layers of a {kind} are chosen when it is built: build another one, as in {kind}(*model[:1], "
            "layers.ReLU(), *model[2:]), which keeps the layers with their weights"
        )

    def _held(self) -> list[tuple[str, Any]]:
        """The layers by position, then what else a subclass assigned to attributes."""
        found = [(str(position), layer) for position, layer in enumerate(getattr(self, "layers", ()))]
        if self._parameters or len(self._others) > 1:  # more than `layers`
            here = {id(layer) for _, layer in found}
            found += [pair for pair in super()._held() if id(pair[1]) not in here]
        return found

    def draw_from(self, seed: int, number: int) -> int:
        """As `Layer.draw_from`, but a model with a seed of its own draws its weights as if it stood alone."""
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
        """As `Layer.number_from`; the container itself has no number, since it draws nothing."""
        for _, layer in self._layers():
            index = layer.number_from(index)
        return index

    def parameters(self) -> list[Parameter]:
        """All parameters, in order. Raises OptionError for one that two layers share."""
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
                    f"{first} and {name} are one parameter, and each layer needs its own: assign `.value` to start "
                    "from equal weights, or call one layer twice in the `compute` of a Layer to share them"
                )
        return found

    def _first_parameter(self) -> Parameter | None:
        """As that of every layer, in less time: each call on arrays asks for it."""
        if self._parameters or len(self._others) > 1:
            return super()._first_parameter()
        found = (layer._first_parameter() for layer in getattr(self, "layers", ()))
        return next((parameter for parameter in found if parameter is not None), None)

    def buffers(self) -> list[Buffer]:
        """The arrays that training keeps without a gradient, in order."""
        if self._parameters or len(self._others) > 1:
            return super().buffers()
        return [buffer for layer in self.layers for buffer in layer.buffers()]

    def config(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __repr__(self) -> str:
        options = {name: value for name, value in self.config().items() if name not in ("layers", "seed")}
        text = ""
        for most in _SHOWN:
            shown = [
                f"{type(layer).__name__}({len(layer)} layers)"
                if text and isinstance(layer, Container)
                else repr(layer)
                for layer in self.layers
            ]
            if len(shown) > most:
                shown[most - 2 : -1] = [f"... {len(shown) - most + 1} more ..."]
            text = written(self, options, *shown)
            if len(text) <= _LONGEST:
                break
        return text


class Identity(Layer):
    """y = x: the branch of a residual connection that changes nothing.

    >>> import numpy as np
    >>> from xnn import layers
    >>> layers.Identity()(np.array([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """

    op = ops.identity

    def __init__(self) -> None:
        super().__init__()

    def flops(self, shape: tuple[int, ...]) -> int:
        return 0


class _Branches(Container):
    """Layers side by side, all of which read x; `op` joins their outputs."""

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise OptionError(f"{type(self).__name__} needs at least one layer")
        super().__init__(*layers)

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """Whether every branch takes integers, as embeddings side by side do."""
        return all(layer.takes_integers for layer in self.layers)

    @property
    def takes_float64(self) -> bool:  # type: ignore[override]
        """Whether every branch takes samples of float64 as they are."""
        return all(layer.takes_float64 for layer in self.layers)

    def check_wide(self, x: np.ndarray) -> None:
        for layer in self.layers:
            layer.check_wide(x)

    def check_integers(self, x: np.ndarray) -> None:
        for layer in self.layers:
            layer.check_integers(x)

    def compute(self, x: Any, training: bool) -> Any:
        outputs = [layer.run(x, training) for layer in self.layers]
        self._join([tuple(y.shape[1:]) for y in outputs])
        return self.op(*outputs, **self.options(None))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._join([layer.output_shape(shape) for layer in self.layers])

    def flops(self, shape: tuple[int, ...]) -> int | None:
        return added(flops_of(layer, shape) for layer in self.layers)

    def _join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of a sample's joined output. Raises ShapeError for branches that do not fit together."""
        raise NotImplementedError


class Add(_Branches):
    """The sum of several layers of the same input: y = f(x) + g(x) + ...

    layers: the layers, at least one. Add(Identity(), Sequential(...)) is a residual connection.

    Raises OptionError without layers; ShapeError for outputs of different shapes, since nothing is broadcast.
    Source: He et al., CVPR 2016.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Add(layers.Identity(), layers.ReLU())(np.array([[-1.0, 2.0]])).tolist()
        [[-1.0, 4.0]]
    """

    op = ops.add

    def _join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        if len(set(shapes)) > 1:
            raise ShapeError(
                f"the branches of Add give samples of shapes {', '.join(map(str, shapes))}; they must be equal"
            )
        return shapes[0]


class Parallel(_Branches):
    """The outputs of several layers of the same input, joined along an axis.

    layers: the layers, at least one.
    axis: an integer, not 0, along which the outputs (n, ...) are joined; by default 1, channels or features.

    Raises OptionError without layers or for another axis; ShapeError for outputs whose other axes differ.
    Source: the Inception block, Szegedy et al., CVPR 2015.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Parallel(layers.Identity(), layers.ReLU())(np.array([[-1.0, 2.0]])).tolist()
        [[-1.0, 2.0, 0.0, 2.0]]
    """

    op = ops.concat

    def __init__(self, *layers: Layer, axis: int = 1) -> None:
        self.axis = check_integer("axis", axis)
        if self.axis == 0:
            raise OptionError("Parallel got axis=0, which is the batch: choose axis 1 or later")
        super().__init__(*layers)

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"axis": self.axis}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "axis": self.axis}

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
