"""Turns the attributes of objects into JSON values and arrays, and puts them back into objects that were built alike.

No code is stored and none is run: functions and classes are noted by their names and compared; an object's attributes
are put back into the object that the program has built again. A JSON object with a key that begins with `$` stands
for what JSON does not have:

    {"$array": "name", "device": false}    an array, in the file's tensors; {"$scalar": "name"} a NumPy number
    {"$numbers": "name"}                   a long list of floats, in the file's tensors
    {"$tuple": [...]}, {"$set": [...]}, {"$deque": [...]}, {"$pairs": [[key, value], ...]}, {"$bytes": "00ff"}
    {"$ref": "model"}                      a part of the training: the model, a layer, a parameter, a callback, ...
    {"$same": "callbacks.0.losses"}        an object that came before, in this place
    {"$state": [[arrays], [numbers], [names]]}   the State of an optimizer
    {"$random": ...}                       the state of a NumPy Generator or of Python's random.Random
    {"$code": "function relu"}             a function, class, op or path; compared, never changed. With "with":
                                           the numbers in a function's closure and of its default arguments
    {"$object": "Cosine", "vars": {...}}   any other object, by its class and attributes
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from xnn.backends import Backend, backend_of
from xnn.backends.row_sources import RowSource
from xnn.errors import OptionError
from xnn.layers.safetensors_file import storable
from xnn.ops import Op
from xnn.optimizers import State
from xnn.options import shown
from xnn.training.closures import enclosed

__all__ = ["Packer", "Unpacker", "difference", "sample_sha256"]

_PLAIN = (bool, int, float, str)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, Op, np.ufunc, PurePath)
_LONG = 32  # floats of a list that become a tensor
_ROWS = 256  # of a large array that a digest covers
_LARGE = 2**18  # numbers


def sample_sha256(array: Any) -> str:
    """SHA-256 over an array's bytes; of a large one over 256 rows, the first and the last among them."""
    lib = None if isinstance(array, RowSource) else backend_of(array)
    if array.ndim and array.size > _LARGE and array.shape[0] > _ROWS:
        rows = np.linspace(0, array.shape[0] - 1, _ROWS).astype(np.int64)
        array = array[rows] if lib is None or lib.is_host else lib.xp.take(array, lib.to_device(rows), axis=0)
    host = np.asarray(array) if lib is None else lib.to_host(array)
    return hashlib.sha256(np.ascontiguousarray(host, host.dtype.newbyteorder("<")).tobytes()).hexdigest()


def variables(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, as copies and pickles keep them; None if it has more state than attributes."""
    kind: Any = type(value)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return None  # it says itself how it is copied
    try:
        _, arguments, state, items, pairs = (*value.__reduce_ex__(2), None, None, None)[:5]
    except Exception:  # it cannot be copied, or its __getstate__ raises
        return None
    if len(arguments) != 1 or items is not None or pairs is not None:
        return None
    if isinstance(state, tuple) and len(state) == 2:  # attributes, and those of __slots__
        state = {**(state[0] or {}), **state[1]}
    return {} if state is None else state if isinstance(state, dict) else None


def _code(value: Any) -> str:
    """A function, class, op or path in words that are the same in every process."""
    if isinstance(value, PurePath):
        return "a path"
    if isinstance(value, Op):
        return f"op {value.name}"
    if isinstance(value, MethodType):
        return f"method {value.__qualname__}"
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__))
    return f"{'class' if isinstance(value, type) else 'function'} {name}"


def _numbers_of(function: Any) -> dict[str, Any]:
    """The numbers that a function computes with besides its arguments, by name: of its closure, and defaults."""
    own = enclosed(function) if isinstance(function, FunctionType) else {}
    return {
        name: value for name, value in own.items() if type(value) in (bool, int, float) and value == value
    }


class Packer:
    """Packs values: `pack` returns JSON values, and `tensors` holds the arrays that they name.

    parts: the parts of the training by their names, which are not packed but named.
    describes: True if values are only to be compared: then arrays become digests, and nothing is refused.
    """

    def __init__(self, parts: Mapping[str, Any], describes: bool = False) -> None:
        self.names = {id(part): name for name, part in parts.items()}
        self.describes, self.tensors = describes, dict[str, Any]()
        #: The class of each `$object`, by its place.
        self.objects: dict[str, str] = {}
        self._places: dict[int, str] = {}
        self._open: set[int] = set()
        self._alive: list[Any] = []  # so that no id is used twice

    def pack(self, value: Any, where: str) -> Any:
        """The value as JSON. Raises OptionError for what a checkpoint cannot hold. where: its name, for messages."""
        kind = type(value)
        if value is None or kind in _PLAIN:
            return value
        if id(value) in self.names:
            return {"$ref": self.names[id(value)]}
        if isinstance(value, np.generic) or (hasattr(value, "dtype") and hasattr(value, "shape")):
            return self._array(value, where)
        if isinstance(value, _CODE):
            numbers = _numbers_of(value)
            return {"$code": _code(value)} | ({"with": numbers} if numbers else {})
        if kind is bytes:
            return {"$bytes": value.hex()}
        if id(value) in self._places:
            return {"$same": self._places[id(value)]}
        if id(value) in self._open:
            return self._refused(value, where)
        self._open.add(id(value))
        packed = self._inside(value, where)
        self._open.discard(id(value))
        self._places[id(value)] = where
        self._alive.append(value)
        return packed

    def _inside(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in (dict, MappingProxyType):
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.pack(item, f"{where}.{key}") for key, item in value.items()}
            pairs = enumerate(value.items())
            return {
                "$pairs": [
                    [self.pack(k, f"{where}.{n}"), self.pack(v, f"{where}.{n}")] for n, (k, v) in pairs
                ]
            }
        if kind is list and len(value) > _LONG and all(type(item) is float for item in value):
            return {"$numbers": self._tensor(np.array(value), where)}
        if kind in (list, tuple, set, frozenset, deque):
            ordered = sorted(value, key=repr) if kind in (set, frozenset) else value  # alike in all processes
            items = [self.pack(item, f"{where}.{n}") for n, item in enumerate(ordered)]
            return items if kind is list else {f"${kind.__name__}": items}
        if kind is State:
            parts = (self.pack(list(part), f"{where}.{n}") for n, part in enumerate(vars(value).values()))
            return {"$state": [*parts]}
        if kind is np.random.Generator:
            return {"$random": self.pack(value.bit_generator.state, where)}
        if kind is random.Random:
            return {"$random": self.pack(value.getstate(), where)}
        attributes = variables(value)
        if attributes is None:
            return self._refused(value, where)
        self.objects[where] = kind.__qualname__
        return {"$object": kind.__qualname__, "vars": self.named(attributes, where)}

    def named(self, attributes: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The attributes of an object, each packed."""
        return {name: self.pack(item, f"{where}.{name}") for name, item in attributes.items()}

    def _array(self, value: Any, where: str) -> Any:
        try:
            lib = backend_of(value)
            fits = type(value) is not np.ma.MaskedArray and (
                not lib.is_host or storable(np.asarray(value).dtype)
            )
        except Exception:  # an array of another library
            fits = False
        if not fits:
            return self._refused(value, where)
        if isinstance(value, np.generic):
            return {"$scalar": self._tensor(np.asarray(value), where)}
        return {"$array": self._tensor(value, where), "device": not lib.is_host}

    def _tensor(self, array: Any, where: str) -> str:
        if self.describes:
            return f"{str(array.dtype).rpartition('.')[2]}{list(array.shape)} {sample_sha256(array)[:16]}"
        self.tensors[where] = array
        return where

    def _refused(self, value: Any, where: str) -> Any:
        if self.describes:
            return {"$what": type(value).__qualname__}
        raise OptionError(
            f"{where} is {shown(value)}, which a checkpoint cannot hold: keep numbers, texts, arrays and lists or "
            "dicts of them, or, in a callback, define state(self) and restore(self, state), which say what is kept"
        )


class Unpacker:
    """Puts packed values back: `unpack` reads them, and `commit` then changes the objects; before it nothing changes.

    parts: the parts of the training by their names. tensors: the file's. lib: the backend of the model.

    Raises OptionError where the program has built something else than the checkpoint names, and ValueError, KeyError
    or TypeError for what no Packer wrote.
    """

    def __init__(self, parts: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lib: Backend) -> None:
        self.parts, self.tensors, self.lib = parts, tensors, lib
        #: Whether all arrays go to the model's backend, as those of an optimizer do.
        self.on_device = False
        self._changes: list[Callable[[], Any]] = []
        self._before: list[tuple[Any, Any]] = []  # the containers that change, and copies of them
        self._found: dict[str, Any] = {}

    def commit(self) -> None:
        """Change the objects."""
        for change in self._changes:
            change()
        self._changes.clear()

    def undo(self) -> None:
        """Give the lists, dicts, sets and deques that `commit` changed their items back."""
        for container, items in self._before:
            _fill(container, items)

    def unpack(self, packed: Any, now: Any, where: str) -> Any:
        """The value that was packed. now: the value in its place in what the program has built."""
        if isinstance(packed, list):
            value: Any = self._items(packed, now, where)
        elif not isinstance(packed, dict):
            return packed
        elif not any(key.startswith("$") for key in packed):
            known = now if isinstance(now, Mapping) else {}
            value = {key: self.unpack(item, known.get(key), f"{where}.{key}") for key, item in packed.items()}
        else:
            (tag,) = (key for key in packed if key.startswith("$"))
            value = self._special(tag, packed[tag], packed, now, where)
        value = self._in_place(value, now)
        self._found[where] = value
        return value

    def _items(self, packed: list[Any], now: Any, where: str) -> list[Any]:
        known = list(now) if isinstance(now, (list, tuple, deque)) else []
        known += [None] * (len(packed) - len(known))
        return [self.unpack(item, known[n], f"{where}.{n}") for n, item in enumerate(packed)]

    def _special(self, tag: str, content: Any, packed: dict[str, Any], now: Any, where: str) -> Any:
        if tag == "$array":
            array = self.tensors[content]
            return self.lib.to_device(array) if self.on_device or packed["device"] is True else array.copy()
        if tag == "$scalar":
            return self.tensors[content][()]
        if tag == "$numbers":
            return self.tensors[content].tolist()
        if tag == "$ref":
            return self.parts.get(content) if content == "history" else self.parts[content]
        if tag == "$same":
            return self._found[content]
        if tag == "$bytes":
            return bytes.fromhex(content)
        if tag == "$state":
            arrays, numbers, names = (
                self.unpack(part, None, f"{where}.{n}") for n, part in enumerate(content)
            )
            return State(tuple(map(self.lib.to_device, arrays)), tuple(numbers), tuple(names))
        if tag == "$pairs":
            known = list(now.values()) if isinstance(now, dict) else []
            known += [None] * (len(content) - len(known))
            return {
                self.unpack(key, None, f"{where}.key.{n}"): self.unpack(item, known[n], f"{where}.{n}")
                for n, (key, item) in enumerate(content)
            }
        if tag in ("$tuple", "$set", "$frozenset", "$deque"):
            items = self._items(content, now, where)
            if tag == "$deque":
                return deque(items, now.maxlen if isinstance(now, deque) else None)
            return {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[tag](items)
        if tag == "$random":
            state = self.unpack(content, None, f"{where}.state")
            if isinstance(now, np.random.Generator):
                self._changes.append(lambda: setattr(now.bit_generator, "state", state))
            elif isinstance(now, random.Random):
                self._changes.append(lambda: now.setstate(state))
            else:
                raise _built_otherwise(where, "a random generator", now)
            return now
        if tag == "$code":
            numbers = packed.get("with", {})
            if not isinstance(now, _CODE) or (_code(now), _numbers_of(now)) != (content, numbers):
                raise _built_otherwise(where, f"{content} {numbers or ''}".strip(), now)
            return now
        if tag == "$object":
            self._object(content, packed["vars"], now, where)
            return now
        raise ValueError(f"a checkpoint has no {tag[:20]}")

    def _object(self, kind: str, attributes: dict[str, Any], now: Any, where: str) -> None:
        known = None if type(now).__qualname__ != kind else variables(now)
        if known is None:
            raise _built_otherwise(where, f"a {kind}", now)
        self.attributes(now, attributes, known, where, object.__setattr__)

    def attributes(
        self,
        thing: Any,
        packed: Mapping[str, Any],
        known: Mapping[str, Any],
        where: str,
        put: Callable[[Any, str, Any], None] = setattr,
    ) -> None:
        """Give an object attributes that `Packer.named` packed. known: those that it has. put: assigns one."""
        same = Packer(self.parts, describes=True).named(known, where)
        for name, item in packed.items():
            if not name.isidentifier() or name.startswith("__") or callable(getattr(type(thing), name, None)):
                raise ValueError(f"{where} has an attribute {name[:40]!r}")
            if name in same and same[name] == item:
                continue
            value = self.unpack(item, known.get(name), f"{where}.{name}")
            if type(thing).__module__.startswith("xnn."):
                if not _alike(value, known.get(name)):
                    raise ValueError(f"{where}.{name} is {shown(value)}")
                if type(known.get(name)) is float and type(value) in (bool, int):
                    value = float(value)
            if name not in known or known[name] is not value:
                self._changes.append(partial(put, thing, name, value))
        if missing := known.keys() - packed.keys():
            raise ValueError(f"{where} lacks {sorted(missing)[0]}")

    def _in_place(self, value: Any, now: Any) -> Any:
        """The program's own list, dict, set or deque, which gets the items of `value`, or else `value`."""
        if value is now or type(now) is not type(value) or type(value) not in (list, dict, set, deque):
            return value

        self._before.append((now, now.copy()))
        self._changes.append(partial(_fill, now, value))
        return now


def _alike(value: Any, now: Any) -> bool:
    """Whether an attribute of xnn's own classes may have this value in the place of what it has now."""
    kinds, numbers = {type(value), type(now)}, {bool, int, float}
    return len(kinds) == 1 or kinds <= numbers or not kinds <= {*numbers, str, dict, list, tuple}


def _fill(container: Any, items: Any) -> None:
    """Give a list, dict, set or deque these items in place of its own."""
    container.clear()
    container.update(items) if isinstance(container, (dict, set)) else container.extend(items)


def _built_otherwise(where: str, expected: str, now: Any) -> OptionError:
    return OptionError(
        f"{where} is {shown(now)}, and {expected} in the checkpoint: build model, loss, optimizer and callbacks as "
        "the run that wrote the checkpoint did"
    )


def difference(saved: Any, now: Any, where: str) -> str:
    """Where two descriptions differ first, in words; "" if they are equal."""
    if type(saved) is type(now) and saved == now:
        return ""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*saved, *now)):
            name = where if key.startswith("$") or key == "vars" else f"{where}.{key}"
            if key not in saved or key not in now:
                there = "only now" if key in now else "only in the checkpoint"
                return f"{name} is there {there}"
            if found := difference(saved[key], now[key], name):
                return found
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for n, (one, other) in enumerate(zip(saved, now, strict=True)):
            if found := difference(one, other, f"{where}.{n}"):
                return found
    return (
        f"{where} is {shown(now)}, and {shown(saved)} in the checkpoint" if repr(saved) != repr(now) else ""
    )
