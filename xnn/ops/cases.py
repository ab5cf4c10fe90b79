"""The table of ops whose gradients are tested: each op with inputs to try it on.

Every op that has a gradient has a row. For each row, `xnn check` and the tests compare the gradient with central
differences, and the results of all backends, as a layer, in a graph and under autograd, with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xnn import ops
from xnn.ops.op import Op

__all__ = ["CASES", "Case"]


class Case(NamedTuple):
    """One row of the table: an op, its inputs and its options.

    inputs: one item for each input.
        a shape: numbers between 0.1 and 2 or -2 and -0.1, so that differences do not cross a kink at 0
        ("positive", shape): numbers between 0.1 and 2
        ("unit", shape): numbers between 0 and 1
        ("bool", shape): booleans
        ("int", shape, n): integers from 0 to n - 1
        a float: this Python number
    options: the op's options by name; none by default.
    """

    op: Op
    inputs: tuple[Any, ...]
    options: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """The op, its inputs and its options, for tables and names of tests."""
        options = ",".join(f"{k}={v}" for k, v in self.options.items())
        shapes = " ".join(str(i).replace(" ", "").replace("'", "") for i in self.inputs)
        return f"{self.op.name} {shapes}{' ' + options if options else ''}"


CASES: tuple[Case, ...] = (
    Case(ops.add, ((3, 4), (4,), (3, 1))),
    Case(ops.add, ((2, 3), 1.5)),
    Case(ops.sub, ((3, 4), (1, 4))),
    Case(ops.mul, ((3, 4), (4,), ())),
    Case(ops.div, ((3, 4), ("positive", (4,)))),
    Case(ops.pow, (("positive", (3, 4)), (4,))),
    Case(ops.pow, ((3, 4), 2.0)),
    Case(ops.exp, ((3, 4),)),
    Case(ops.log, (("positive", (3, 4)),)),
    Case(ops.expm1, ((3, 4),)),
    Case(ops.log1p, (("positive", (3, 4)),)),
    Case(ops.sqrt, (("positive", (3, 4)),)),
    Case(ops.sin, ((3, 4),)),
    Case(ops.cos, ((3, 4),)),
    Case(ops.erf, ((3, 4),)),
    Case(ops.abs, ((3, 4),)),
    Case(ops.maximum, ((3, 4), (3, 1))),
    Case(ops.minimum, ((3, 4), (3, 1))),
    Case(ops.clip, ((3, 4),), {"min": -0.75, "max": 1.25}),
    Case(ops.clip, ((3, 4),), {"max": 0.5}),
    Case(ops.where, (("bool", (3, 4)), (3, 4), (4,))),
    Case(ops.matmul, ((3, 4), (4, 2))),
    Case(ops.matmul, ((2, 3, 4), (4, 2))),
    Case(ops.matmul, ((4,), (4,))),
    Case(ops.matmul, ((4,), (2, 4, 3))),
    Case(ops.matmul, ((3, 4), (4,))),
    Case(ops.dense, ((5, 3), (3, 2), (2,))),
    Case(ops.dense, ((5, 3), (3, 2))),
    Case(ops.dense, ((3,), (3,), ())),
    Case(ops.dense, ((20, 30), (30, 10), (10,))),
    Case(ops.conv2d, ((2, 3, 5, 6), (4, 3, 3, 2), (4,))),
    Case(ops.conv2d, ((2, 1, 5, 5), (2, 1, 3, 3), (2,)), {"padding": "same"}),
    Case(ops.conv2d, ((2, 2, 7, 6), (3, 2, 2, 3)), {"stride": (2, 3), "padding": (1, 0)}),
    Case(ops.conv2d, ((1, 2, 8, 9), (2, 2, 3, 2), (2,)), {"stride": 2, "padding": 2, "dilation": (2, 3)}),
    Case(ops.max_pool2d, ((2, 3, 6, 4),), {"kernel_size": 2}),
    Case(ops.max_pool2d, ((2, 2, 6, 7),), {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1}),
    Case(ops.max_pool2d, ((1, 2, 7, 7),), {"kernel_size": 2, "stride": 3, "dilation": 3, "padding": (0, 2)}),
    Case(ops.avg_pool2d, ((2, 3, 6, 4),), {"kernel_size": 2}),
    Case(ops.avg_pool2d, ((2, 2, 6, 7),), {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1}),
    Case(ops.sum, ((3, 4),)),
    Case(ops.sum, ((2, 3, 4),), {"axis": (0, -1)}),
    Case(ops.mean, ((3, 4),), {"axis": 1, "keepdims": True}),
    Case(ops.mean, ((3, 4),)),
    Case(ops.var, ((3, 4),)),
    Case(ops.var, ((2, 3, 4),), {"axis": (0, -1), "keepdims": True, "correction": 1}),
    Case(ops.max, ((3, 4),), {"axis": 0}),
    Case(ops.max, ((3, 4),)),
    Case(ops.min, ((3, 4),), {"axis": 0}),
    Case(ops.min, ((3, 4),)),
    Case(ops.l2_penalty, ((3, 4),)),
    Case(ops.l2_penalty, ((3, 4), (2,), ()), {"strength": 0.3}),
    Case(ops.identity, ((3, 4),)),
    Case(ops.reshape, ((3, 4),), {"shape": (2, -1)}),
    Case(ops.flatten, ((2, 3, 4),)),
    Case(ops.transpose, ((2, 3, 4),)),
    Case(ops.transpose, ((2, 3, 4),), {"axes": (1, 2, 0)}),
    Case(ops.getitem, ((5, 3, 4),), {"index": (slice(1, -1), ..., 2)}),
    Case(ops.getitem, ((5, 3),), {"index": -2}),
    Case(ops.take, ((5, 3), ("int", (7,), 5))),
    Case(ops.take, ((3, 5), ("int", (9,), 5)), {"axis": 1}),
    Case(ops.warp, ((2, 3, 4, 5), (2, 2, 4, 5))),
    Case(ops.warp, ((3, 12), (3, 2, 3, 2))),
    Case(ops.embedding, (("int", (7,), 5), (5, 3))),
    Case(ops.embedding, (("int", (2, 3, 4), 6), (9, 2))),
    Case(ops.concat, ((2, 3), (4, 3))),
    Case(ops.concat, ((2, 3), (2, 1), (2, 2)), {"axis": -1}),
    Case(ops.stack, ((2, 3), (2, 3))),
    Case(ops.stack, ((2, 3), (2, 3), (2, 3)), {"axis": -1}),
    Case(ops.rescale, ((3, 4),), {"scale": 0.5, "offset": 0.25}),
    Case(ops.relu, ((3, 4),)),
    Case(ops.leaky_relu, ((3, 4),)),
    Case(ops.leaky_relu, ((3, 4),), {"negative_slope": 0.3}),
    Case(ops.elu, ((3, 4),), {"alpha": 1.5}),
    Case(ops.selu, ((3, 4),)),
    Case(ops.gelu, ((3, 4),)),
    Case(ops.gelu, ((3, 4),), {"approximate": "tanh"}),
    Case(ops.sigmoid, ((3, 4),)),
    Case(ops.silu, ((3, 4),)),
    Case(ops.softplus, ((3, 4),)),
    Case(ops.softplus, ((3, 4),), {"beta": 2.0}),
    Case(ops.tanh, ((3, 4),)),
    Case(ops.softmax, ((3, 4),)),
    Case(ops.softmax, ((3, 2, 4),), {"axis": 1}),
    Case(ops.log_softmax, ((3, 4),)),
    Case(ops.log_softmax, ((3, 2, 4),), {"axis": 1}),
    Case(ops.moments, ((5, 3),), {"axis": (0,)}),
    Case(ops.moments, ((3, 2, 2, 3),), {"axis": (0, 2, 3)}),
    Case(ops.moments, ((3, 4),), {"axis": (-1,)}),
    Case(ops.moments, ((3, 4),), {"axis": (1,), "scaled": True}),
    Case(ops.normalize, ((5, 3), ("positive", (2, 1, 3)), (3,), (3,)), {"axis": (0,)}),
    Case(ops.normalize, ((3, 2, 2, 3), ("positive", (2, 1, 2, 1, 1)), (2,), (2,)), {"axis": (0, 2, 3)}),
    Case(ops.normalize, ((3, 2, 4), ("positive", (2, 3, 1, 1)), (2, 4), (2, 4)), {"axis": (1, 2)}),
    Case(ops.normalize, ((5, 3), ("positive", (2, 1, 3))), {"axis": (0,), "epsilon": 0.1}),
    Case(ops.dropout, ((3, 4), ("bool", (3, 4))), {"rate": 0.5}),
    Case(ops.softmax_cross_entropy, ((5, 4), ("int", (5,), 4))),
    Case(ops.binary_cross_entropy, ((5, 1), ("unit", (5, 1)))),
    Case(ops.mse, ((5, 2), (5, 2))),
    Case(ops.mse, ((5, 2), (5, 2), ("unit", (5,)))),
    Case(ops.mse, ((5, 2), (5, 2)), {"reduction": "sum"}),
    Case(ops.mse, ((5, 2), (5, 2), ("unit", (5,))), {"reduction": "none"}),
    Case(ops.softmax_cross_entropy, ((5, 4), ("int", (5,), 4), ("unit", (5,))), {"reduction": "sum"}),
    Case(
        ops.softmax_cross_entropy,
        ((5, 4), ("int", (5,), 4), ("unit", (5,))),
        {"label_smoothing": 0.125, "class_weight": (0.5, 2.0, 1.0, 0.25), "ignore_index": 1},
    ),
    Case(ops.softmax_cross_entropy, ((5, 4, 3), ("int", (5, 3), 4)), {"label_smoothing": 0.125}),
    Case(ops.softmax_cross_entropy, ((5, 4), ("int", (5,), 4)), {"ignore_index": 2, "reduction": "none"}),
    Case(ops.softmax_cross_entropy, ((5, 4), ("unit", (5, 4)))),
    Case(
        ops.softmax_cross_entropy,
        ((5, 4), ("unit", (5, 4)), ("unit", (5,))),
        {"label_smoothing": 0.125, "class_weight": (0.5, 2.0, 1.0, 0.25)},
    ),
    Case(ops.binary_cross_entropy, ((5, 2), ("unit", (5, 2)), ("unit", (5,))), {"pos_weight": (3.0, 0.5)}),
    Case(ops.l1, ((5, 2), (5, 2), ("unit", (5,)))),
    Case(ops.huber, ((5, 2), (5, 2))),
    Case(ops.huber, ((5, 2), (5, 2), ("unit", (5,))), {"delta": 0.5}),
    Case(ops.hinge, ((5, 2), (5, 2), ("unit", (5,)))),
    Case(ops.focal, ((5, 2), ("unit", (5, 2)))),
    Case(ops.focal, ((5, 2), ("unit", (5, 2)), ("unit", (5,))), {"gamma": 0.5, "alpha": None}),
    Case(ops.kl_divergence, ((5, 4), ("unit", (5, 4)))),
    Case(ops.kl_divergence, ((5, 4, 2), ("unit", (5, 4, 2)), ("unit", (5,)))),
    Case(ops.column_mse, ((5,), (5, 1))),
)
