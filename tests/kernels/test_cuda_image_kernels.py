"""The CUDA kernels of convolution and pooling compared with their ops, which NumPy runs."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cuda_kernels import DTYPES, Both, close, numbers, pytestmark, run_with_checks
from test_image_kernels import CASES

from xnn import ops
from xnn.backends import get_backend
from xnn.backends.kernels.calls import Call

__all__ = ["pytestmark"]


@pytest.fixture(params=["backward", "random"])
def both(request):
    """Slots for kernels and ops; on the emulated GPU in several orders of threads."""
    attached = sys.modules.get("cuda_emulator.attach")
    if attached is None or attached._driver is None:
        if request.param != "random":
            pytest.skip("the order of threads can be chosen on the emulated GPU only")
        yield Both(get_backend("cupy"))
        return
    from cuda_emulator.kernels import settings

    with settings(order=request.param):
        yield Both(get_backend("cupy"))


LARGER = [((3, 2, 33, 31), (5, 2, 3, 3), {"padding": 1}), ((9, 3, 24, 24), (4, 3, 3, 3), {})]


def conv_calls(s, options, activation, bias, unwanted=()):
    """A convolution with its gradients, of which some may be unwanted."""
    names = ["dx", "dw", *["db"] * bias]
    reads, writes = (s["x"], s["w"]), tuple(None if name in unwanted else s[name] for name in names)
    reads = (*reads, s["b"]) if bias else reads
    forward = Call("forward", ops.conv2d, reads, (s["z"],), options)
    if activation is None:
        return [forward, Call("backward", ops.conv2d, (s["dy"],), writes, forward=forward)]
    act = Call("forward", activation, (s["z"],), (s["y"],))
    back = Call("backward", activation, (s["dy"],), (s["dz"],), forward=act)
    plain = Call("backward", ops.conv2d, (s["dz"],), writes, forward=forward)
    fused = Call(
        "forward", ops.conv2d, reads, (s["y"],), options, activation=activation, parts=(forward, act)
    )
    return [fused, Call("backward", ops.conv2d, (s["dy"],), writes, forward=fused, parts=(back, plain))]


@pytest.mark.parametrize("case", [*CASES, *LARGER], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "bias"), [(None, True), (ops.relu, True), (ops.tanh, False)], ids=str)
def test_conv2d(both, case, dtype, activation, bias):
    x, w, options = case
    y = ops.conv2d(np.zeros(x, dtype), np.zeros(w, dtype), **options).shape
    for number, (name, shape) in enumerate({"x": x, "w": w, "b": w[:1], "dy": y}.items()):
        both.slot(name, numbers(shape, dtype, number))
    for name, shape in {"z": y, "y": y, "dz": y, "dx": x, "dw": w, "db": w[:1]}.items():
        both.empty(name, shape, dtype)

    found = both.run(lambda s: conv_calls(s, options, activation, bias))
    terms = 4.0 * max(np.prod(w[1:]), y[0] * y[2] * y[3])
    for name in ("y" if activation else "z", "dx", "dw", *(["db"] if bias else [])):
        close(*found[name], terms, size=4.0)
    for name in ("x", "w", "b", "dy"):
        assert found[name][0].tobytes() == found[name][1].tobytes(), f"{name} was written"


@pytest.mark.parametrize("unwanted", [("dx",), ("dw", "db"), ("db",)], ids=str)
def test_gradients_of_conv2d_that_nothing_needs(both, unwanted):
    for number, (name, shape) in enumerate(
        {"x": (2, 2, 5, 5), "w": (3, 2, 3, 3), "b": (3,), "dy": (2, 3, 3, 3)}.items()
    ):
        both.slot(name, numbers(shape, "float32", number))
    for name, shape in {"y": (2, 3, 3, 3), "dx": (2, 2, 5, 5), "dw": (3, 2, 3, 3), "db": (3,)}.items():
        both.empty(name, shape, "float32")

    def make(s):
        forward = Call("forward", ops.conv2d, (s["x"], s["w"], s["b"]), (s["y"],))
        writes = tuple(None if name in unwanted else s[name] for name in ("dx", "dw", "db"))
        return [forward, Call("backward", ops.conv2d, (s["dy"],), writes, forward=forward)]

    found = both.run(make)
    for name in {"dx", "dw", "db"} - set(unwanted):
        close(*found[name], 100.0)


POOLS = [
    ((1, 1, 4, 4), {"kernel_size": 2}),
    ((3, 2, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 3, 9, 11), {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 1)}),
    ((2, 2, 5, 5), {"kernel_size": 5, "stride": 1, "padding": 2}),
    ((5, 6, 28, 28), {"kernel_size": 2}),
]


@pytest.mark.parametrize(
    "case", [*POOLS, ((2, 3, 9, 8), {"kernel_size": 2, "dilation": 3, "stride": 1})], ids=str
)
@pytest.mark.parametrize("op", [ops.max_pool2d, ops.avg_pool2d], ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_pooling(both, case, op, dtype, special):
    """Also of NaN, infinities and windows with several largest elements."""
    shape, options = case
    if op is ops.avg_pool2d and "dilation" in options:
        pytest.skip("average pooling has no dilation")
    x = np.round(numbers(shape, dtype, 1), 1)
    if special:
        x.reshape(-1)[[0, 1, 2, -1, -2]] = np.nan, np.inf, -np.inf, np.nan, np.nan
        x[0, 0, 3:] = -np.inf
    both.slot("x", x)
    y = op(np.zeros(shape, dtype), **options).shape
    both.slot("dy", numbers(y, dtype, 2))
    both.empty("y", y, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    close(*found["y"], 16, special=special)
    close(*found["dx"], 8)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 9), (2, 3, 20, 20)], ids=str)
@pytest.mark.parametrize(
    "options", [{"axis": (2, 3)}, {"axis": (3, 2), "keepdims": True}, {}, {"axis": -1}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_over_neighbouring_axes(both, shape, options, dtype):
    x = numbers(shape, dtype, 1)
    y = np.asarray(ops.mean(x, **options))
    both.slot("x", x)
    both.slot("dy", np.asarray(numbers(y.shape, dtype, 2)))
    both.empty("y", y.shape, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", ops.mean, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", ops.mean, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    close(*found["y"], 16, size=1.0)
    close(*found["dx"], 4)


@pytest.mark.slow  # it compiles every kernel again, with checks
def test_there_are_no_races_and_no_accesses_out_of_bounds():
    """The tests of kernels once more in a process that checks every access; only the emulated GPU can."""
    attached = sys.modules.get("cuda_emulator.attach")
    if attached is None or attached._driver is None or attached.CHECK in os.environ:
        pytest.skip("the checks of the emulated GPU")
    run_with_checks("random and float32", *sorted(Path(__file__).parent.glob("test_cuda_*_kernels.py")))
