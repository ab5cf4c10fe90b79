"""Layers: thin state around ops, to be put together like bricks."""

from xnn.layers.augment import ElasticDeformation, RandomAffine, augmentation
from xnn.layers.dense import Affine, Dense, Linear, Rescale
from xnn.layers.dropout import Drawing, Dropout
from xnn.layers.functions import Flatten, Function, ReLU, Sigmoid, Softmax, Tanh
from xnn.layers.layer import Layer, Parameter
from xnn.layers.sequential import Sequential

__all__ = [
    "Affine",
    "Dense",
    "Drawing",
    "Dropout",
    "ElasticDeformation",
    "Flatten",
    "Function",
    "Layer",
    "Linear",
    "Parameter",
    "RandomAffine",
    "ReLU",
    "Rescale",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "augmentation",
]
