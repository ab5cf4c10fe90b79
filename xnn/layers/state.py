"""What a layer holds: parameters, buffers and inner layers, found in its attributes and named by them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from xnn.backends import Purpose, Stream
from xnn.errors import OptionError
from xnn.graph.scope import assignments, check_assignment
from xnn.layers.parameter import Buffer, Parameter
from xnn.options import explained, shown

__all__ = ["Stateful"]


#: Options of xnn's own layers that give their arrays sizes and dtype.
_SIZES = frozenset({
    "inputs", "outputs", "features", "affine", "in_channels", "out_channels", "kernel_size", "dtype",
    "num_embeddings", "embedding_dim",
})  # fmt: skip


class Stateful:
    """An object whose attributes hold parameters, buffers and layers, also in lists, tuples and dicts.

    Names are those of the attributes: `weight`, `blocks.0.weight`. Arrays passed to __init__ keep their own names.
    """

    #: Whether `forward` and `backward` are written by hand.
    by_hand: ClassVar[bool] = False
    #: Whether its __init__ numbers the layers inside it, by which weights and random numbers are drawn.
    numbers_layers: ClassVar[bool] = False
    seed: int | None = None
    index = 0  # the layer's number in a model, so that no two layers draw the same random numbers
    _given: tuple[Parameter, ...] = ()
    #: The parameters and buffers that are attributes, by name; and the other attributes that hold some, or layers.
    _parameters: Mapping[str, Parameter] = MappingProxyType({})
    _without_buffers: tuple[Parameter, ...] = ()
    _others: Mapping[str, None] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        if "__init__" in vars(cls):
            own = cls.__module__.startswith("xnn.layers.")
            cls.__init__ = explained(cls.__init__) if own else _completed(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self, *parameters: Parameter, buffers: Sequence[Buffer] = (), seed: int | None = None
    ) -> None:
        if seed is not None:
            seed = Stream(seed, Purpose.WEIGHTS).seed
        here = set(self._parameters.values())
        self.__dict__["_given"] = tuple(p for p in (*parameters, *buffers) if p not in here)
        self.seed = seed
        names = [name for name, _ in self.own_state()]
        if len(set(names)) < len(names):
            raise OptionError(
                f"{type(self).__name__} has two parameters or buffers of one name in {', '.join(names)}: files tell "
                "them apart by it"
            )
        for k, (_, parameter) in enumerate(self._own_parameters()):
            parameter.draw_from(Stream(seed or 0, Purpose.WEIGHTS, 0, k))

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign an option, or register a parameter or layer. A parameter cannot be replaced: assign to its value."""
        if isinstance(self.__dict__.get(name), Parameter):
            raise OptionError(
                f"{type(self).__name__}.{name} is a Parameter, which cannot be replaced: assign an array to "
                f".{name}.value, got {shown(value)}"
            )
        check_assignment(self, name)
        if name in _SIZES and self._parameters and type(self).__module__.startswith("xnn.layers."):
            self._check_size(name, value)
        super().__setattr__(name, value)
        parameters = self.__dict__.setdefault("_parameters", {})
        others = self.__dict__.setdefault("_others", {})
        if isinstance(value, Parameter):
            parameters[name] = value
            trained = (p for p in dict.fromkeys(parameters.values()) if type(p) is Parameter)
            self.__dict__["_without_buffers"] = tuple(trained)
            value.name = name
            value.draw_from(Stream(self.seed or 0, Purpose.WEIGHTS, 0, len(self.own_parameters) - 1))
            return
        others.pop(name, None)
        empty = type(value) in (list, dict) and not value  # it may be filled later
        if empty or any(True for _ in _inside(name, value)):
            others[name] = None
        if not name.startswith("_") and not self.by_hand:
            assignments[0] += 1

    def _check_size(self, name: str, value: Any) -> None:
        """Raise OptionError if an option that gave the arrays their sizes is changed: files would not fit them."""
        if name in self.__dict__ and value != self.__dict__[name]:
            raise OptionError(
                f"{type(self).__name__}.{name} was {shown(self.__dict__[name])} when its arrays were made, and "
                f"cannot become {shown(value)}: build another layer"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: all but the last forward pass, which is only this object's."""
        return {name: value for name, value in self.__dict__.items() if name != "_tape"}

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        for held in ("_parameters", "_others"):
            self.__dict__.get(held, {}).pop(name, None)
        trained = (p for p in dict.fromkeys(self._parameters.values()) if type(p) is Parameter)
        self.__dict__["_without_buffers"] = tuple(trained)

    def _held(self) -> list[tuple[str, Any]]:
        """Name and object of each parameter, buffer and layer of its own, in order."""
        found: list[tuple[str, Any]] = [(p.name, p) for p in self._given]
        found += self._parameters.items()
        if not (self._others or self._given) and len(set(map(id, self._parameters.values()))) == len(found):
            return found
        for name in self._others:
            if self.__dict__[name]:
                found += _inside(name, self.__dict__[name])
        if not found:
            return found
        first: dict[int, tuple[str, Any]] = {}
        for pair in found:
            first.setdefault(id(pair[1]), pair)
        return list(first.values())

    def own_state(self) -> list[tuple[str, Parameter]]:
        """Name and array of the parameters and buffers that are not an inner layer's."""
        return [pair for pair in self._held() if isinstance(pair[1], Parameter)]

    def _own_parameters(self) -> list[tuple[str, Parameter]]:
        return [pair for pair in self._held() if type(pair[1]) is Parameter]

    def _layers(self) -> list[tuple[str, Any]]:
        return [pair for pair in self._held() if isinstance(pair[1], Stateful)]

    def all_layers(self) -> Iterator[Any]:
        """The layer itself and every layer inside it."""
        return iter(self._all_layers())

    def _all_layers(self) -> list[Any]:
        found = [self]
        for _, item in self._held():
            if isinstance(item, Stateful):
                found += item._all_layers()
        return found

    @property
    def own_parameters(self) -> list[Parameter]:
        """The parameters that are not an inner layer's, in the op's order."""
        if self._given or self._others:
            return [item for _, item in self._own_parameters()]
        return list(self._without_buffers)

    def parameters(self) -> list[Parameter]:
        """All parameters, inner layers' too, in order."""
        found = self.own_parameters
        if not self._others:
            return found
        for _, layer in self._layers():
            found += layer.parameters()
        return [*dict.fromkeys(found)]

    def first_array(self) -> Parameter | None:
        """The first parameter, or if there is none the first buffer: it tells the backend and the dtype."""
        return self._first_parameter() or next(iter(self.buffers()), None)

    def _first_parameter(self) -> Parameter | None:
        if self._without_buffers:
            return self._without_buffers[0]
        for _, item in self._held() if self._given or self._others else ():
            found = item._first_parameter() if isinstance(item, Stateful) else item
            if type(found) is Parameter:
                return found
        return None

    def buffers(self) -> list[Buffer]:
        """The arrays that training keeps without a gradient, in order."""
        if not (self._given or self._others) and len(self._parameters) == len(self._without_buffers):
            return []
        return [array for _, array in self.named_state() if isinstance(array, Buffer)]

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, in order: `weight`, `bias`; of inner layers `blocks.0.weight`, ..."""
        return iter(self._named(buffers=False))

    def named_state(self) -> Iterator[tuple[str, Parameter]]:
        """All that a weight file holds: parameters, then buffers, layer by layer."""
        return iter(self._named(buffers=True))

    def _named(self, buffers: bool) -> list[tuple[str, Parameter]]:
        """Names and parameters, layer by layer, and buffers if asked for. Arrays passed to __init__ are not again
        those of the inner layers that have them.
        """
        held = self._held()
        found = [pair for pair in held if type(pair[1]) is Parameter]
        if buffers and len(found) < len(held):
            found += [pair for pair in held if isinstance(pair[1], Buffer)]
        if len(found) < len(held):
            own = {id(array) for array in self._given}
            for name, layer in held:
                if isinstance(layer, Stateful):
                    inner = layer._named(buffers)
                    found += [(f"{name}.{key}", array) for key, array in inner if id(array) not in own]
        return found

    def draw_from(self, seed: int, number: int) -> int:
        """Draw weights that were not assigned, as layer `number` of a model of this seed; returns the next number.

        A layer built with a seed of its own keeps its weights. Inner layers have the numbers that follow.
        """
        for k, (_, parameter) in enumerate(self._own_parameters()):
            if self.seed is None:
                parameter.draw_from(Stream(seed, Purpose.WEIGHTS, number, k))
        number += 1
        for _, layer in self._layers():
            number = layer.draw_from(seed, number)
        return number

    def number_from(self, index: int) -> int:
        """Set the layer's number in a model, and the numbers of the layers inside it; returns the next number."""
        self.index = index
        index += 1
        for _, layer in self._layers():
            index = layer.number_from(index)
        return index

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """Set the random stream of the next training forward. Only layers that draw random numbers use it."""
        for _, layer in self._layers():
            layer.set_stream(seed, step, row)


def _completed(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a user's `__init__`, so that at its end each inner layer gets a random stream of its own.

    Before that each inner layer draws from seed 0, and two layers of one shape would start with equal weights. A
    model that takes the layer in numbers all layers again.
    """

    @functools.wraps(init)
    def completed(self: Stateful, *values: Any, **options: Any) -> None:
        init(self, *values, **options)
        if type(self).__init__ is completed and not self.numbers_layers and self._layers():
            self.draw_from(self.seed or 0, 0)
            self.number_from(0)

    return completed


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The parameters and layers in an attribute: itself, or those in lists, tuples and dicts."""
    if isinstance(value, (Parameter, Stateful)):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _inside(f"{name}.{position}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{name}.{key}", item)
