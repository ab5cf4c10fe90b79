"""Recorded values, the backward pass, and what is built on it: autograd, static graphs, gradient checks.

Read in this order: `node.py` and `value.py` (recorded values), `scope.py` (whether ops are recorded), `backward.py`
(the backward pass), `autograd.py` (xnn.grad), `miniflow.py` and `taped.py` (static graphs), `check.py` (gradient
checks), `calls.py` (what was recorded as the calls of a program).
"""

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
