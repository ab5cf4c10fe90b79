"""The mathematics of xnn: every differentiable function as an op, every optimizer's update as a rule.

An op can be called: `ops.relu(x)`. Arrays give an array, recorded values (inside `xnn.grad`) a recorded
value, graph nodes a node. What an op is, and how to write one: `xnn/ops/op.py`.
"""

from xnn.ops import updates
from xnn.ops.activations import dropout, relu, rescale, sigmoid, softmax, tanh
from xnn.ops.convolution import conv2d
from xnn.ops.elementwise import add, div, exp, log, maximum, mul, pow, sub, where
from xnn.ops.embedding import embedding
from xnn.ops.linear import dense, matmul
from xnn.ops.losses import binary_cross_entropy, column_mse, mse, softmax_cross_entropy
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.pooling import avg_pool2d, max_pool2d
from xnn.ops.reductions import max, mean, sum
from xnn.ops.shaping import concat, flatten, reshape, take, transpose

__all__ = [
    "Array",
    "Namespace",
    "Op",
    "add",
    "avg_pool2d",
    "binary_cross_entropy",
    "column_mse",
    "concat",
    "conv2d",
    "dense",
    "div",
    "dropout",
    "embedding",
    "exp",
    "flatten",
    "log",
    "matmul",
    "max",
    "max_pool2d",
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
    "where",
]
