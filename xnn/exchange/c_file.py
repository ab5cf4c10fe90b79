"""to_c: writes a dense network as one file of C99 that needs no library but C's own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from xnn.errors import OptionError
from xnn.exchange.row import Value
from xnn.exchange.target import Target, widest
from xnn.files import check_writable, write_atomically
from xnn.layers import Sequential
from xnn.ops.op import size_of

__all__ = ["C_SUFFIXES", "to_c"]

C_SUFFIXES = (".c",)
_NOT_FINITE = {"inf": "INFINITY", "-inf": "-INFINITY", "nan": "NAN"}
_TYPES = {"float32": "float", "float64": "double"}
#: What the name of a function of C may begin with.
#: The element in an expression, beside functions such as exp and numbers such as 0x1p0.
_ONE = re.compile(r"\bx\b")
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def to_c(
    model: Sequential,
    path: str | os.PathLike[str],
    name: str | None = None,
    input_shape: int | tuple[int, ...] | None = None,
) -> None:
    """Write a dense network as one C99 file with `void NAME_predict(const float *x, float *y)`.

    model: a Sequential of Dense, activations, Rescale, BatchNorm, LayerNorm, Softmax, and layers that only act in
        training or only change shapes; also nested, and with Add.
    path: the .c file, which is written whole or not at all. An old file is replaced.
    name: what the function's name begins with, a name of C; by default the file's, as in digits.c: digits_predict.
    input_shape: the shape of one sample; may be omitted as in `to_onnx`.

    x is one sample, y its outputs, both row by row. They are float, or double where the model takes or gives float64:
    a model of float64, and one that begins with a Rescale with a shift. The weights are hexadecimal numbers, that is,
    exact. All arrays are on the stack or constant, so several threads may call the function.

    Raises OptionError for a layer that C does not have here, such as Conv2D, for a name that is none, and for a place
    that cannot be written.

        >>> import tempfile
        >>> from pathlib import Path
        >>> import xnn
        >>> from xnn import exchange, layers
        >>> model = xnn.Sequential(layers.Dense(1, 1, bias=False), seed=0)
        >>> model[0].weight.value = [[0.5]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exchange.to_c(model, Path(folder, "net.c"))
        ...     lines = Path(folder, "net.c").read_text().splitlines()
        >>> [line for line in lines if line.startswith("void") or "0x" in line][::2]
        ['    0x1.0000000000000p-1f,', 'void net_predict(const float *x, float *y)']
    """
    check_writable(path, C_SUFFIXES)
    name = re.sub(r"\W", "_", Path(path).stem, flags=re.ASCII) if name is None else name
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise OptionError(
            f"{name!r} cannot be the beginning of a name of C: give one of letters, digits and _, such as "
            "name='digits'"
        )
    write_atomically(path, _File(model, name, input_shape).text().encode(), C_SUFFIXES)


class _File(Target):
    """A file of C that grows line by line."""

    format, column = "C", "c"

    def __init__(self, model: Sequential, name: str, input_shape: int | tuple[int, ...] | None) -> None:
        super().__init__(model, input_shape)
        self.name = name
        self.arrays: list[str] = []
        self.lines: list[str] = []
        self.buffers = 0
        self.depth = 1

    def text(self) -> str:
        """The whole file."""
        if self.input.dtype not in _TYPES:
            raise OptionError("a model that begins with Embedding cannot be exported to C: export it to ONNX")
        last = self.write_model()
        given, got = size_of(self.input.shape), size_of(last.shape)
        with self.loop("i", got):
            self.line(f"y[i] = {last.name}[i];")
        arguments = f"const {_TYPES[self.input.dtype]} *x, {_TYPES[last.dtype]} *y"
        return "\n".join([
            f"/* {self.name}_predict({arguments})",
            " *",
            " * The prediction of a network that xnn trained, for one sample.",
            f" * x: {given} numbers, a sample of shape {self.input.shape} row by row, as the model was trained on.",
            f" * y: {got} numbers, the outputs of shape {last.shape}.",
            " *",
            " * Several threads may call it. C99; link with -lm.",
            " */",
            "#include <tgmath.h>",
            "",
            *self.arrays,
            f"void {self.name}_predict({arguments});",
            "",
            f"void {self.name}_predict({arguments})",
            "{",
            *self.lines,
            "}",
            "",
        ])  # fmt: skip

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def loop(self, index: str, count: int) -> Iterator[None]:
        """The lines of the block stand in a loop; in none if count is 0."""
        if count:
            self.line(f"for (int {index} = 0; {index} < {count}; {index}++) {{")
            self.depth += 1
        yield
        if count:
            self.depth -= 1
            self.line("}")

    def array(self, name: str, value: np.ndarray) -> str:
        """Write constant numbers, row by row. Returns the array's name in C."""
        dtype = str(value.dtype)
        called = "layer_" + self.named(name).replace(".", "_")
        number, numbers = self.number(dtype), value.ravel().tolist()
        rows = (", ".join(map(number, numbers[at : at + 4])) for at in range(0, len(numbers), 4))
        self.arrays += [
            f"static const {_TYPES[dtype]} {called}[{len(numbers)}] = {{",
            *(f"    {row}," for row in rows),
            "};",
            "",
        ]
        return called

    def buffer(self, count: int, dtype: str) -> str:
        """Declare an array for a layer's output. Returns its name."""
        self.buffers += 1
        self.line(f"{_TYPES[dtype]} h{self.buffers}[{count}];")
        return f"h{self.buffers}"

    @staticmethod
    def type_of(dtype: str) -> str:
        return _TYPES[dtype]

    @staticmethod
    def number(dtype: str) -> Callable[[float], str]:
        """The function that writes a number exactly, in the type of C."""
        suffix = "f" if dtype == "float32" else ""
        return lambda value: (
            f"{float(value).hex()}{suffix}" if math.isfinite(value) else _NOT_FINITE[str(value)]
        )

    @staticmethod
    def widest(values: Iterable[Value]) -> str:
        return widest(value.dtype for value in values)

    def by_element(self, x: Value, expression: str, dtype: str | None = None) -> str:
        """Write y[i] = expression of x for each element. dtype: y's, by default x's. Returns y's name."""
        count = size_of(x.shape)
        y = self.buffer(count, dtype or x.dtype)
        with self.loop("i", count):
            self.line(f"const {_TYPES[x.dtype]} v = {x.name}[i];")
            self.line(f"{y}[i] = {_ONE.sub('v', expression)};")
        return y

    def softmax(self, x: Value, axis: int, logarithm: bool) -> str:
        """Write softmax along an axis of a sample, or its logarithm. Returns y's name."""
        before, extent, after = size_of(x.shape[:axis]), x.shape[axis], size_of(x.shape[axis + 1 :])
        y, kind = self.buffer(before * extent * after, x.dtype), _TYPES[x.dtype]
        at = f"(r * {extent} + k) * {after} + i"
        with self.loop("r", before), self.loop("i", after):
            self.line(f"{kind} most = {x.name}[r * {extent * after} + i], sum = 0;")
            with self.loop("k", extent):
                self.line(f"most = {x.name}[{at}] > most ? {x.name}[{at}] : most;")
            with self.loop("k", extent):
                self.line(f"{y}[{at}] = {x.name}[{at}] - most;")
                self.line(f"sum += exp({y}[{at}]);")
            with self.loop("k", extent):
                result = f"{y}[{at}] - log(sum)" if logarithm else f"exp({y}[{at}]) / sum"
                self.line(f"{y}[{at}] = {result};")
        return y
