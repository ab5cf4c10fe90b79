"""to_torch: writes a model as a Python script of torch.nn, with a file of its weights."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np

from xnn.errors import OptionError
from xnn.exchange.row import Value
from xnn.exchange.target import Target
from xnn.files import check_writable, write_atomically
from xnn.layers import Sequential

__all__ = ["TORCH_SUFFIXES", "to_torch", "weights_beside"]

TORCH_SUFFIXES = (".py",)
#: What a script and PyTorch import: Python finds the files beside a script first.
_NEEDED = {"torch", "numpy", "safetensors", *sys.stdlib_module_names}

#: Modules that torch.nn does not have. A script has those that its network needs.
_MODULES = {
    "Add": '''
class Add(nn.ModuleList):
    """The sum of what several modules make of the same input."""

    def forward(self, x):
        return sum(module(x) for module in self)
''',
    "Parallel": '''
class Parallel(nn.ModuleList):
    """What several modules make of the same input, joined along an axis."""

    def along(self, axis):
        self.axis = axis
        return self

    def forward(self, x):
        return torch.cat([module(x) for module in self], self.axis)
''',
    "Function": '''
class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
''',
    "Rescale": '''
class Rescale(nn.Module):
    """y = (x - shift) * scale + offset, computed in one dtype and rounded to another."""

    def __init__(self, shapes, inside, dtype):
        super().__init__()
        self.inside, self.dtype = inside, dtype
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=inside))

    def forward(self, x):
        x = x.to(self.inside)
        if hasattr(self, "shift"):
            x = x - self.shift
        x = x * self.scale
        if hasattr(self, "offset"):
            x = x + self.offset
        return x.to(self.dtype)
''',
}

_SCRIPT = '''\
"""The network of {model}, as a module of PyTorch, written by xnn.

`load()` builds it and loads its weights from {weights}, in the mode for inference. It takes a batch
of samples (n, {shape}) of {dtype}, as the model was trained on them: scaling is inside.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_name("{weights}")

{modules}
def build():
    """The network, with random weights."""
    return {network}


def load(path=WEIGHTS):
    """The network with the weights of the file, in the mode for inference."""
    network = build()
    network.load_state_dict(load_file(path))
    return network.eval()


if __name__ == "__main__":
    print(load())
'''


def weights_beside(path: str | os.PathLike[str]) -> Path:
    """Where the weights of a script stand: net_weights.safetensors beside net.py."""
    return Path(path).with_name(f"{Path(path).stem}_weights.safetensors")


def to_torch(
    model: Sequential, path: str | os.PathLike[str], input_shape: int | tuple[int, ...] | None = None
) -> None:
    """Write a model as a Python script of torch.nn, and its weights beside it, in NAME_weights.safetensors.

    model: a Sequential of xnn's own layers.
    path: the .py file, such as net.py. Old files are replaced.
    input_shape: the shape of one sample; may be omitted as in `to_onnx`.

    The script has two functions: `build()` makes the network, an nn.Sequential; `load()` also loads the weights. It
    needs PyTorch and safetensors, and not xnn. Arrays have the names that they have in xnn, such as `1.weight`; those
    of Rescale are buffers. The layers of augmentation are nn.Identity, Dropout is nn.Dropout.

    Raises OptionError for a layer that cannot be exported, for a place that cannot be written, and for the name of a
    package that the script needs, such as torch.py; ShapeError and DTypeError for layers that do not fit together.

        >>> import tempfile
        >>> from pathlib import Path
        >>> import xnn
        >>> from xnn import exchange, layers
        >>> model = xnn.Sequential(layers.Dense(3, 2), layers.ReLU(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exchange.to_torch(model, Path(folder, "net.py"))
        ...     text = Path(folder, "net.py").read_text()
        >>> print(text.partition("return ")[2].partition("def load")[0].strip())
        nn.Sequential(
                nn.Linear(3, 2, bias=True),
                nn.ReLU(),
            )

    Source: the documentation of torch.nn, https://docs.pytorch.org/docs/stable/nn.html.
    """
    weights = weights_beside(check_writable(path, TORCH_SUFFIXES))
    if Path(path).stem in _NEEDED:
        raise OptionError(
            f"a script called {Path(path).name} would be imported in place of the package {Path(path).stem}, which "
            "it needs: give another name, such as net.py"
        )
    check_writable(weights)
    script = _Script(model, input_shape)
    text = script.text(Path(path).stem, weights.name)
    content: bytes = importlib.import_module("safetensors.numpy").save(script.arrays)
    write_atomically(weights, content)
    write_atomically(path, text.encode(), TORCH_SUFFIXES)


class _Script(Target):
    """A script of PyTorch: the values of its rules are the texts of modules."""

    format, column = "PyTorch", "torch"

    def __init__(self, model: Sequential, input_shape: int | tuple[int, ...] | None) -> None:
        super().__init__(model, input_shape)
        self.arrays: dict[str, np.ndarray] = {}

    def text(self, name: str, weights: str) -> str:
        """The whole script."""
        if not re.fullmatch(r"[\w .+-]+", weights):
            raise OptionError(
                f"{weights!r} cannot stand in a script: give a name of letters, digits, '_', '-' and '.'"
            )
        network = self.write_model().name
        modules = [text for kind, text in _MODULES.items() if re.search(rf"(?<![\w.]){kind}\(", network)]
        return _SCRIPT.format(
            model=name,
            weights=weights,
            shape=", ".join(map(str, self.input.shape)),
            dtype=self.input.dtype,
            modules="".join(f"{text}\n" for text in modules),
            network=network,
        )

    def array(self, name: str, value: np.ndarray) -> str:
        """Put an array of the layer that is written into the file of weights. Returns its name."""
        self.arrays[self.named(name)] = np.ascontiguousarray(value).reshape(value.shape)
        return self.named(name)

    def modules(self, kind: str, values: list[Value]) -> str:
        """The text of a module that holds others."""
        depth = self.place.count(".") + (1 if self.place else 0) + 1
        lines = "".join(f"{'    ' * (depth + 1)}{value.name},\n" for value in values)
        start, end = ("", "") if kind == "nn.Sequential" else ("[", "]")
        return f"{kind}({start}\n{lines}{'    ' * depth}{end})" if values else f"{kind}({start}{end})"
