"""The mathematics of xnn: every differentiable function as an op, every optimizer's update as a rule.

An op is called like a function, as in `ops.relu(x)`. Arrays give an array, recorded values (inside `xnn.grad`) give a
recorded value, graph nodes give a node. `xnn/ops/op.py` says what an op is and how to write one. The files:

elementwise     add, sub, mul, div, pow, exp, expm1, log, log1p, sqrt, sin, cos, erf, abs, sign, maximum, minimum,
                clip, where, stop_gradient
comparisons     less, less_equal, greater, greater_equal, equal, not_equal
reductions      sum, mean, var, max, min, l2_penalty
shaping         reshape, flatten, transpose, concat, stack, identity
indexing        getitem, take, embedding
linear          matmul, dense
convolution     conv2d; pooling: max_pool2d, avg_pool2d; images: warp
activations     relu, leaky_relu, elu, selu, gelu, sigmoid, silu, softplus, tanh, softmax, log_softmax,
                rescale, dropout
normalization   moments, normalize
losses          mse, l1, huber, hinge, column_mse
cross_entropy   softmax_cross_entropy, binary_cross_entropy, focal, kl_divergence
deviances       losses of scikit-learn's estimators, by its names: OF_SCIKIT_LEARN
updates         the rules of the optimizers
"""

from xnn.ops import updates
from xnn.ops.activations import (
    dropout,
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    rescale,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from xnn.ops.comparisons import equal, greater, greater_equal, less, less_equal, not_equal
from xnn.ops.convolution import conv2d
from xnn.ops.cross_entropy import binary_cross_entropy, focal, kl_divergence, softmax_cross_entropy
from xnn.ops.elementwise import (
    abs,
    add,
    clip,
    cos,
    div,
    erf,
    exp,
    expm1,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    pow,
    sign,
    sin,
    sqrt,
    stop_gradient,
    sub,
    where,
)
from xnn.ops.images import warp
from xnn.ops.indexing import embedding, getitem, take
from xnn.ops.linear import dense, matmul
from xnn.ops.losses import LossOp, column_mse, hinge, huber, l1, mse
from xnn.ops.normalization import moments, normalize
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.pooling import avg_pool2d, max_pool2d
from xnn.ops.reductions import l2_penalty, max, mean, min, sum, var
from xnn.ops.shaping import concat, flatten, identity, reshape, stack, transpose

__all__ = [
    "Array",
    "LossOp",
    "Namespace",
    "Op",
    "abs",
    "add",
    "avg_pool2d",
    "binary_cross_entropy",
    "clip",
    "column_mse",
    "concat",
    "conv2d",
    "cos",
    "dense",
    "div",
    "dropout",
    "elu",
    "embedding",
    "equal",
    "erf",
    "exp",
    "expm1",
    "flatten",
    "focal",
    "gelu",
    "getitem",
    "greater",
    "greater_equal",
    "hinge",
    "huber",
    "identity",
    "kl_divergence",
    "l1",
    "l2_penalty",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moments",
    "mse",
    "mul",
    "normalize",
    "not_equal",
    "pow",
    "relu",
    "rescale",
    "reshape",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "sqrt",
    "stack",
    "stop_gradient",
    "sub",
    "sum",
    "take",
    "tanh",
    "transpose",
    "updates",
    "var",
    "warp",
    "where",
]
