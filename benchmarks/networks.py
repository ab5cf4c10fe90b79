"""The networks of `xnn bench --preset lenet,vgg,resnet,norms`: each is said once, and built in xnn and in PyTorch.

A layer is its name in xnn, its positional arguments and its options; PyTorch's layers take the same ones. A Residual
has two lists of layers, whose results are added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import layers
from xnn.backends import Purpose, Stream
from xnn.benchmarks.peers import Torch, need
from xnn.layers import Layer, Sequential
from xnn.optimizers import SGD, AdamW, Optimizer

__all__ = [
    "NETWORKS", "NETWORK_PEERS", "TorchNetwork", "draws", "flops", "has_adamw", "in_xnn", "optimizer", "weights",
]  # fmt: skip


#: Of each layer its name, positional arguments and options.
Description = list[tuple[Any, ...]]


def _conv(inputs: int, outputs: int, kernel: int, padding: int = 0, stride: int = 1) -> tuple[Any, ...]:
    return "Conv2D", (inputs, outputs, kernel), {"padding": padding, "stride": stride}


def _normed(inputs: int, outputs: int) -> Description:
    return [_conv(inputs, outputs, 3, 1), ("BatchNorm", (outputs,), {}), ("ReLU", (), {})]


def _residual(inputs: int, outputs: int, stride: int) -> Description:
    main = [
        _conv(inputs, outputs, 3, 1, stride), ("BatchNorm", (outputs,), {}), _RELU,
        _conv(outputs, outputs, 3, 1), ("BatchNorm", (outputs,), {}),
    ]  # fmt: skip
    shorter = [_conv(inputs, outputs, 1, 0, stride), ("BatchNorm", (outputs,), {})]
    return [("Residual", (main, shorter if stride > 1 else [("Identity", (), {})]), {}), _RELU]


_POOL: tuple[Any, ...] = ("MaxPool2D", (2,), {})
_RELU: tuple[Any, ...] = ("ReLU", (), {})
_FLATTEN: tuple[Any, ...] = ("Flatten", (), {})
_DROPOUT: tuple[Any, ...] = ("Dropout", (0.5,), {})

_LENET: Description = [
    _conv(1, 6, 5, 2), _RELU, _POOL, _conv(6, 16, 5), _RELU, _POOL, _FLATTEN,
    ("Dense", (400, 120), {}), _RELU, ("Dense", (120, 84), {}), _RELU, ("Dense", (84, 10), {}),
]  # fmt: skip

#: Layers by the name of the preset. The input is an image (1, 28, 28).
NETWORKS: dict[str, Description] = {
    "lenet": _LENET,
    "lenet-adamw": _LENET,
    "vgg": [
        *_normed(1, 32), *_normed(32, 32), _POOL, *_normed(32, 64), _POOL, _FLATTEN,
        ("Dense", (3136, 128), {}), _RELU, _DROPOUT, ("Dense", (128, 10), {}),
    ],
    "resnet": [
        *_normed(1, 16), *_residual(16, 16, 1), *_residual(16, 32, 2), *_residual(32, 64, 2),
        ("GlobalAvgPool", (), {}), ("Dense", (64, 10), {}),
    ],
    "norms": [
        _FLATTEN, ("Dense", (784, 512), {}), ("BatchNorm", (512,), {}), ("GELU", (), {}),
        ("Dense", (512, 256), {}), ("LayerNorm", (256,), {}), ("SiLU", (), {}), _DROPOUT, ("Dense", (256, 10), {}),
    ],
}  # fmt: skip
#: The other libraries' forms of these networks.
NETWORK_PEERS = ("torch", "torch-channels-last", "torch-compile", "jax-scan", "keras-jax")
_IN_TORCH = {"Conv2D": "Conv2d", "MaxPool2D": "MaxPool2d", "Dense": "Linear"}


def has_adamw(name: str) -> bool:
    """Whether a network is trained by AdamW."""
    return name.endswith("-adamw")


def optimizer(name: str, learning_rate: float) -> Optimizer:
    """The optimizer of a network, AdamW or SGD."""
    return (AdamW if has_adamw(name) else SGD)(learning_rate)


def draws(name: str) -> bool:
    """Whether a network has dropout, so that no two libraries get the same losses."""
    return any(layer[0] == "Dropout" for layer in NETWORKS[name])


def in_xnn(name: str) -> Sequential:
    """The network for rows of 784 pixels, which are bytes."""
    made = [_layer(*layer) for layer in NETWORKS[name]]
    return Sequential(layers.Rescale(1 / 255), layers.Reshape((1, 28, 28)), *made, seed=0)


def _layer(kind: str, given: tuple[Any, ...], options: dict[str, Any]) -> Layer:
    if kind == "Residual":
        return layers.Add(*(layers.Sequential(*(_layer(*layer) for layer in branch)) for branch in given))
    made: Layer = getattr(layers, kind)(*given, **options)
    return made


def weights(name: str, seed: int) -> list[np.ndarray]:
    """The initial parameters, in order: normal numbers of variance 2 / (inputs of a unit), zeros for biases."""
    found = []
    for number, parameter in enumerate(in_xnn(name).parameters()):
        value = np.array(parameter.value)
        if value.ndim > 1:
            inputs = value[:, 0].size if value.ndim == 2 else value[0].size
            value[...] = Stream(seed, Purpose.WEIGHTS, number).normal(value.shape) * (2.0 / inputs) ** 0.5
        found.append(value)
    return found


def flops(name: str, batch: int) -> int:
    """The floating-point operations of the products of a training step: forward, and both gradients."""
    counts = _products(NETWORKS[name], (1, 28, 28))[0]
    return batch * (3 * sum(counts) - counts[0])


def _products(described: Description, shape: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """The operations of each product of a forward pass for a sample of this shape, and the shape that comes out."""
    counts: list[int] = []
    for kind, given, options in described:
        if kind == "Residual":
            (own, after), (others, _) = (_products(branch, shape) for branch in given)
            counts, shape = counts + own + others, after
            continue
        layer = _layer(kind, given, options)
        if kind in ("Conv2D", "Dense"):
            counts.append(layer.flops(shape) or 0)
        shape = layer.output_shape(shape)
    return counts, shape


def _sum_of(nn: Any, main: Any, skip: Any) -> Any:
    """A module of PyTorch's: the sum of two modules."""

    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.main, self.skip = main, skip

        def forward(self, x: Any) -> Any:
            return self.main(x) + self.skip(x)

    return Residual()


class TorchNetwork(Torch):
    """PyTorch with one of these networks, in eager mode, with channels last, or compiled."""

    def __init__(self, network: str, form: str, *given: Any) -> None:
        self.network, self.form = network, form
        super().__init__(*given)

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        torch = self.torch = need("torch")
        self.net = self._stack(NETWORKS[self.network])
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value.T if value.ndim == 2 else value)))
        self.x = torch.from_numpy(self.x.reshape(-1, 1, 28, 28))
        if self.form == "torch-channels-last":
            self.net, self.x = (part.to(memory_format=torch.channels_last) for part in (self.net, self.x))
        self.loss, self.y = torch.nn.CrossEntropyLoss(), torch.tensor(self.y)
        rule = getattr(torch.optim, type(optimizer(self.network, learning_rate)).__name__)
        self.optimizer = rule(self.net.parameters(), lr=learning_rate, fused=True)
        self.trained = self.net
        if self.form == "torch-compile":
            self.net = torch.compile(self.net)

    def _stack(self, described: Description) -> Any:
        return self.torch.nn.Sequential(*(self._layer(*layer) for layer in described))

    def _layer(self, kind: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nn = self.torch.nn
        if kind == "Residual":
            return _sum_of(nn, *map(self._stack, given))
        if kind == "GlobalAvgPool":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        name = _IN_TORCH.get(kind, kind)
        if kind == "BatchNorm":
            name = "BatchNorm1d" if self.network == "norms" else "BatchNorm2d"
        return getattr(nn, name)(*given, **options)

    def parameters(self) -> list[np.ndarray]:
        found = [p.detach().numpy() for p in self.trained.parameters()]
        return [np.ascontiguousarray(p.T if p.ndim == 2 else p) for p in found]
