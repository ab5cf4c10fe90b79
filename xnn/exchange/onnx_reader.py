"""OnnxReader: an ONNX file as a graph of operators, of which constants, shapes and some patterns are known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Never

import numpy as np

from xnn.errors import CorruptFileError, DataError
from xnn.exchange.onnx_graph import onnx_package
from xnn.files import reading

__all__ = ["OnnxReader", "Unit"]

#: The oldest opset whose operators mean what they mean today. Axes as attributes, of opset 17 and before, are read.
_OLDEST = 13
#: Operators of constants that are not computed: those with graphs inside, and those that draw random numbers.
_NEVER_COMPUTED = (
    "If", "Loop", "Scan", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial",
)  # fmt: skip


class Unit(NamedTuple):
    """An operator, or a pattern of several that are one layer.

    kind: the operator's name, or that of the pattern. node: the operator, the last one of a pattern.
    inputs: the names of the values that it reads, without constants. output: that of the value that it makes.
    """

    kind: str
    node: Any
    inputs: tuple[str, ...]
    output: str


class OnnxReader:
    """Reads a file. Raises DataNotFoundError or CorruptFileError for the file, DataError for what xnn cannot take."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.onnx = path, onnx_package()
        self.constants: dict[str, np.ndarray] = {}
        model = self._model()
        graph = model.graph
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.opsets = list(model.opset_import)
        self._check_opset()
        inputs = [value.name for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise DataError(
                f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs: xnn reads networks with one of "
                "each"
            )
        self.input, self.output = inputs[0], graph.output[0].name
        self._types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
        #: The node that makes a value, with its number in the order of the file.
        self.makers: dict[str, tuple[int, Any]] = {}
        for number, node in enumerate(graph.node):
            if not self._computed(node):
                self.makers |= {name: (number, node) for name in node.output if name}
        self._uses: dict[str, int] = {}
        for _, node in self.makers.values():
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1

    def _model(self) -> Any:
        onnx, path = self.onnx, self.path
        with reading(path):
            content = Path(path).read_bytes()
        try:
            model = onnx.load_model_from_string(content)
            onnx.external_data_helper.load_external_data_for_model(
                model, os.path.dirname(os.path.abspath(path))
            )
            onnx.checker.check_model(model)
            if model.functions:
                model = onnx.inliner.inline_local_functions(model)
            self.constants = {a.name: onnx.numpy_helper.to_array(a) for a in model.graph.initializer}
            return onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:  # of protobuf, of the checker, or of the system
            said = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise CorruptFileError(f"{path} is not an ONNX file that can be read: {said}") from error

    def _check_opset(self) -> None:
        version = next((entry.version for entry in self.opsets if entry.domain in ("", "ai.onnx")), 0)
        if version < _OLDEST:
            raise DataError(
                f"{self.path} is written in opset {version}, and xnn reads {_OLDEST} and later: "
                "onnx.version_converter.convert_version(onnx.load(path), 20) makes a newer file of it"
            )

    def _computed(self, node: Any) -> bool:
        """Compute a node whose inputs are all constants. Returns whether it was one."""
        if any(name and name not in self.constants for name in node.input) or node.op_type in _NEVER_COMPUTED:
            return False
        helper = self.onnx.helper
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "constant", [], outputs, [
            self.onnx.numpy_helper.from_array(self.constants[name], name) for name in set(node.input) if name
        ])  # fmt: skip
        try:
            from onnx.reference import ReferenceEvaluator

            found = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.opsets)).run(None, {})
        except Exception:  # an operator that onnx does not compute: it is named where it is used
            return False
        self.constants |= dict(zip(node.output, map(np.asarray, found), strict=True))
        return True

    # What a node says.

    def refuse(self, node: Any, why: str = "for which xnn has no layer") -> Never:
        """Raise DataError for an operator that cannot be read."""
        name = node.name or (node.output[0] if node.output else "")
        domain = f" of {node.domain}" if node.domain not in ("", "ai.onnx") else ""
        raise DataError(f"{self.path}: the node {name[:80]!r} is the operator {node.op_type}{domain}, {why}")

    def attributes(self, node: Any) -> dict[str, Any]:
        """A node's attributes. Numbers of float32 become the shortest decimal numbers that round to them."""
        found = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        return {
            name: float(str(np.float32(value))) if isinstance(value, float)
            else value.decode(errors="replace") if isinstance(value, bytes)
            else value
            for name, value in found.items()
        }  # fmt: skip

    def constant(self, node: Any, position: int) -> np.ndarray | None:
        """A constant input of a node; None if it has no such input. Raises DataError if the input is computed."""
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            self.refuse(node, f"whose input {position} is computed, and xnn takes a constant there")
        array: np.ndarray = self.constants[node.input[position]]
        return array

    def weight(self, node: Any, position: int) -> np.ndarray:
        """A constant input of float32 or float64 that a node must have."""
        array = self.constant(node, position)
        if array is None or array.dtype not in (np.float32, np.float64):
            kind = "missing" if array is None else f"of {array.dtype}"
            self.refuse(node, f"whose input {position} is {kind}, and xnn takes float32 and float64")
        return array

    def dtype(self, value: str) -> str:
        """The dtype of a value; float32 if the file does not say it."""
        kind = self._types[value].elem_type if value in self._types else 0
        return str(self.onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else "float32"

    def shape(self, value: str) -> tuple[Any, ...] | None:
        """The shape of a sample: the value's without the first axis, with None for what is not known.

        None if not even the number of axes is.
        """
        kind = self._types.get(value)
        if kind is None or not kind.HasField("shape") or not kind.shape.dim:
            return None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        return tuple(dims[1:])

    def is_of_batch(self, axis: int, value: str) -> bool:
        """Whether an axis of a value, which may be negative, is that of the batch, or is not known not to be."""
        shape = self.shape(value)
        return axis == 0 or (axis < -1 and (shape is None or axis + len(shape) + 1 <= 0))

    # Units.

    def unit(self, value: str) -> Unit:
        """What makes a value: a pattern of nodes if it is one, else a node."""
        if value not in self.makers:
            raise DataError(
                f"{self.path}: {value[:80]!r} is made by no node, so it does not depend on the input"
            )
        _, node = self.makers[value]
        if node.domain not in ("", "ai.onnx"):
            self.refuse(node)
        if value != node.output[0]:
            self.refuse(
                node, f"whose output {list(node.output).index(value)} is read, and xnn has its first alone"
            )
        found = self._pattern(node) if node.op_type == "Mul" else None
        if found is not None:
            return Unit(*found, value)
        inputs = node.input[:1] if node.op_type == "Reshape" else node.input
        return Unit(node.op_type, node, tuple(x for x in inputs if x and x not in self.constants), value)

    def _pattern(self, node: Any) -> tuple[str, Any, tuple[str, ...]] | None:
        """Products that are one layer: x sigmoid(x), and x (1 + erf(x / sqrt 2)) / 2."""
        number, factors = 1.0, []
        for factor, divides in self._factors(node):
            array = self.constants.get(factor)
            if array is None:
                factors.append(factor)
            elif self._is_number(factor):
                number = number / array.item() if divides else number * array.item()
            else:
                return None
        for x, other in (factors, factors[::-1]) if len(factors) == 2 else ():
            if self._made_by("Sigmoid", other) == [x] and number == 1.0:
                return "SiLU", node, (x,)
            if math.isclose(number, 0.5, rel_tol=1e-6) and self._is_normal_distribution(other, x):
                return "GELU", node, (x,)
        return None

    def _factors(self, node: Any) -> Iterator[tuple[str, bool]]:
        """The factors of a product, and of the products in it that nothing else reads; and whether each divides."""
        for name in node.input:
            maker = self.makers.get(name, (0, None))[1]
            inside = maker is not None and self._uses[name] == 1
            if inside and maker.op_type == "Mul":
                yield from self._factors(maker)
            elif inside and maker.op_type == "Div" and maker.input[1] in self.constants:
                yield from ((maker.input[0], False), (maker.input[1], True))
            else:
                yield name, False

    def _is_normal_distribution(self, value: str, x: str) -> bool:
        """Whether a value is 1 + erf(x / sqrt 2)."""
        for inside in self._made_by("Add", value):
            others = [name for name in self._made_by("Add", value) if name != inside]
            if not others or not self._is_number(others[0]) or self.constants[others[0]].item() != 1.0:
                continue
            for scaled in self._made_by("Erf", inside):
                node = self.makers.get(scaled, (0, None))[1]
                if node is None or node.op_type not in ("Mul", "Div") or x not in node.input:
                    continue
                divides = node.op_type == "Div"
                other = node.input[1] if divides or node.input[0] == x else node.input[0]
                if not self._is_number(other):
                    continue
                number = float(self.constants[other].item())
                if math.isclose(number, math.sqrt(2.0 if divides else 0.5), rel_tol=1e-6):
                    return True
        return False

    def _is_number(self, name: str) -> bool:
        """Whether this is a constant of one number, which leaves the shape of a value as it is."""
        array = self.constants.get(name)
        return array is not None and array.size == 1 and array.ndim < 2

    def _made_by(self, kind: str, value: str) -> list[str]:
        """The inputs of the node that makes a value, if it is of this operator; else none."""
        node = self.makers.get(value, (0, None))[1]
        return list(node.input) if node is not None and node.op_type == kind else []
