"""from_torch: puts the weights of a PyTorch network into a model with the same layers.

PyTorch is not imported: a tensor is used through its methods `detach`, `cpu`, `float` and `numpy`.
docs/from_pytorch.md shows both directions and names every array.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from xnn.backends import backend_of
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DeviceMemoryError, DTypeError, OptionError, ShapeError
from xnn.layers.containers import Container
from xnn.layers.dense import Dense
from xnn.layers.layer import Layer
from xnn.layers.parameter import Parameter
from xnn.options import explained_call, shown

__all__ = ["from_torch"]

_Model = TypeVar("_Model", bound=Layer)
#: What the methods of a tensor without numbers of its own raise, as one of the device "meta" or a quantized one.
_NO_NUMBERS = (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError)


@explained_call("xnn.from_torch(network.state_dict(), model)")
def from_torch(
    state_dict: Mapping[str, Any], model: _Model, names: Mapping[str, str] | None = None
) -> _Model:
    """Put the weights of a PyTorch network into a model with the same layers; all of them or none.

    state_dict: what `network.state_dict()` of a torch.nn.Module returns, on any device; or NumPy arrays by the same
        names, as `safetensors.numpy.load_file` reads them. Of float16, bfloat16, float32 or float64; they are copied
        and converted to the dtype of the model.
    model: a Sequential or another layer, whose layers with weights are those of the network. It is also returned.
    names: the layer of the model for each module of the network that has weights, such as {"encoder.fc": "0"}. By
        default layers and modules of the same names belong together, or else those in the same place in the order.

    A weight of `Dense`, y = x W + b, is the transpose of that of torch.nn.Linear. All other arrays are taken as they
    are, also those of layers of your own. A state_dict says neither what a module computes nor its options: give
    BatchNorm and LayerNorm the network's `eps` as `epsilon`, and compare the outputs of both for one batch. The
    counter `num_batches_tracked` of BatchNorm is not needed and left out.

    The order of the modules is that of the numbers in their names, as in torch.nn.Sequential, or else that of the
    state_dict. Modules of equal shapes that the network uses in another order than it made them in need `names`. So
    does a dictionary in the order of the alphabet, as safetensors files keep it.

    Raises OptionError if modules and layers do not fit together, ShapeError for an array of another shape, and
    DTypeError for arrays that are not floating-point, for NaN and infinity, and for numbers that are too large for
    the model's dtype.

        >>> import numpy as np
        >>> import xnn
        >>> from xnn import layers
        >>> state_dict = {"0.weight": np.array([[1.0, 2.0, 3.0]]), "0.bias": np.array([0.5])}
        >>> model = xnn.from_torch(state_dict, xnn.Sequential(layers.Dense(3, 1), layers.ReLU()))
        >>> model.predict([[1.0, 10.0, 100.0]]).tolist()
        [[321.5]]

    Source: the documentation of torch.nn.Module.state_dict.
    """
    if not isinstance(model, Layer):
        raise OptionError(f"from_torch takes a state_dict and a model, got {shown(model)} as the model")
    given = _arrays_of(state_dict)
    ours = dict(model.named_state())
    pairs = _pairs(list(given), list(ours), names)
    of_dense = {id(layer.weight) for layer in model.all_layers() if isinstance(layer, Dense)}
    lib = model.backend
    ready: dict[int, tuple[Parameter, np.ndarray, str]] = {}
    for theirs, name in pairs.items():
        parameter = ours[name]
        array = _fitting(given[theirs], theirs, parameter, name, id(parameter) in of_dense)
        before = ready.setdefault(id(parameter), (parameter, array, theirs))
        if not np.array_equal(before[1], array):
            raise OptionError(
                f"{before[2]} and {theirs} have different numbers, and the model has one array for both: build it "
                "with an array for each"
            )
    try:
        arrays = [(parameter, lib.to_device(array)) for parameter, array, _ in ready.values()]
    except DeviceMemoryError as error:
        raise lib.without_room(error, "the weights of the state_dict") from error.__cause__
    for parameter, value in arrays:
        parameter.value = value
    if isinstance(model, Container):
        model.numerics = None  # not trained by xnn
    return model


def _arrays_of(state_dict: Any) -> dict[str, Any]:
    """The arrays of a state_dict by name, without the counters of BatchNorm. Raises OptionError for anything else."""
    if not isinstance(state_dict, Mapping):
        how = ""
        if isinstance(state_dict, (str, os.PathLike)):
            how = ": safetensors.numpy.load_file(path) or torch.load(path, weights_only=True) reads one from a file"
        elif hasattr(state_dict, "state_dict"):
            how = ": give its .state_dict()"
        raise OptionError(f"from_torch takes a state_dict, arrays by name, got {shown(state_dict)}{how}")
    for name, value in state_dict.items():
        if not isinstance(name, str) or isinstance(value, Mapping):
            raise OptionError(
                f"a state_dict holds arrays by name, got {shown(value)} as {shown(name)}: of a checkpoint give the "
                "state_dict in it, such as checkpoint['state_dict']"
            )
    return {
        name: value
        for name, value in state_dict.items()
        if not (name.endswith("num_batches_tracked") and f"{name[:-19]}running_mean" in state_dict)
    }


def _pairs(theirs: list[str], ours: list[str], names: Mapping[str, str] | None) -> dict[str, str]:
    """The array of the model for each array of a state_dict, by their names."""
    modules, layers = _grouped(theirs), _grouped(ours)
    found: dict[str, str] = {}
    for module, layer in _modules_to_layers(modules, layers, names).items():
        if sorted(modules[module]) != sorted(layers[layer]):
            raise OptionError(
                f"{module or 'the network'} has {_listed(modules[module])}, and layer {layer or 'itself'} of the "
                f"model needs {_listed(layers[layer])}: build the same layers with the same options, or give "
                "names={module: layer}"
            )
        found |= {_joined(module, array): _joined(layer, array) for array in modules[module]}
    return found


def _grouped(names: list[str]) -> dict[str, list[str]]:
    """The names of the arrays of each module or layer: {"0": ["weight", "bias"]} for "0.weight" and "0.bias"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        owner, _, array = name.rpartition(".")
        groups.setdefault(owner, []).append(array)
    return groups


def _joined(owner: str, array: str) -> str:
    return f"{owner}.{array}" if owner else array


def _modules_to_layers(
    modules: dict[str, list[str]], layers: dict[str, list[str]], names: Mapping[str, str] | None
) -> dict[str, str]:
    """The layer for each module. Raises OptionError where that is not sure."""
    if names is not None:
        _check_names(names, modules, layers)
        return dict(names)
    # What all names begin with, such as the "module." of DataParallel, says nothing.
    parts = [module.split(".") for module in modules]
    shared = 0
    while parts and all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    short = dict(zip((".".join(part[shared:]) for part in parts), modules, strict=True))
    if short.keys() == layers.keys():
        return {module: layer for layer, module in short.items()}
    if len(modules) != len(layers):
        raise OptionError(
            f"the state_dict has arrays of {len(modules)} modules ({_listed(modules)}), and the model has "
            f"{len(layers)} layers with arrays ({_listed(layers)}): build the model with the same layers"
        )
    order = list(short)
    if all(part.isdecimal() for name in short for part in name.split(".")):
        order.sort(key=lambda name: [int(part) for part in name.split(".")])
    elif len(order) > 1 and any(_bias_first(arrays) for arrays in modules.values()):
        raise OptionError(
            f"the modules ({_listed(modules)}) come in the order of the alphabet, as in a safetensors file, which "
            f"may not be that of the layers ({_listed(layers)}): give names={{module: layer}}"
        )
    for name, layer in zip(order, layers, strict=True):
        if name in layers and name != layer and not name.rpartition(".")[2].isdecimal():
            raise OptionError(
                f"the state_dict's {short[name]} would go into layer {layer}, by the order, and there is a layer "
                f"{name}: give names={{module: layer}}"
            )
    return {short[name]: layer for name, layer in zip(order, layers, strict=True)}


def _bias_first(arrays: list[str]) -> bool:
    """Whether the order is that of the alphabet; PyTorch's modules have the weight first."""
    return {"weight", "bias"} <= {*arrays} and arrays.index("bias") < arrays.index("weight")


def _check_names(names: Any, modules: dict[str, list[str]], layers: dict[str, list[str]]) -> None:
    """Raise OptionError unless each module with arrays has a layer of its own, and each layer a module."""
    if not isinstance(names, Mapping):
        raise OptionError(f"names must be a dict such as {{'encoder.fc': '0'}}, got {shown(names)}")
    for what, named, there in (("module", names.keys(), [*modules]), ("layer", names.values(), [*layers])):
        listed = list(named)
        wrong = [name for name in listed if name not in there or listed.count(name) > 1]
        missing = [name for name in there if name not in listed]
        if wrong or missing:
            fault = f"lacks {shown(missing[0])}"
            if wrong:
                fault = f"has {shown(wrong[0])}, which is no {what} with arrays or stands there twice"
            raise OptionError(f"names {fault}: give each {what} once, {_listed(there)}")


def _fitting(value: Any, theirs: str, parameter: Parameter, name: str, transposed: bool) -> np.ndarray:
    """A copy of an array of a state_dict as the parameter needs it. Raises ShapeError or DTypeError."""
    array = as_host_array(_on_host(value, theirs), theirs)
    if not isinstance(array, np.ndarray):
        array = backend_of(array).to_host(array)
    if array.dtype.kind != "f":
        raise DTypeError(
            f"{theirs} holds {array.dtype}, and weights are floating-point numbers: convert it, or dequantize the "
            "network"
        )
    shape = parameter.shape[::-1] if transposed else parameter.shape
    if array.shape != shape:
        raise ShapeError(
            f"{theirs} has shape {array.shape}, and {name} of the model needs {shape}"
            f"{' in the layout of torch.nn.Linear' if transposed else ''}"
        )
    if not np.isfinite(array).all():
        raise DTypeError(f"{theirs} holds NaN or infinity: take weights from before the training diverged")
    with np.errstate(over="ignore"):
        fitting = np.array(array.T if transposed else array, dtype=parameter.dtype, order="C")
    if not np.isfinite(fitting).all():
        raise DTypeError(
            f"{theirs} holds numbers that are too large for {parameter.dtype}: build the layers with dtype='float64'"
        )
    return fitting


def _on_host(value: Any, name: str) -> Any:
    """A tensor of PyTorch as a NumPy array; bfloat16, which NumPy does not have, as float32. Else the value."""
    if not hasattr(value, "detach"):
        return value
    try:
        tensor = value.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    except _NO_NUMBERS as error:
        raise DTypeError(f"{name} cannot be made a NumPy array: {str(error)[:200]}") from error


def _listed(names: Any) -> str:
    """Up to eight names in one line."""
    listed = [name or "itself" for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
