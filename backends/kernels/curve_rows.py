"""Compiled kernels of activations: each call becomes one row of numbers for `curve_loops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import curve_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits

__all__ = ["CURVE_ROWS"]

#: For each activation its loops, its option and the option's default.
_CURVES: dict[Any, tuple[Any, Any, str, Any]] = {
    ops.gelu: (loops.gelu, loops.gelu_backward, "approximate", "none"),
    ops.silu: (loops.silu, loops.silu_backward, "", 0.0),
    ops.elu: (loops.elu, loops.elu_backward, "alpha", 1.0),
    ops.selu: (loops.elu, loops.elu_backward, "", type(ops.selu).alpha),
    ops.softplus: (loops.softplus, loops.softplus_backward, "beta", 1.0),
    ops.leaky_relu: (loops.leaky_relu, loops.leaky_relu_backward, "negative_slope", 0.01),
}


def _option(call: Call) -> float | None:
    """The option of an activation as a number; None for an option that only the op can judge."""
    forward = call.forward or call
    *_, name, default = _CURVES[call.op]
    option = forward.options.get(name, default)
    if not set(forward.options) <= {name}:
        return None
    if isinstance(option, str):
        return {"none": 0.0, "tanh": 1.0}.get(option) if name == "approximate" else None
    known = type(option) in (int, float) and (call.op is not ops.softplus or option > 0.0)
    return float(option) if known else None


def _serves(call: Call) -> bool:
    return fits(call) and len(call.reads[0].shape) > 1 and _option(call) is not None


def _curve(call: Call) -> ImageCall:
    forward = call.forward or call
    x, given, out = forward.reads[0].array, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    loop, option = _CURVES[call.op][call.kind == "backward"], _option(call)
    if call.op is ops.gelu and option:
        loop = loops.gelu_by_tanh_backward if call.kind == "backward" else loops.gelu_by_tanh
    scale = type(ops.selu).scale if call.op is ops.selu else 1.0
    made = new_call(call, loop)
    made.row += [
        made.address(x), made.address(given), made.address(out), x[0].size, x.itemsize,
        made.address(np.asarray([option, scale])),
    ]  # fmt: skip
    return made


CURVE_ROWS = {(kind, op): (_curve, _serves) for kind in ("forward", "backward") for op in _CURVES}
