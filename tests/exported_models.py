"""Models for the tests of exports: some for each of xnn's own layers, and for each op of one input."""

import numpy as np

from xnn import Sequential, layers, ops
from xnn.layers import Function

#: Models for each layer, by its class's name: the layers, and the shape of one sample.
OF_LAYERS = {
    "Dense": [
        ([layers.Dense(5, 3)], (5,)),
        ([layers.Dense(5, 3, bias=False)], (5,)),
        ([layers.Dense(5, 3)], (2, 5)),
        ([layers.Dense(5, 3, bias=False), layers.Dense(3, 4)], (4, 2, 5)),
    ],
    "Conv2D": [
        ([layers.Conv2D(2, 3, 3)], (2, 8, 7)),
        ([layers.Conv2D(2, 3, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False)], (2, 8, 7)),
        ([layers.Conv2D(2, 3, (2, 4), padding="same")], (2, 8, 7)),
        ([layers.Conv2D(2, 3, 3, padding="same", dilation=2)], (2, 8, 7)),
    ],
    "MaxPool2D": [
        ([layers.MaxPool2D(2)], (2, 8, 7)),
        ([layers.MaxPool2D((3, 2), stride=(1, 2), padding=(1, 1), dilation=(2, 1))], (2, 8, 7)),
    ],
    "AvgPool2D": [
        ([layers.AvgPool2D(2)], (2, 8, 7)),
        ([layers.AvgPool2D((3, 2), stride=(1, 2), padding=(1, 1))], (2, 8, 7)),
    ],
    "GlobalAvgPool": [([layers.GlobalAvgPool()], (3, 4, 5))],
    "BatchNorm": [
        ([layers.BatchNorm(4)], (4,)),
        ([layers.BatchNorm(4, epsilon=0.1, affine=False)], (4,)),
        ([layers.BatchNorm(4)], (4, 3)),
        ([layers.BatchNorm(4)], (4, 3, 2)),
    ],
    "LayerNorm": [
        ([layers.LayerNorm(4)], (4,)),
        ([layers.LayerNorm((3, 4), epsilon=0.1)], (2, 3, 4)),
        ([layers.LayerNorm(4, affine=False)], (3, 4)),
    ],
    "Embedding": [
        ([layers.Embedding(9, 4)], (3,)),
        ([layers.Embedding(9, 4), layers.Flatten(), layers.Dense(12, 2)], (3,)),
        ([layers.Parallel(layers.Embedding(9, 4), layers.Embedding(9, 2), axis=-1)], (3,)),
    ],
    "Rescale": [
        ([layers.Rescale(1 / 255, 0.5)], (4,)),
        ([layers.Rescale([1.0, 2.0, 3.0, 4.0], [0.5, 0.0, 1.0, -1.0])], (4,)),
        ([layers.Rescale(1 / 60, shift=1.7e9)], (4,)),
        ([layers.Rescale([[0.5], [2.0]], [[1.0], [2.0]], shift=[[3.0], [4.0]])], (2, 3)),
        ([layers.Dense(4, 2), layers.Rescale([1e3, 2.0], 0.0, "float64", shift=[1.0, 2.0])], (4,)),
    ],
    "Reshape": [
        ([layers.Reshape((2, 6))], (12,)),
        ([layers.Reshape((3, -1, 2)), layers.ReLU()], (2, 6)),
        ([layers.Dense(4, 6), layers.Reshape(6)], (4,)),
    ],
    "Flatten": [([layers.Flatten()], (2, 3, 4)), ([layers.Dense(4, 3), layers.Flatten()], (4,))],
    "Identity": [([layers.Identity()], (4,))],
    "Dropout": [([layers.Dropout(0.3), layers.Dense(4, 3), layers.Dropout()], (4,))],
    "RandomAffine": [([layers.RandomAffine()], (1, 6, 6))],
    "ElasticDeformation": [([layers.ElasticDeformation(), layers.Flatten()], (1, 6, 6))],
    "ReLU": [([layers.ReLU()], (4,))],
    "LeakyReLU": [([layers.LeakyReLU()], (4,)), ([layers.LeakyReLU(0.25)], (4,))],
    "ELU": [([layers.ELU()], (4,)), ([layers.ELU(0.5)], (4,))],
    "SELU": [([layers.SELU()], (4,))],
    "GELU": [([layers.GELU()], (4,)), ([layers.GELU("tanh")], (4,))],
    "SiLU": [([layers.SiLU()], (4,))],
    "Softplus": [([layers.Softplus()], (4,)), ([layers.Softplus(2.5)], (4,))],
    "Sigmoid": [([layers.Sigmoid()], (4,))],
    "Tanh": [([layers.Tanh()], (4,))],
    "Softmax": [([layers.Softmax()], (4,)), ([layers.Softmax(1)], (2, 4))],
    "LogSoftmax": [([layers.LogSoftmax()], (4,)), ([layers.LogSoftmax(1)], (3, 2, 4))],
    "Sequential": [
        ([Sequential(layers.Dense(4, 3), Sequential(layers.ReLU())), layers.Dense(3, 2)], (4,)),
        ([Sequential()], (4,)),
    ],
    "Add": [
        ([layers.Add(layers.Identity(), Sequential(layers.Dense(4, 4), layers.Tanh()))], (4,)),
        ([layers.Add(layers.ReLU())], (4,)),
        ([layers.Add(layers.Dense(4, 2), layers.Dense(4, 2), layers.Dense(4, 2))], (4,)),
        ([layers.Dense(4, 4), layers.Add(layers.Identity(), layers.Identity()), layers.ReLU()], (4,)),
        ([layers.Add(layers.Dense(4, 4), layers.Add(layers.Identity(), layers.Dense(4, 4)))], (4,)),
    ],
    "Parallel": [
        ([layers.Parallel(layers.Dense(4, 2), Sequential(layers.Dense(4, 3), layers.ReLU()))], (4,)),
        ([layers.Parallel(layers.Conv2D(1, 2, 1), layers.MaxPool2D(3, 1, 1), axis=1)], (1, 5, 5)),
        ([layers.Parallel(layers.ReLU(), layers.Rescale(2.0, dtype="float64"), axis=-1)], (2, 3)),
    ],
    "Function": [([Function(ops.exp), Function(ops.clip, min=0.5)], (4,))],
}  # fmt: skip

#: A layer for each op of one input that a file may hold; those of several options twice.
OF_OPS = [
    *map(Function, (
        ops.relu, ops.leaky_relu, ops.elu, ops.selu, ops.gelu, ops.silu, ops.softplus, ops.sigmoid, ops.tanh,
        ops.softmax, ops.log_softmax, ops.flatten, ops.identity, ops.stop_gradient, ops.abs, ops.sign, ops.exp,
        ops.expm1, ops.sin, ops.cos, ops.erf,
    )),
    Function(ops.clip, min=-0.5, max=0.5), Function(ops.clip, max=0.25),
    *(Function(op, axis=axis, keepdims=keepdims)
      for op in (ops.sum, ops.mean, ops.max, ops.min, ops.var) for axis, keepdims in ((1, False), ((-1, -2), True))),
    Function(ops.var, axis=(1, 3), correction=1),
    Function(ops.transpose, axes=(0, 2, -1, 1)),
    Function(ops.max_pool2d, kernel_size=2), Function(ops.avg_pool2d, kernel_size=2, stride=1, padding=1),
]  # fmt: skip
#: These need positive numbers.
OF_POSITIVE = [Function(ops.log), Function(ops.log1p), Function(ops.sqrt)]

#: Ops that take one array and have no form in a file, and why.
WITHOUT_A_FORM = {
    "add": "it joins several arrays", "mul": "it joins several arrays", "concat": "it joins several arrays",
    "stack": "it joins several arrays", "l2_penalty": "a number for all samples together",
    "getitem": "an index may be anything", "moments": "its first axis is not the batch",
    "reshape": "its shape has the number of samples in it: the layer Reshape has not",
    "rescale": "the layer Rescale has its numbers",
}  # fmt: skip


def changed(model):
    """The model with random arrays in the place of ones and zeros, so that a wrong order is seen."""
    random = np.random.default_rng(7)
    for name, array in model.named_state():
        drawn = random.normal(0.0, 0.4, array.shape)
        array.value = (np.abs(drawn) + 0.5 if "var" in name else drawn).astype(array.dtype)
    return model


def samples(model, shape, count, positive=False):
    """Random samples that the model takes, in the dtype in which an exported graph takes them."""
    random = np.random.default_rng(count)
    if any(type(layer).__name__ == "Embedding" for layer in model.all_layers()):
        return random.integers(0, 9, (count, *shape))
    x = random.normal(0.0, 2.0, (count, *shape))
    if positive:
        x = np.abs(x) + 0.1
    if model.takes_float64:
        shift = next(layer.shift for layer in model if isinstance(layer, layers.Rescale))
        return x * 60.0 + shift
    return x.astype(model.dtype)


def all_models():
    """(name, model, the shape of a sample, whether samples must be positive) of every model of the tables."""
    for name, cases in OF_LAYERS.items():
        for number, (inside, shape) in enumerate(cases):
            yield f"{name}-{number}", changed(Sequential(*inside, seed=1)), shape, False
    for number, layer in enumerate([*OF_OPS, *OF_POSITIVE]):
        yield f"{layer.op.name}-op-{number}", Sequential(layer), (2, 4, 3), layer in OF_POSITIVE
