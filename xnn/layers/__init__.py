"""Layers: thin state around ops, to be put together like bricks."""

from xnn.layers.dense import Affine, Dense, Linear, Rescale
from xnn.layers.dropout import Dropout
from xnn.layers.functions import Flatten, Function, ReLU, Sigmoid, Softmax, Tanh
from xnn.layers.layer import Layer, Parameter
from xnn.layers.sequential import Sequential

__all__ = [
    "Affine",
    "Dense",
    "Dropout",
    "Flatten",
    "Function",
    "Layer",
    "Linear",
    "Parameter",
    "ReLU",
    "Rescale",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
