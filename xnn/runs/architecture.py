"""Networks as files: a TOML text of layers, read, checked line by line, and built for the data at hand.

    [[layers]]
    type = "Dense"
    outputs = 100

    [[layers]]
    type = "ReLU"

    [[layers]]
    type = "Dense"
    outputs = "classes"

docs/architecture.md has the format.
"""

from __future__ import annotations

import codecs
import inspect
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, NoReturn

from xnn import initializers, layers, ops
from xnn.errors import DataNotFoundError, OptionError, ShapeError, XnnError
from xnn.layers import Layer, Sequential
from xnn.layers.sequential import first_of
from xnn.ops import Op
from xnn.runs.toml_lines import Path, lines_of

__all__ = ["Architecture", "read"]

_LARGEST = 2**20  # bytes: a file of layers is some lines, and a device gives bytes without end
_MOST_WEIGHTS = 2**48  # of one layer: no machine holds them, and beyond NumPy cannot even say so

_LAYERS: dict[str, type[Layer]] = {
    name: kind for name, kind in vars(layers).items() if isinstance(kind, type) and kind in Layer.own.values()
}
_INITIALIZERS = {
    name: kind
    for name, kind in vars(initializers).items()
    if name in initializers.__all__ and isinstance(kind, type) and is_dataclass(kind)
}

_WORDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text in quotes"),
    "None": ((), ""),
}


def read(path: str | os.PathLike[str]) -> Architecture:
    """The architecture that a TOML file holds, UTF-8 with or without a byte order mark.

    Raises DataNotFoundError for a file that cannot be read, and OptionError, with file and line, for what is in it.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1).removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataNotFoundError(f"cannot read the architecture {name}: {reason}") from error
    if len(content) > _LARGEST:
        raise OptionError(
            f"{name} is larger than {_LARGEST:,} bytes: an architecture is a text of some lines"
        )
    try:
        text = content.decode("utf-8")
        table = tomllib.loads(text)
        lines = lines_of(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OptionError(
            f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8"
        ) from error
    except RecursionError:
        raise OptionError(f"{name}: arrays and tables stand too deeply in one another") from None
    except ValueError as error:  # TOMLDecodeError, and a number of more digits than Python reads
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if found is None:
            raise OptionError(f"{name}: this is not TOML: {error}") from None
        line = int(found[2] or text.count("\n") + 1)
        hint = "" if found[2] else " at the file's end: look above for a quote or bracket that is not closed"
        raise OptionError(f"{name}:{line}: this is not TOML: {found[1]}{hint}") from None
    for key in table:
        if key != "layers":
            hint = "; what belongs to a layer stands below its [[layers]]" if "layers" in table else ""
            raise OptionError(
                f"{name}:{lines[(key,)]}: {key} has no meaning here: the file has [[layers]] and nothing else, "
                f"training has its options{hint}"
            )
    return Architecture(table.get("layers", []), name, lines)


class Architecture:
    """Layers as tables of JSON values, `layers`; `name` is that of the file, `lines` says where in it they stand.

    Raises OptionError for an unknown layer or argument, one that is missing, or a value of the wrong kind.
    """

    def __init__(self, layers: Any, name: str = "model", lines: Mapping[Path, int] | None = None) -> None:
        self.layers, self.name, self._lines = layers, name, lines or {}
        try:
            self._plans = self._plan_all(layers, ("layers",))
        except RecursionError:
            raise OptionError(f"{name}: layers stand too deeply in one another") from None
        if not layers:
            raise OptionError(f'{name} holds no layers: [[layers]] and type = "Dense" or another begin each')

    def build(
        self,
        shape: tuple[int, ...],
        classes: int,
        rescaling: tuple[Any, Any] | None = None,
        seed: int = 0,
        augment: Sequence[Layer] = (),
    ) -> Sequential:
        """The model for samples of this shape; `classes` is what "classes" stands for.

        rescaling: scale and offset of a Rescale in front, unless the first layer takes integers, as Rescale does.
        augment: layers behind that Rescale, or one that is the file's first layer, and otherwise in front.
        Raises OptionError for what a layer refuses, and ShapeError for one that cannot take what comes to it.
        """
        stack = _chain(self._plans, tuple(shape), classes)
        first = first_of(stack)
        if rescaling is not None and not (first is not None and first.takes_integers):
            dtype = next((p.dtype for layer in stack for p in layer.parameters()), "float32")
            stack.insert(0, layers.Rescale(*rescaling, dtype=dtype))
        if augment:
            scaled = isinstance(stack[0], layers.Rescale)
            if stack[0].takes_integers and not scaled:
                raise OptionError(
                    f"{self._plans[0].place}: {type(stack[0]).__name__} takes the data as integers, which cannot be "
                    "augmented: put a Rescale first, or leave augmentation away"
                )
            stack[scaled:scaled] = augment
        return Sequential(*stack, seed=seed)

    @property
    def first(self) -> str:
        """Where the first layer stands: the file and the line."""
        return self._plans[0].place

    @property
    def last(self) -> str:
        """Where the last layer stands."""
        return self._plans[-1].place

    def _plan_all(self, tables: Any, path: Path) -> list[_Plan]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            dotted = ".".join(key for key in path if isinstance(key, str))
            self._refuse(
                path, f"{dotted} must be tables of layers: [[{dotted}]], in two brackets, begins each"
            )
        return [self._plan(table, (*path, position)) for position, table in enumerate(tables)]

    def _plan(self, table: dict[str, Any], path: Path) -> _Plan:
        """What a layer's table asks for, checked as far as it can be without data."""
        kind, given = self._read_table(table, path, _LAYERS, "layer")
        for name, argument in _arguments(kind).items():
            needed = argument.default is argument.empty and argument.kind is not argument.VAR_POSITIONAL
            if needed and name not in given and name not in kind.from_input:
                self._refuse(path, f"{table['type']} needs {name}: it takes {', '.join(_arguments(kind))}")
        return _Plan(kind, self._where(path), given)

    def _read_table(
        self, table: dict[str, Any], path: Path, known: Mapping[str, Any], what: str
    ) -> tuple[Any, dict[str, Any]]:
        """The class that a table's type names, and the arguments beside it."""
        name = table.get("type")
        if not isinstance(name, str) or name not in known:
            wrong = f"there is no {what} {_text(name)}" if "type" in table else f"the {what} has no type"
            place = (*path, "type") if "type" in table else path
            self._refuse(place, f'{wrong}: write type = "NAME", one of {", ".join(sorted(known))}')
        arguments, given = _arguments(known[name]), {}
        for key, value in table.items():
            if key != "type":
                if key not in arguments:
                    allowed = f"it takes {', '.join(arguments)}" if arguments else "it takes none"
                    self._refuse((*path, key), f"{name} has no argument {key}: {allowed}")
                given[key] = self._read_value(arguments[key], f"{name}: {key}", value, (*path, key))
        return known[name], given

    def _read_value(self, argument: inspect.Parameter, what: str, value: Any, path: Path) -> Any:
        """A value as the constructor takes it; of layers, their plans."""
        annotation = str(argument.annotation)
        words = annotation.split(" | ")
        if re.search(r"\bLayer\b", annotation):
            if isinstance(value, dict) and argument.kind is not argument.VAR_POSITIONAL:
                return self._plan(value, path)
            return self._plan_all(value, path)
        if "Initializer" in words:
            if not isinstance(value, dict):
                self._refuse(path, f'{what} must be a table such as {{type = "He"}}, got {_text(value)}')
            return _made(*self._read_table(value, path, _INITIALIZERS, "initializer"), self._where(path))
        if "Op" in words:
            if not isinstance(value, str) or value not in _functions():
                self._refuse(path, f"{what} must be one of {', '.join(_functions())}, got {_text(value)}")
            return _functions()[value]
        if argument.kind is argument.VAR_POSITIONAL:
            if not isinstance(value, list):
                self._refuse(path, f"{what} must be an array such as [1, 28, 28], got {_text(value)}")
            return [self._read_plain(words, what, v, (*path, place)) for place, v in enumerate(value)]
        return self._read_plain(words, what, value, path)

    def _read_plain(self, words: list[str], what: str, value: Any, path: Path) -> Any:
        """A number, text or array; what the constructor's annotation does not tell, it looks at itself."""
        if value == "classes" and "int" in words:
            return _Classes
        self._check_plain(what, value, path)
        if all(word in _WORDS for word in words):
            kinds = tuple(kind for word in words for kind in _WORDS[word][0])
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                allowed = " or ".join(filter(None, (_WORDS[word][1] for word in words)))
                self._refuse(path, f"{what} must be {allowed}, got {_text(value)}")
        return value

    def _check_plain(self, what: str, value: Any, path: Path) -> None:
        """Numbers, texts and arrays of them: what a record can hold and an argument can be."""
        if isinstance(value, list):
            for position, inner in enumerate(value):
                self._check_plain(what, inner, (*path, position))
        elif isinstance(value, float) and not math.isfinite(value):
            self._refuse(path, f"{what} must be finite, got {value}")
        elif not isinstance(value, (str, int, float)):
            self._refuse(path, f"{what} cannot be {_text(value)}")

    def _refuse(self, path: Path, message: str) -> NoReturn:
        raise OptionError(f"{self._where(path)}: {message}")

    def _where(self, path: Path) -> str:
        """File and line; without lines, how to come to the value from the top."""
        if not self._lines:
            return self.name + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.name}:{self._lines.get(path, 1)}"


class _Classes:
    """Stands for a number that the data tell."""


@dataclass(frozen=True)
class _Plan:
    """A layer to be built: its class, where it is written, and its arguments, in which other plans may stand."""

    kind: type[Layer]
    place: str
    given: dict[str, Any]

    def build(self, shape: tuple[int, ...], classes: int) -> Layer:
        """The layer, for samples of this shape.

        The layers inside a Sequential are a chain; those inside any other layer take what comes to that layer.
        """
        given: dict[str, Any] = {}
        inside: list[Any] = []
        for name, argument in _arguments(self.kind).items():
            value: Any = self.given.get(name)
            if name not in self.given:
                if argument.default is argument.empty and name in self.kind.from_input and shape:
                    if name == "in_channels" and len(shape) != 3:
                        raise ShapeError(
                            f"{self.place}: {self.kind.__name__} takes images (channels, height, width), and what "
                            f"comes to it is {shape}: put a Reshape first, as in shape = [1, 28, 28]"
                        )
                    given[name] = shape[self.kind.from_input[name]]
                continue
            if isinstance(value, list) and issubclass(self.kind, Sequential):
                value = _chain(value, shape, classes)
            elif isinstance(value, list):
                value = [_filled(inner, shape, classes) for inner in value]
            else:
                value = _filled(value, shape, classes)
            if argument.kind is argument.VAR_POSITIONAL:
                inside = value
            else:
                given[name] = value
        layer: Layer = _made(self.kind, given, self.place, inside)
        for parameter in layer.own_parameters:
            if parameter.size > _MOST_WEIGHTS:
                raise OptionError(
                    f"{self.place}: a {parameter.name} of shape {parameter.shape} fits no memory"
                )
        return layer


def _filled(value: Any, shape: tuple[int, ...], classes: int) -> Any:
    """An argument now that the data are known."""
    if isinstance(value, _Plan):
        return value.build(shape, classes)
    return classes if value is _Classes else value


def _chain(plans: list[_Plan], shape: tuple[int, ...], classes: int) -> list[Layer]:
    """Layers of which each takes what the one before it gives."""
    stack = []
    for plan in plans:
        layer = plan.build(shape, classes)
        try:
            shape = layer.output_shape(shape)
        except ShapeError as error:
            raise ShapeError(f"{plan.place}: {error}") from error
        stack.append(layer)
    return stack


def _made(kind: Any, given: dict[str, Any], place: str, inside: Sequence[Any] = ()) -> Any:
    """What the constructor gives; what it refuses is said with the place."""
    try:
        return kind(*inside, **given)
    except XnnError as error:
        raise type(error)(f"{place}: {kind.__name__}: {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise OptionError(f"{place}: {kind.__name__} cannot be built: {error}") from error


def _arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor's, less the seed, which is the model's, and what Layer's own takes of its subclasses."""
    return {
        name: argument
        for name, argument in inspect.signature(kind).parameters.items()
        if name != "seed" and argument.annotation != "Parameter" and argument.kind is not argument.VAR_KEYWORD
    }


@cache
def _functions() -> dict[str, Op]:
    """The ops of one input that need no options, for Function."""
    found = {}
    for name, op in vars(ops).items():
        if isinstance(op, Op):
            _, *inputs = inspect.signature(op.forward).parameters.values()
            required = [i for i in inputs if i.default is i.empty]
            if len(required) == 1 and required[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                found[name] = op
    return found


def _text(value: Any) -> str:
    return repr(value)[:60]
