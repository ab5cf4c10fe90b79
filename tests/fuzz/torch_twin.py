"""The same network in PyTorch, for a model of xnn."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import layers
from xnn.layers import Layer, Sequential

__all__ = ["Twin"]


class Twin:
    """A model's network, computed by PyTorch's functions.

    torch: the package. model: the model; its parameters and buffers are copied.

    parameters, buffers: PyTorch's tensors, in the order of the model's.
    """

    def __init__(self, torch: Any, model: Sequential) -> None:
        self.torch, self.model = torch, model
        self.tensors = {p: torch.tensor(np.array(p.value)) for _, p in model.named_state()}
        self.parameters = [self.tensors[p].requires_grad_() for p in model.parameters()]
        self.buffers = [self.tensors[p] for p in model.buffers()]

    def __call__(self, x: Any, training: bool) -> Any:
        return self.run(self.model, x, training)

    def run(self, layer: Layer, x: Any, training: bool) -> Any:
        """A layer's output for a tensor x."""
        torch, functional = self.torch, self.torch.nn.functional
        weight, bias = (self.tensors.get(getattr(layer, name, None)) for name in ("weight", "bias"))
        match layer:
            case layers.Sequential():
                for inner in layer.layers:
                    x = self.run(inner, x, training)
                return x
            case layers.Add():
                return sum(self.run(inner, x, training) for inner in layer.layers)
            case layers.Parallel():
                return torch.cat([self.run(inner, x, training) for inner in layer.layers], layer.axis)
            case layers.Dense():
                return functional.linear(x, weight.T, bias)
            case layers.Embedding():
                return functional.embedding(x, weight)
            case layers.Conv2D():
                return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
            case layers.MaxPool2D():
                size = layer.kernel_size, layer.stride, layer.padding, layer.dilation
                return functional.max_pool2d(x, *size)
            case layers.AvgPool2D():
                return functional.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding)
            case layers.GlobalAvgPool():
                return functional.adaptive_avg_pool2d(x, 1).flatten(1)
            case layers.BatchNorm():
                moments = self.tensors[layer.running_mean], self.tensors[layer.running_var]
                options = training, layer.momentum, layer.epsilon
                return functional.batch_norm(x, *moments, weight, bias, *options)
            case layers.LayerNorm():
                return functional.layer_norm(x, layer.features, weight, bias, layer.epsilon)
            case layers.Rescale():
                scale, offset = (
                    torch.tensor(np.asarray(n, layer.dtype)) for n in (layer.scale, layer.offset)
                )
                return x * scale + offset
            case layers.Flatten():
                return x.flatten(1)
            case layers.Reshape():
                return x.reshape(len(x), *layer.shape)
            case layers.Identity() | layers.Dropout(rate=0.0):
                return x
            case layers.Function():
                return getattr(torch, layer.op.name)(x)
            case layers.Softmax() | layers.LogSoftmax():
                name = "softmax" if isinstance(layer, layers.Softmax) else "log_softmax"
                return getattr(functional, name)(x, layer.axis)
            case layers.LeakyReLU():
                return functional.leaky_relu(x, layer.negative_slope)
            case layers.ELU():
                return functional.elu(x, layer.alpha)
            case layers.GELU():
                return functional.gelu(x, approximate=layer.approximate)
            case layers.Softplus():  # by default PyTorch's is the identity from 20 on
                return functional.softplus(x, layer.beta, threshold=700)
            case _:
                return getattr(functional, type(layer).__name__.lower())(x)
