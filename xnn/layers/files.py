"""Weight files: a model's layers and parameters in one .safetensors file, which holds no code to run.

The file's tensors are the parameters and buffers, by name (`1.weight`). `safetensors_file.py` describes the rest, and
checks that no byte of the file has changed since it was saved.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import backend_of, current_backend, current_numerics
from xnn.errors import CorruptFileError, DeviceMemoryError, OptionError
from xnn.files import write_atomically
from xnn.layers.containers import Container, Parallel
from xnn.layers.functions import Function, Lambda
from xnn.layers.layer import Layer
from xnn.layers.parameter import Parameter
from xnn.layers.safetensors_file import FORMAT, SavedModel, read_file, tensors_sha256, to_bytes
from xnn.ops import Op

__all__ = ["load", "load_weights", "metadata", "save", "weights_sha256"]

# What the constructors of layers raise for arguments that no layer has.
_WRONG = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    IndexError,
    RecursionError,
    MemoryError,
)


def weights_sha256(model: Container) -> str:
    """SHA-256 over the bytes (little-endian) of all parameters and buffers of a model, in order."""
    return tensors_sha256(_host_weights(model).values())


def save(model: Container, path: str | os.PathLike[str], notes: dict[str, Any] | None = None) -> None:
    """Write the model's file, whole or not at all.

    path: the .safetensors file. notes: JSON values that are kept in its metadata.

    A file holds no code: of a model with layers or ops of the user's it holds the weights alone. Raises OptionError
    for a place that cannot be written and for notes that JSON does not have, DiskError when the disk is full.
    """
    try:
        described = _describe(model)
    except OptionError as unknown:  # `load` then says how to get the weights back
        described = {"layers": None, "unknown": str(unknown)}
    header = {
        "format": FORMAT,
        **described,
        "numerics": model.numerics or current_numerics(),
        "notes": notes or {},
    }
    header["frozen"] = [name for name, parameter in model.named_parameters() if parameter.frozen]
    write_atomically(path, to_bytes(_host_weights(model), header), (".safetensors",))


def load(path: str | os.PathLike[str]) -> Container:
    """The saved model, on the current backend. Raises DataNotFoundError, CorruptFileError or OptionError."""
    saved = read_file(path)
    header = saved.header
    if header.get("unknown"):
        raise OptionError(
            f"{path} holds the weights of a model with {header['unknown']}, which is not one of xnn's own layers: "
            "build the model with its own code, then model.load_weights(path)"
        )
    try:
        model: Any = _build(
            {"type": "Sequential", "seed": header["seed"], "layers": header["layers"]}, "", saved.tensors
        )
    except DeviceMemoryError as error:  # the file is right
        raise current_backend().without_room(error, f"the weights in {path}") from error.__cause__
    except _WRONG as error:
        raise CorruptFileError(
            f"{path} does not describe a model that can be built: {str(error)[:300]}"
        ) from error
    parameters = dict(model.named_state())
    _check(parameters, saved)
    model.numerics = header.get("numerics")
    for name in header.get("frozen", ()):
        if name not in parameters:
            raise CorruptFileError(f"{path} says that {name[:60]} is frozen, which the model does not have")
        parameters[name].frozen = True
    return model  # type: ignore[no-any-return]


def load_weights(model: Container, path: str | os.PathLike[str]) -> None:
    """Put the file's parameters into a model with the same names and shapes; all of them or none."""
    saved = read_file(path)
    wanted, lib = dict(model.named_state()), model.backend
    _check(wanted, saved)
    try:
        arrays = {name: lib.to_device(saved.tensors[name]) for name in wanted}
    except DeviceMemoryError as error:
        raise lib.without_room(error, f"the weights in {path}") from error.__cause__
    for name, parameter in wanted.items():
        parameter.value = arrays[name]
    model.numerics = saved.header.get("numerics")


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's header: layers, seed, numerics, notes."""
    return read_file(path).header


def _host_weights(model: Container) -> dict[str, np.ndarray]:
    return {
        name: np.ascontiguousarray(backend_of(p.value).to_host(p.value)) for name, p in model.named_state()
    }


def _own_op(name: str) -> Op | None:
    found = [op for op in vars(ops).values() if isinstance(op, Op) and op.name == name]
    return found[0] if found else None


def _describe(layer: Layer) -> dict[str, Any]:
    """Type and arguments of a layer, and of the layers inside it. Raises OptionError, with the layer's text, for a
    layer that is not one of xnn's own.
    """
    kind = type(layer).__name__
    if Layer.own.get(kind) is not type(layer):
        raise OptionError(full_text(layer))
    config = layer.config()
    if isinstance(layer, Function) and (_own_op(config["op"]) is not layer.op or not _is_json(config)):
        raise OptionError(full_text(layer))
    if "layers" in config:
        config["layers"] = [_describe(inner) for inner in config["layers"]]
    return {"type": kind, **config}


def full_text(layer: Layer) -> str:
    """A layer with all its options, as logs and weight files have kept it since version 0.1; its repr is shorter."""
    says = next(kind for kind in type(layer).__mro__ if "__repr__" in vars(kind))
    if isinstance(layer, Lambda) or not says.__module__.startswith("xnn.layers."):
        return repr(layer)
    parts = [f"{key}={value!r}" for key, value in layer.config().items()]
    if isinstance(layer, Container):
        parts = [full_text(inner) for inner in layer.layers]
        parts += [f"axis={layer.axis}"] if isinstance(layer, Parallel) else []
    return f"{type(layer).__name__}({', '.join(parts)})"


def _is_json(config: dict[str, Any]) -> bool:
    try:
        json.dumps(config)
    except TypeError:
        return False
    return True


def _build(entry: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> Layer:
    """The layer that an entry describes, with its weights from the file.

    No weights are drawn, so that a file that claims a huge size without its tensors costs no memory.
    """
    entry = dict(entry)
    kind = entry.pop("type")
    if kind not in Layer.own:
        raise ValueError(f"xnn has no layer {kind!r}")
    if kind == "Function":
        entry["op"] = _own_op(entry["op"])
    inner = [_build(e, f"{prefix}{i}.", tensors) for i, e in enumerate(entry.pop("layers", ()))]
    layer: Layer = Layer.own[kind](*inner, **entry)
    for parameter in (array for _, array in layer.own_state()):
        if prefix + parameter.name not in tensors:
            raise ValueError(f"{prefix}{parameter.name} is missing")
        tensor = tensors[prefix + parameter.name]
        _check_fit(prefix + parameter.name, parameter, tensor)
        parameter.value = current_backend().to_device(tensor)
    return layer


def _check_fit(name: str, parameter: Parameter, tensor: np.ndarray) -> None:
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        raise ValueError(
            f"{name} is {tensor.dtype}{list(tensor.shape)}, "
            f"the model needs {parameter.dtype}{list(parameter.shape)}"
        )


def _check(wanted: dict[str, Parameter], saved: SavedModel) -> None:
    """Raise CorruptFileError unless a file's names, shapes and dtypes are the model's, and its digest is right."""
    path, tensors = saved.path, saved.tensors
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise CorruptFileError(
            f"{path} does not fit the model: missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(extra) or 'nothing'}"
        )
    try:
        for name, parameter in wanted.items():
            _check_fit(name, parameter, tensors[name])
    except ValueError as error:
        raise CorruptFileError(f"{path} does not fit the model: {error}") from error
    if saved.header["format"] != FORMAT and saved.weights_sha256 != tensors_sha256(
        tensors[name] for name in wanted
    ):
        raise CorruptFileError(
            f"{path}: the weights do not match the digest that was saved with them, so the file is damaged: fetch it "
            "again, or train again"
        )
