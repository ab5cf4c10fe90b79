"""to_onnx: writes a model as a file of ONNX, the format that other programs read."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xnn.errors import MissingExtraError, OptionError
from xnn.exchange.row import Value
from xnn.exchange.target import Target, widest
from xnn.files import check_writable, to_json, write_atomically
from xnn.layers import Container, Sequential
from xnn.options import shown

__all__ = ["ONNX_SUFFIXES", "OPSET", "onnx_package", "to_onnx"]

#: The version of ONNX's operators that files are written in, and that of the format itself which belongs to it.
OPSET, _IR = 20, 9
ONNX_SUFFIXES = (".onnx",)
#: Protocol buffers, in which ONNX is written, end at 2 GiB. The rest is for the nodes.
_MOST_BYTES = 2**31 - 2**24


def onnx_package() -> Any:
    """The package onnx. Raises MissingExtraError if it is not installed."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtraError('files of ONNX need the package onnx: pip install ".[onnx]"') from error


def to_onnx(
    model: Sequential,
    path: str | os.PathLike[str],
    input_shape: int | tuple[int, ...] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as an ONNX file, in inference: operators of opset 20, the axis of the batch of any size.

    model: a Sequential of xnn's own layers; docs/export.md lists them.
    path: the .onnx file, which is written whole or not at all. An old file is replaced.
    input_shape: the shape of one sample. It may be omitted if the model begins with a Reshape, also behind a Rescale,
        or if its first layer with weights is a Dense.
    notes: JSON values that are kept in the file's metadata, each as JSON text under its name, such as
        {"labels": ["cat", "dog"]}. Default none.

    The graph takes `x` (n, *input_shape) and gives `y`. x is float32; float64 for a model of float64 and for one
    whose first layer is a Rescale with a shift; int64 for a model that begins with Embedding. Rescale layers are in
    the graph, so samples go in as they went into training. Layers that only act in training are left out.

    Raises MissingExtraError without the package onnx, OptionError for a layer that cannot be exported, for a shape
    that is needed, for notes that JSON does not have, and for a place that cannot be written, ShapeError and
    DTypeError for layers that do not fit together.

        >>> import tempfile
        >>> from pathlib import Path
        >>> import xnn
        >>> from xnn import exchange, layers
        >>> model = xnn.Sequential(layers.Dense(3, 2), layers.ReLU(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exchange.to_onnx(model, Path(folder, "net.onnx"))
        ...     [file.name for file in Path(folder).iterdir()]
        ['net.onnx']

    Source: the ONNX project, "ONNX Operators", https://onnx.ai/onnx/operators/.
    """
    onnx_package()
    check_writable(path, ONNX_SUFFIXES)
    if not (notes is None or (isinstance(notes, Mapping) and all(isinstance(name, str) for name in notes))):
        raise OptionError(f"notes must be a dict of names and values of JSON, got {shown(notes)}")
    content = _Graph(model, input_shape).model_of(notes or {}).SerializeToString(deterministic=True)
    write_atomically(path, content, ONNX_SUFFIXES)


def _as_json(name: str, value: Any) -> str:
    try:
        return to_json(value)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"the note {name!r} is {shown(value)}, which is no value of JSON: {error}"
        ) from error


class _Graph(Target):
    """A graph of ONNX that grows node by node."""

    format, column = "ONNX", "onnx"

    def __init__(self, model: Sequential, input_shape: int | tuple[int, ...] | None) -> None:
        super().__init__(model, input_shape)
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def model_of(self, notes: Mapping[str, Any]) -> Any:
        """The whole model as onnx.ModelProto."""
        from xnn import __version__

        helper = self.onnx.helper
        last = self.write_model()
        self.nodes.append(helper.make_node("Identity", [last.name], ["y"], name="y"))
        size = sum(value.nbytes for value in self.constants.values())
        if size > _MOST_BYTES:
            raise OptionError(
                f"the model has {size / 2**30:.1f} GiB of weights, and a file of ONNX holds less than 2 GiB: export "
                "it to PyTorch"
            )
        graph = helper.make_graph(
            self.nodes,
            "xnn",
            [self._typed(self.input)],
            [self._typed(last._replace(name="y"))],
            [self.onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR,
            producer_name="xnn",
            producer_version=__version__,
        )
        about = {"seed": self.model.seed, "numerics": self.model.numerics, **notes}
        helper.set_model_props(
            model, {key: _as_json(key, value) for key, value in about.items() if value is not None}
        )
        self.onnx.checker.check_model(model)
        return model

    def _typed(self, value: Value) -> Any:
        kind = self._kind(value.dtype)
        return self.onnx.helper.make_tensor_value_info(value.name, kind, ["n", *value.shape])

    def _kind(self, dtype: str) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one operator. Returns the name of its output, which is also the node's."""
        name = self.named(f"{kind}_{len(self.nodes)}")
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def array(self, name: str, value: np.ndarray) -> str:
        """Add an array of the layer that is written. Returns its name."""
        name = self.named(name)
        if name in self.constants:
            name = f"{name}_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value) if value.ndim else value
        return name

    def number(self, value: float, dtype: str) -> str:
        """Add a single number. Returns its name."""
        return self.array("number", np.array(value, dtype))

    def cast(self, name: str, dtype: str, wanted: str) -> str:
        """The value in another dtype; the value itself if it has that."""
        return name if dtype == wanted else self.node("Cast", name, to=self._kind(wanted))

    def joined(self, container: Container, x: Value) -> list[str]:
        """Write the layers of a container, all of which read x. Returns the outputs' names, all in one dtype."""
        values = self.branches(container, x)
        dtype = widest(value.dtype for value in values)
        return [self.cast(value.name, value.dtype, dtype) for value in values]
