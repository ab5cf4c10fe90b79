"""Layers, the parts of a model. A layer computes its output from an input and its parameters.

Read `layer.py` first (the base class), with `parameter.py` and `state.py` (what a layer holds); then `dense.py` for a
layer with weights, and `sequential.py` for the model. The other files hold layers of one kind each, except `files.py`
(saving and loading), `from_torch.py` (PyTorch's weights), `hidden.py` (finds parameters that a model would miss),
`by_hand.py` (layers with a backward written by hand) and `prediction.py` (predicts by kernels).
"""

from typing import TYPE_CHECKING

from xnn.graph.habits import module_habits
from xnn.layers.activations import (
    ELU,
    GELU,
    SELU,
    Flatten,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from xnn.layers.augment import ElasticDeformation, RandomAffine, augmentation
from xnn.layers.containers import Add, Container, Identity, Parallel
from xnn.layers.convolution import AvgPool2D, Conv2D, GlobalAvgPool, MaxPool2D
from xnn.layers.dense import Affine, Dense, Linear, Rescale
from xnn.layers.dropout import Drawing, Dropout
from xnn.layers.embedding import Embedding
from xnn.layers.functions import Function, Lambda
from xnn.layers.layer import Composite, Layer
from xnn.layers.normalization import BatchNorm, LayerNorm
from xnn.layers.parameter import Buffer, Parameter
from xnn.layers.sequential import Sequential

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Add",
    "Affine",
    "AvgPool2D",
    "BatchNorm",
    "Buffer",
    "Composite",
    "Container",
    "Conv2D",
    "Dense",
    "Drawing",
    "Dropout",
    "ElasticDeformation",
    "Embedding",
    "Flatten",
    "Function",
    "GlobalAvgPool",
    "Identity",
    "Lambda",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2D",
    "Parallel",
    "Parameter",
    "RandomAffine",
    "ReLU",
    "Rescale",
    "Reshape",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "augmentation",
]

if not TYPE_CHECKING:  # a type checker would take every name for an attribute
    __getattr__ = module_habits(__name__)
