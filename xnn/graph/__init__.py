"""Graphs: recorded values, the one backward pass, and what is built on it: MiniFlow, autograd, gradient checks."""

from xnn.graph.miniflow import (
    MSE,
    Add,
    Input,
    Linear,
    Mul,
    Node,
    Sigmoid,
    forward_and_backward,
    forward_pass,
    sgd_update,
    topological_sort,
)

__all__ = [
    "MSE",
    "Add",
    "Input",
    "Linear",
    "Mul",
    "Node",
    "Sigmoid",
    "forward_and_backward",
    "forward_pass",
    "sgd_update",
    "topological_sort",
]
