"""Finds layers and parameters that a model would miss, so that they would stay untrained or unsaved."""

from __future__ import annotations

import dis
import functools
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from xnn.backends import Backend
from xnn.errors import OptionError
from xnn.layers.parameter import Buffer, Parameter
from xnn.layers.state import Stateful
from xnn.options import shown

__all__ = ["check_nothing_hidden", "hidden_in"]

# How many objects inside one another are looked into, and how many in all, for each attribute of a layer.
_DEEPEST, _MOST = 6, 10_000
_PLAIN = frozenset({bool, int, float, str, type(None)})


def check_nothing_hidden(model: Stateful) -> None:
    """Raise OptionError for a layer or parameter that an attribute of the model's layers holds out of sight.

    A model finds parameters and layers in attributes, lists, tuples and dicts. This looks further: into sets and
    deques, objects that are not layers (dataclasses, SimpleNamespace, instances of plain classes), functools.partial,
    bound methods, and functions (closures, default values, the globals that their code reads). It raises for an
    unfrozen parameter, a buffer, a layer with either, a layer that draws random numbers, and a Layer class in the
    place of an instance; not for those that already belong to the model.

    What it does not see: more than six objects inside one another, more than 10,000 objects in one attribute, objects
    whose attributes are not in `__dict__` or `__slots__`, and globals of functions that a function calls. A parameter
    found there is still refused when a Trainer's first step or `backward` computes with it.
    """
    known = {id(item) for layer in model.all_layers() for item in (layer, *(p for _, p in layer.own_state()))}
    for layer in model.all_layers():
        for name, value in vars(layer).items():
            if type(value) in _PLAIN or name in ("_given", "_tape"):
                continue
            for path, item in hidden_in(value, name, known):
                owner = type(layer).__name__
                if isinstance(item, type):
                    raise OptionError(
                        f"{owner}.{path} is the class {item.__name__}, not a layer: write {item.__name__}(...)"
                    )
                raise OptionError(
                    f"{owner}.{path} is {shown(item)}, where the model does not find it, so that it would stay "
                    "untrained or unsaved: assign it to an attribute of the layer, or to a list, tuple or dict in one"
                )


def hidden_in(value: Any, name: str = "", known: Collection[int] = ()) -> Iterator[tuple[str, Any]]:
    """Yield path and object of everything in one attribute that `check_nothing_hidden` refuses.

    known: the ids of the model's own layers and parameters.
    """
    seen: dict[int, Any] = {}
    queue = deque([(name, value, 0, True)])
    while queue and len(seen) < _MOST:
        path, item, depth, found = queue.popleft()
        if id(item) in known or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, (Parameter, Stateful)):
            if _matters(item):
                yield path.strip(), item
        elif isinstance(item, type):
            # Code may well name classes; an attribute, or a list in one, is where an instance is meant.
            if found and issubclass(item, Stateful):
                yield path.strip(), item
        elif depth < _DEEPEST:
            inside = found and isinstance(item, (list, tuple, Mapping))
            queue.extend((f"{path}{step}", part, depth + 1, inside) for step, part in _parts(item))


def _matters(item: Parameter | Stateful) -> bool:
    """Whether an object must be trained or saved, or draws random numbers, so that it must not be hidden."""
    if isinstance(item, Parameter):
        return isinstance(item, Buffer) or not item.frozen
    parameters = [array for _, array in item.named_parameters()]
    if any(hasattr(layer, "draw") for layer in item.all_layers()):
        return True
    return not all(p.frozen for p in parameters) if parameters else bool(item.buffers())


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    """The objects directly inside an object, each with the code that gets it: `.name`, `[0]`."""
    if isinstance(item, (str, bytes, int, float, complex, Backend, types.ModuleType)) or hasattr(
        item, "__array__"
    ):
        return
    if isinstance(item, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in item.items())
    elif isinstance(item, (list, tuple, deque)):
        yield from ((f"[{position}]", part) for position, part in enumerate(item))
    elif isinstance(item, (set, frozenset)):
        yield from (("{...}", part) for part in item)
    elif isinstance(item, functools.partial):
        yield from ((".func", item.func), (".args", item.args), (".keywords", item.keywords))
    elif isinstance(item, types.MethodType):
        yield from ((".__self__", item.__self__), (".__func__", item.__func__))
    elif isinstance(item, types.FunctionType):
        yield from _read_by(item)
    elif type(item).__module__.partition(".")[0] not in ("builtins", "numpy", "xnn", "threading", "logging"):
        yield from ((f".{name}", part) for name, part in getattr(item, "__dict__", {}).items())
        for kind in type(item).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(item, name) and name not in ("__dict__", "__weakref__"):
                    yield f".{name}", getattr(item, name)


def _read_by(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The objects that a Python function reads besides its arguments: closure, default values, globals."""
    assert isinstance(function, types.FunctionType)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield " its defaults", (function.__defaults__, function.__kwdefaults__)
    if not function.__module__ or function.__module__.partition(".")[0] in ("numpy", "xnn"):
        return
    for name in _globals_of(function.__code__):
        part = function.__globals__.get(name)
        if isinstance(part, (Parameter, Stateful)):
            yield f" {name}", part


def _globals_of(code: types.CodeType) -> set[str]:
    """The names of the globals that a function's code reads, and that of the functions defined inside it."""
    names = {
        step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names
