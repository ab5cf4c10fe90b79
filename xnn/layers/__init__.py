"""Layers: thin state around ops, to be put together like bricks."""

from xnn.layers.convolution import AvgPool2D, Conv2D, GlobalAvgPool, MaxPool2D
from xnn.layers.dense import Affine, Dense, Linear, Rescale
from xnn.layers.dropout import Dropout
from xnn.layers.embedding import Embedding
from xnn.layers.functions import Flatten, Function, ReLU, Sigmoid, Softmax, Tanh
from xnn.layers.layer import Layer, Parameter
from xnn.layers.sequential import Sequential

__all__ = [
    "Affine",
    "AvgPool2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "Function",
    "GlobalAvgPool",
    "Layer",
    "Linear",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "Rescale",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
