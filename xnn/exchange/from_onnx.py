"""from_onnx: reads an ONNX file as a model of xnn's layers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from xnn.errors import DataError
from xnn.exchange.onnx_reader import OnnxReader, Unit
from xnn.exchange.operators import JOINS, OPERATORS, Step
from xnn.layers import Add, Dense, Embedding, Flatten, Identity, Layer, Parallel, Rescale, Reshape, Sequential

__all__ = ["ReadModel", "from_onnx", "read_onnx"]

#: What `xnn train` notes in a model file, and to_onnx in the metadata.
_NOTES = ("dataset", "task", "features", "labels", "classes", "columns", "epochs")

_FLOATS = ("float32", "float64")
#: Operators that also take integers: they do not compute, or make floats of them.
_MOVING = ("Cast", "Gather", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose")


class ReadModel(NamedTuple):
    """A model that was read, and the notes of the file's metadata, such as the names of classes."""

    model: Sequential
    notes: dict[str, Any]


def from_onnx(path: str | os.PathLike[str]) -> Sequential:
    """Read an ONNX file as a model: a chain of layers, with branches that are added or joined.

    path: the .onnx file, of opset 13 or later, with one input, whose first axis is the batch, and one output.

    docs/export.md lists the operators. Weights of float32 and float64 are kept as they are. Arithmetic with constants
    becomes Rescale. The model can be trained further, and saved.

    Raises MissingExtraError without the package onnx, DataNotFoundError for a file that is not there,
    CorruptFileError for one that is not ONNX, and DataError for a graph with other operators, which it names.

        >>> import tempfile
        >>> from pathlib import Path
        >>> import xnn
        >>> from xnn import exchange, layers
        >>> model = xnn.Sequential(layers.Add(layers.Identity(), layers.Dense(2, 2)), layers.Softmax(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exchange.to_onnx(model, Path(folder, "net.onnx"), input_shape=2)
        ...     exchange.from_onnx(Path(folder, "net.onnx"))
        Sequential(Add(Identity(), Dense(2, 2)), Softmax())

    Source: the ONNX project, "ONNX Operators", https://onnx.ai/onnx/operators/.
    """
    return read_onnx(path).model


def read_onnx(path: str | os.PathLike[str]) -> ReadModel:
    """As from_onnx, with the notes that the file's metadata have in the form of to_onnx."""
    reader = OnnxReader(path)
    kept = {}
    for name in (*_NOTES, "seed", "numerics"):
        try:
            kept[name] = json.loads(reader.metadata.get(name, "null"))
        except (ValueError, RecursionError):
            continue  # another program's
    seed, numerics = kept.pop("seed", None), kept.pop("numerics", None)
    try:
        layers = _Structure(reader).layers()
    except RecursionError as error:
        raise DataError(f"{path} has operators that are too deep inside one another for xnn") from error
    model = Sequential(*layers, seed=seed if type(seed) is int and seed >= 0 else None)
    model.numerics = numerics if numerics in ("fast", "exact", "mixed") else None
    return ReadModel(model, {name: value for name, value in kept.items() if value is not None})


class _Structure:
    """Finds chains and branches in a graph.

    Every value is reached from the input through some values that no path avoids. The last of them is the value's
    gate. The branches of a node that joins values begin at the gate of the joined value, which all of them read.
    """

    def __init__(self, reader: OnnxReader) -> None:
        self.reader = reader
        self.units: dict[str, Unit] = {}
        waiting = [reader.output]
        while waiting:
            value = waiting.pop()
            if value != reader.input and value not in self.units:
                self.units[value] = reader.unit(value)
                waiting += self.units[value].inputs
        self.gates: dict[str, str] = {}
        self.depths = {reader.input: 0}
        for value in sorted(self.units, key=lambda value: reader.makers[value][0]):
            self.gates[value] = self._common(self.units[value])
            self.depths[value] = self.depths[self.gates[value]] + 1
        self.taken: set[str] = set()

    def _common(self, unit: Unit) -> str:
        """The last value that every path from the input to this unit goes through."""
        if not unit.inputs:
            self.reader.refuse(unit.node, "which reads no value that depends on the input")
        gate, *others = unit.inputs
        for other in others:
            while gate != other:
                if self.depths[gate] >= self.depths[other]:
                    gate = self.gates[gate]
                else:
                    other = self.gates[other]
        return gate

    def layers(self) -> list[Layer]:
        """The layers from the graph's input to its output."""
        return self._chain(self.reader.output, self.reader.input)

    def _chain(self, value: str, source: str) -> list[Layer]:
        """The layers from one value to another that depends on it."""
        found: list[Layer | Step] = []
        while value != source:
            unit = self.units[value]
            if value in self.taken:
                self.reader.refuse(unit.node, "whose output is read in a way that xnn's branches do not have")
            self.taken.add(value)
            if unit.kind in ("Sum", "Concat") and len(unit.inputs) < len(unit.node.input):
                self.reader.refuse(unit.node, "of values and constants, for which xnn has no layer")
            if len(unit.inputs) > 1:
                found, value = [self._joined(unit), *found], self.gates[value]
            else:
                found, value = [*self._read(unit), *found], unit.inputs[0]
        return list(_shorter(self._without_steps(found)))

    def _read(self, unit: Unit) -> list[Layer | Step]:
        """The layers of an operator of one value. Raises DataError for one that xnn does not have."""
        rule = OPERATORS.get(unit.kind)
        if rule is None:
            self.reader.refuse(unit.node)
        try:
            found = rule(self.reader, unit)
        except DataError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            said = (
                f"{str(error)[:200]}" or type(error).__name__
            )  # an option that xnn does not take, or a wrong file
            self.reader.refuse(unit.node, f"which cannot be a layer: {said}")
        self._check_numbers(unit)
        return found

    def _check_numbers(self, unit: Unit) -> None:
        """Raise DataError for an operator that computes with other numbers than floats: integers round and wrap."""
        dtype = self.reader.dtype(unit.inputs[0])
        if dtype not in _FLOATS and unit.kind not in _MOVING:
            self.reader.refuse(
                unit.node, f"of numbers of {dtype}: xnn computes with float32 and float64 alone"
            )

    def _joined(self, unit: Unit) -> Layer:
        """The layer whose branches a unit joins."""
        node, reader = unit.node, self.reader
        if unit.kind not in JOINS:
            reader.refuse(node, "of several values, for which xnn has no layer")
        self._check_numbers(unit)
        source = self.gates[unit.output]
        branches = [_as_one(self._chain(value, source)) for value in unit.inputs]
        if unit.kind != "Concat":
            shapes = {shape for value in unit.inputs if None not in (shape := reader.shape(value) or (None,))}
            if len(shapes) > 1:
                reader.refuse(
                    node, f"of values of different shapes, {', '.join(map(str, sorted(shapes, key=str)))}"
                )
            return Add(*branches)
        axis = reader.attributes(node)["axis"]
        if reader.is_of_batch(axis, unit.inputs[0]):
            reader.refuse(node, "along the axis of the batch")
        return Parallel(*branches, axis=axis)

    def _without_steps(self, found: list[Layer | Step]) -> list[Layer]:
        """The layers, with those in the place of steps of arithmetic that compute the same."""
        layers: list[Layer] = []
        steps: list[Step] = []
        for item in [*found, None]:
            if isinstance(item, Step):
                steps.append(item)
                continue
            if steps and layers:
                steps = _bias(layers[-1], steps, layers)
            if steps and not (isinstance(item, Embedding) and all(step.kind == "Cast" for step in steps)):
                layers += self._rescaled(steps)
            steps = []
            layers += [] if item is None else [item]
        return layers

    def _rescaled(self, steps: list[Step]) -> list[Layer]:
        before, dtype = steps[0].before, steps[-1].dtype
        if others := [step.dtype for step in steps if step.dtype not in _FLOATS]:
            raise DataError(
                f"{self.reader.path} computes with numbers of {others[0]}, and xnn has float32 and float64 alone"
            )
        scale, offset, shift = np.array(1.0), np.array(0.0), None
        untouched = True
        for kind, number, _, _ in steps:
            if number is None:
                continue
            if kind == "Sub" and untouched:
                shift = number
            elif kind in ("Sub", "Add"):
                offset = offset + number if kind == "Add" else offset - number
            else:
                factor = number if kind == "Mul" else 1.0 / number
                scale, offset = scale * factor, offset * factor if np.any(offset) else offset
            untouched = False
        if untouched and before == dtype:
            return []
        if shift is None and dtype == "float32" and any(step.dtype == "float64" for step in steps):
            shift = np.array(0.0)  # computed in float64, and rounded at the end
        if shift is None and dtype == "float32":
            scale, offset = _shortest(scale), _shortest(offset)
        return [Rescale(scale, offset, dtype, shift)]


def _shortest(number: np.ndarray) -> np.ndarray:
    """The shortest decimal numbers that round to these ones in float32, such as 0.1 for 0.10000000149."""
    texts = number.astype(np.float32).astype(str)
    return texts.astype(np.float64)


def _bias(last: Layer, steps: list[Step], layers: list[Layer]) -> list[Step]:
    """Put the first step into a Dense without a bias, if it is one. Returns the steps that are left."""
    kind, number, _, dtype = steps[0]
    if not isinstance(last, Dense) or last.bias is not None or kind != "Add" or dtype != last.dtype:
        return steps
    if number is None or number.shape != (last.outputs,):
        return steps
    dense = Dense(last.inputs, last.outputs, dtype=last.dtype)
    dense.weight.value = last.weight.value
    assert dense.bias is not None
    dense.bias.value = dense.backend.to_device(number.astype(last.dtype))
    layers[-1] = dense
    return steps[1:]


def _shorter(layers: Iterable[Layer]) -> list[Layer]:
    """The layers without a Reshape that another Reshape or a Flatten follows."""
    found: list[Layer] = []
    for layer in layers:
        if found and isinstance(layer, (Flatten, Reshape)) and isinstance(found[-1], Reshape):
            found.pop()
        found.append(layer)
    return found


def _as_one(layers: list[Layer]) -> Layer:
    """The layers of a branch as one layer."""
    if not layers:
        return Identity()
    return layers[0] if len(layers) == 1 else Sequential(*layers)
