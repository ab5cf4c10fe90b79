"""The compiled kernels of activations that need e^x, of softmax and of embeddings compared with their ops."""

import numpy as np
import pytest
from test_kernels import DTYPES, LIB, Both, close, numbers
from test_pooling_kernels import pass_through

from xnn import ops
from xnn.backends.kernels import workers
from xnn.backends.kernels.calls import Call, Slot

pytest.importorskip("numba")
image_calls = pytest.importorskip("xnn.backends.kernels.image_calls")

CURVES = [
    (ops.gelu, {}),
    (ops.gelu, {"approximate": "none"}),
    (ops.gelu, {"approximate": "tanh"}),
    (ops.silu, {}),
    (ops.elu, {}),
    (ops.elu, {"alpha": 0.3}),
    (ops.selu, {}),
    (ops.softplus, {}),
    (ops.softplus, {"beta": 2.5}),
    (ops.leaky_relu, {}),
    (ops.leaky_relu, {"negative_slope": -0.5}),
]
EDGES = [0.0, -0.0, 1e-30, -1e-30, 0.66, 0.67, -0.66, 5.6, 5.7, -5.7, -9.0, -13.0, -39.0, -41.0, 41.0, -103.9, 500.0,
         -900.0, 1e30, -1e30]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (5, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("op", "options"), CURVES, ids=str)
def test_curves(op, options, shape, special, dtype):
    x = 3 * numbers(shape, dtype, 1, special)
    with np.errstate(all="ignore"):
        found = pass_through(Both(LIB.kernels("compiled")), op, shape, options, x, dtype)
    close(*found["y"], 8, special)
    close(*found["dx"], 16, special)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "options"), CURVES, ids=str)
def test_each_number_by_itself(op, options, dtype):
    """Small results are accurate, too, and large numbers stay finite."""
    x = np.array([EDGES, np.linspace(-12, 12, len(EDGES))], dtype)
    found = pass_through(Both(LIB.kernels("compiled")), op, x.shape, options, x, dtype)
    for name in ("y", "dx"):
        kernel, plain = found[name]
        tiny = 1e-37 if dtype == "float32" else 1e-300
        np.testing.assert_allclose(kernel, plain, rtol=3e-5 if dtype == "float32" else 1e-12, atol=tiny)


@pytest.mark.parametrize(
    ("op", "options"),
    [(ops.gelu, {"approximate": "no"}), (ops.elu, {"alpha": np.ones(3)}), (ops.softplus, {"beta": 0.0})],
)
def test_options_that_the_op_must_judge_have_no_kernel(op, options):
    x, y = (Slot(name, (4, 3), np.dtype("f4")) for name in "xy")
    assert not LIB.kernels("compiled").own(Call("forward", op, (x,), (y,), options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (5, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("axis", [-1, "last"])
@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax], ids=lambda op: op.name)
def test_softmax(op, axis, special, shape, dtype):
    options = {"axis": len(shape) - 1 if axis == "last" else axis}
    with np.errstate(all="ignore"):
        x = 9 * numbers(shape, dtype, 1, special)
        found = pass_through(Both(LIB.kernels("compiled")), op, shape, options, x, dtype)
    close(*found["y"], 16, special)
    close(*found["dx"], 32, special, size=1.0)


@pytest.mark.parametrize("axis", [0, 1, -2, True])
def test_softmax_over_other_axes_has_no_kernel(axis):
    x, y = (Slot(name, (4, 3, 2), np.dtype("f4")) for name in "xy")
    assert not LIB.kernels("compiled").own(Call("forward", ops.softmax, (x,), (y,), {"axis": axis}))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1,), (0, 3), (50, 3), (4, 1, 2)], ids=str)
@pytest.mark.parametrize("table", [(1, 1), (5, 3), (40, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
def test_embeddings(dtype, table, shape, special, kind):
    """Indices that the table does not have give NaN, and no gradient."""
    both, (count, width) = Both(LIB.kernels("compiled")), table
    indices = np.arange(np.prod(shape)).reshape(shape) * 7 % (count + 2 * special) - special
    both.slot("i", indices.astype(kind))
    both.slot("w", numbers(table, dtype, 1, special))
    both.slot("dy", numbers((*shape, width), dtype, 2, special))
    both.empty("y", (*shape, width), dtype)
    both.empty("dw", table, dtype)

    def make(s):
        forward = Call("forward", ops.embedding, (s["i"], s["w"]), (s["y"],))
        return [forward, Call("backward", ops.embedding, (s["dy"],), (None, s["dw"]), forward=forward)] * 2

    found = both.run(make)
    np.testing.assert_array_equal(*found["y"])
    close(*found["dw"], 64, special)


@pytest.mark.parametrize("op", [ops.softplus, ops.softmax, ops.log_softmax, ops.gelu], ids=lambda op: op.name)
def test_bits_depend_neither_on_threads_nor_on_whether_images_become_rows(monkeypatch, op):
    found, x = set(), 3 * numbers((300, 71), "float32", 1)
    for threads, light in ((1, 0), (2, 0), (3, 0), (50, 0), (1, 2**30)):
        monkeypatch.setattr(
            image_calls, "share", lambda work, parts, _, n=threads: workers.share(work, parts, n)
        )
        monkeypatch.setattr(image_calls, "LIGHT", light)
        made = pass_through(Both(LIB.kernels("compiled")), op, x.shape, {}, x, "float32")
        found.add((made["y"][0].tobytes(), made["dx"][0].tobytes()))
    assert len(found) == 1
