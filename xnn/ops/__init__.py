"""The mathematics of xnn: every differentiable function as an op, every optimizer's update as a rule.

An op can be called: `ops.relu(x)`. Arrays give an array, recorded values (inside `xnn.grad`) a recorded
value, graph nodes a node. What an op is, and how to write one: `xnn/ops/op.py`.
"""

from xnn.ops import updates
from xnn.ops.activations import dropout, relu, rescale, sigmoid, softmax, tanh
from xnn.ops.elementwise import add, div, exp, log, maximum, mul, pow, sub, where
from xnn.ops.images import warp
from xnn.ops.linear import dense, matmul
from xnn.ops.losses import binary_cross_entropy, column_mse, mse, softmax_cross_entropy
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.reductions import max, mean, sum
from xnn.ops.shaping import concat, flatten, reshape, take, transpose

__all__ = [
    "Array",
    "Namespace",
    "Op",
    "add",
    "binary_cross_entropy",
    "column_mse",
    "concat",
    "dense",
    "div",
    "dropout",
    "exp",
    "flatten",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "mse",
    "mul",
    "pow",
    "relu",
    "rescale",
    "reshape",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "sub",
    "sum",
    "take",
    "tanh",
    "transpose",
    "updates",
    "warp",
    "where",
]
