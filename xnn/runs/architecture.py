"""Networks as TOML files of layers: read, checked with file and line, and built for the data.

    [[layers]]
    type = "Dense"
    outputs = 100

    [[layers]]
    type = "ReLU"

    [[layers]]
    type = "Dense"
    outputs = "classes"

docs/architecture.md describes the format.
"""

from __future__ import annotations

import codecs
import inspect
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, NoReturn

from xnn import initializers, layers, ops
from xnn.errors import OptionError
from xnn.files import as_path, reading
from xnn.layers import Layer, Sequential
from xnn.layers.sequential import first_of
from xnn.ops import Op
from xnn.options import shown
from xnn.runs.layer_plans import Classes, LayerPlan, arguments_of, build_chain, construct
from xnn.runs.toml_lines import Path, lines_of

__all__ = ["Architecture", "read"]

_LARGEST = 2**20  # bytes of a file: a list of layers needs few, and a device would be read without end
# A hundred keys with dots between them: the time and memory of reading them grow with the square of their number.
_DEEP_KEY = re.compile(
    r"""(?<![\w\\-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}"""
)

_LAYERS: dict[str, type[Layer]] = {
    name: kind for name, kind in vars(layers).items() if isinstance(kind, type) and kind in Layer.own.values()
}
_INITIALIZERS = {
    name: kind
    for name, kind in vars(initializers).items()
    if name in initializers.__all__ and isinstance(kind, type) and is_dataclass(kind)
}

# The words of a constructor's annotation: the types that TOML may give, and their names in messages.
_WORDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text in quotes"),
    "None": ((), ""),
}


def read(path: str | os.PathLike[str]) -> Architecture:
    """Read a network from a TOML file.

    path: the file, in UTF-8 with or without a byte order mark.

    Raises DataNotFoundError if the file cannot be read, and OptionError, with file and line, if it is not TOML or
    describes layers that do not exist.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "network.toml")
    ...     _ = path.write_text('[[layers]]\\ntype = "Dense"\\noutputs = "classes"\\n')
    ...     read(path).build((784,), classes=10).output_shape((784,))
    (10,)
    """
    name = os.fspath(as_path(path))
    with reading(name, "the architecture"), open(name, "rb") as file:
        content = file.read(_LARGEST + 1).removeprefix(codecs.BOM_UTF8)
    if len(content) > _LARGEST:
        raise OptionError(f"{name} is larger than {_LARGEST:,} bytes: give a text file that lists layers")
    table, lines = _parse(content, name)
    for key in table:
        if key != "layers":
            hint = "; arguments of a layer stand below its [[layers]]" if "layers" in table else ""
            raise OptionError(
                f"{name}:{lines[(key,)]}: {key} has no meaning here: the file has only [[layers]], and training is "
                f"set by options of the command{hint}"
            )
    return Architecture(table.get("layers", []), name, lines)


def _parse(content: bytes, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The values of a TOML file, and the line of each."""
    try:
        text = content.decode("utf-8")
        deep = _DEEP_KEY.search(text)
        if deep is None:
            return tomllib.loads(text), lines_of(text)
    except UnicodeDecodeError as error:
        if name.endswith(".safetensors"):
            raise OptionError(
                f"{name} is a saved model: --model takes a .toml file that lists layers; to train a saved model "
                "further, use xnn.load and a Trainer in Python"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise OptionError(
            f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8"
        ) from error
    except RecursionError:
        raise OptionError(f"{name}: arrays and tables are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number with more digits than Python reads
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if found is None:
            raise OptionError(f"{name}: this is not TOML: {error}") from None
        line = int(found[2] or text.count("\n") + 1)
        hint = (
            ""
            if found[2]
            else " at the end of the file: look above for a quote or bracket that is not closed"
        )
        if "('layers',) twice" in found[1]:
            hint = "; each layer begins with [[layers]], in two brackets"
        raise OptionError(f"{name}:{line}: this is not TOML: {found[1]}{hint}") from None
    line = text.count("\n", 0, deep.start()) + 1
    raise OptionError(f"{name}:{line}: keys are nested too deeply: a file of layers needs few dots")


class Architecture:
    """A network as a list of tables, one for each layer, with the layer's type and arguments.

    layers: the list, of JSON values.
    name: the file's name, for messages; default "model".
    lines: the line of each value in the file, for messages; default None, if there is no file.

    Raises OptionError for an unknown layer or argument, a missing argument, or a value of the wrong type.

    >>> network = Architecture([{"type": "Dense", "outputs": 4}, {"type": "ReLU"}])
    >>> network.build((3,), classes=2).output_shape((3,))
    (4,)
    """

    def __init__(self, layers: Any, name: str = "model", lines: Mapping[Path, int] | None = None) -> None:
        self.layers, self.name, self._lines = layers, name, lines or {}
        try:
            self._plans = self._plan_all(layers, ("layers",))
        except RecursionError:
            raise OptionError(f"{name}: layers are nested too deeply") from None
        if not layers:
            raise OptionError(
                f'{name} has no layers: begin each one with [[layers]] and a type such as "Dense"'
            )

    def __repr__(self) -> str:
        return f"Architecture({self.name!r}, {len(self.layers)} layers)"

    def build(
        self,
        shape: tuple[int, ...],
        classes: int,
        rescaling: layers.Rescale | tuple[Any, Any] | None = None,
        seed: int = 0,
        augment: Sequence[Layer] = (),
    ) -> Sequential:
        """Build the model.

        shape: of a sample.
        classes: the number that replaces "classes" in the file.
        rescaling: a Rescale layer to put in front, or its scale and offset; default None, no such layer. It gets the
        dtype of the layers behind it. It is omitted if the first layer takes integers, as a Rescale layer in the file
        does.
        seed: of the initial weights; default 0.
        augment: layers to put after the Rescale layer, or in front if there is none; default none.

        Raises OptionError for arguments that a layer refuses, and ShapeError for a layer that cannot take the output
        of the layer before it.
        """
        stack = build_chain(self._plans, tuple(shape), classes)
        first = first_of(stack)
        if rescaling is not None and not (first is not None and first.takes_integers):
            dtype = next((p.dtype for layer in stack for p in layer.parameters()), "float32")
            if isinstance(rescaling, layers.Rescale):
                stack.insert(0, layers.Rescale(**{**rescaling.config(), "dtype": dtype}))
            else:
                stack.insert(0, layers.Rescale(*rescaling, dtype=dtype))
        if augment:
            scaled = isinstance(stack[0], layers.Rescale)
            if stack[0].takes_integers and not scaled:
                raise OptionError(
                    f"{self._plans[0].place}: {type(stack[0]).__name__} takes the data as integers, which cannot be "
                    "augmented: put a Rescale layer first, or omit --augment"
                )
            stack[scaled:scaled] = augment
        return Sequential(*stack, seed=seed)

    @property
    def first(self) -> str:
        """File and line of the first layer."""
        return self._plans[0].place

    @property
    def last(self) -> str:
        """File and line of the last layer."""
        return self._plans[-1].place

    def _plan_all(self, tables: Any, path: Path) -> list[LayerPlan]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            dotted = ".".join(key for key in path if isinstance(key, str))
            self._refuse(
                path, f"{dotted} must be tables of layers: begin each one with [[{dotted}]], in two brackets"
            )
        return [self._plan(table, (*path, position)) for position, table in enumerate(tables)]

    def _plan(self, table: dict[str, Any], path: Path) -> LayerPlan:
        """Make a plan from a layer's table. Checks everything that does not depend on the data."""
        kind, given = self._read_table(table, path, _LAYERS, "layer")
        for name, argument in arguments_of(kind).items():
            needed = argument.default is argument.empty and argument.kind is not argument.VAR_POSITIONAL
            if needed and name not in given and name not in kind.from_input:
                self._refuse(path, f"{table['type']} needs {name}: it takes {', '.join(arguments_of(kind))}")
        return LayerPlan(kind, self._where(path), given)

    def _read_table(
        self, table: dict[str, Any], path: Path, known: Mapping[str, Any], what: str
    ) -> tuple[Any, dict[str, Any]]:
        """The class that a table names as its type, and its arguments."""
        name = table.get("type")
        if not isinstance(name, str) or name not in known:
            wrong = f"there is no {what} {shown(name)}" if "type" in table else f"the {what} has no type"
            place = (*path, "type") if "type" in table else path
            self._refuse(place, f'{wrong}: write type = "NAME", one of {", ".join(sorted(known))}')
        arguments, given = arguments_of(known[name]), {}
        for key, value in table.items():
            if key != "type":
                if key not in arguments:
                    allowed = f"it takes {', '.join(arguments)}" if arguments else "it takes none"
                    self._refuse((*path, key), f"{name} has no argument {key}: {allowed}")
                given[key] = self._read_value(arguments[key], f"{name}: {key}", value, (*path, key))
        return known[name], given

    def _read_value(self, argument: inspect.Parameter, what: str, value: Any, path: Path) -> Any:
        """A value in the form that the constructor takes. Layers stay plans until the data are known."""
        annotation = str(argument.annotation)
        words = annotation.split(" | ")
        if re.search(r"\bLayer\b", annotation):
            if isinstance(value, dict) and argument.kind is not argument.VAR_POSITIONAL:
                return self._plan(value, path)
            return self._plan_all(value, path)
        if "Initializer" in words:
            if not isinstance(value, dict):
                self._refuse(path, f'{what} must be a table such as {{type = "He"}}, got {shown(value)}')
            return construct(*self._read_table(value, path, _INITIALIZERS, "initializer"), self._where(path))
        if "Op" in words:
            if not isinstance(value, str) or value not in _functions():
                self._refuse(path, f"{what} must be one of {', '.join(_functions())}, got {shown(value)}")
            return _functions()[value]
        if argument.kind is argument.VAR_POSITIONAL:
            if not isinstance(value, list):
                self._refuse(path, f"{what} must be an array such as [1, 28, 28], got {shown(value)}")
            return [self._read_plain(words, what, v, (*path, place)) for place, v in enumerate(value)]
        return self._read_plain(words, what, value, path)

    def _read_plain(self, words: list[str], what: str, value: Any, path: Path) -> Any:
        """A number, text or array. The constructor checks what its annotation does not say."""
        if value == "classes" and "int" in words:
            return Classes
        self._check_plain(what, value, path)
        if all(word in _WORDS for word in words):
            kinds = tuple(kind for word in words for kind in _WORDS[word][0])
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                allowed = " or ".join(filter(None, (_WORDS[word][1] for word in words)))
                self._refuse(path, f"{what} must be {allowed}, got {shown(value)}")
        return value

    def _check_plain(self, what: str, value: Any, path: Path) -> None:
        """Refuse values that are neither numbers, texts nor arrays of them: a record could not hold them."""
        if isinstance(value, list):
            for position, inner in enumerate(value):
                self._check_plain(what, inner, (*path, position))
        elif isinstance(value, float) and not math.isfinite(value):
            self._refuse(path, f"{what} must be finite, got {value}")
        elif not isinstance(value, (str, int, float)):
            self._refuse(path, f"{what} cannot be {shown(value)}")

    def _refuse(self, path: Path, message: str) -> NoReturn:
        raise OptionError(f"{self._where(path)}: {message}")

    def _where(self, path: Path) -> str:
        """File and line. Without a file, the path to the value, such as model.layers[1].bias."""
        if not self._lines:
            return self.name + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.name}:{self._lines.get(path, 1)}"


@cache
def _functions() -> dict[str, Op]:
    """The ops that a Function layer can apply: those of one input that need no options."""
    found = {}
    for name, op in vars(ops).items():
        if isinstance(op, Op):
            _, *inputs = inspect.signature(op.forward).parameters.values()
            required = [i for i in inputs if i.default is i.empty]
            if len(required) == 1 and required[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                found[name] = op
    return found
