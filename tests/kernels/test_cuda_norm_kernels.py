"""The CUDA kernels of batch and layer normalization compared with their ops, which NumPy runs."""

import numpy as np
import pytest
from test_cuda_image_kernels import both
from test_cuda_kernels import DTYPES, close, numbers, pytestmark

from xnn import ops
from xnn.backends.kernels.calls import Call, Slot
from xnn.ops.normalization import running_moments

__all__ = ["both", "pytestmark"]

#: Shape, axes, along: of batch and of layer normalization.
CASES = [
    ((2, 3), (0,), 1),
    ((7, 5), (0,), 1),
    ((4, 3, 5, 5), (0, 2, 3), 1),
    ((9, 2, 40, 33), (0, 2, 3), 1),
    ((70, 33), (1,), 1),
    ((3, 4, 5), (2,), 2),
    ((2, 3, 90, 50), (2, 3), 2),
    ((600, 3), (1,), 1),
]
SIZES = {"usual": 1.0, "huge": 1e25, "tiny": 1e-25, "far": None}


def values(shape, dtype, size):
    x = numbers(shape, dtype, 1)
    return x + np.dtype(dtype).type(1000) if size is None else x * np.dtype(dtype).type(size)


def calls(s, axis, along, affine, activation, rows, epsilon=1e-5):
    moments = Call("forward", ops.moments, (s["x"],), (s["m"],), {"axis": axis, "scaled": rows == 3})
    given = (s["w"], s["b"]) if affine else ()
    found = (s["dw"], s["db"]) if affine else ()
    options = {"axis": axis, "along": along, "epsilon": epsilon}
    norm = Call("forward", ops.normalize, (s["x"], s["m"], *given), (s["z"],), options)
    back = Call("backward", ops.normalize, (s["dy"],), (s["d1"], s["dm"], *found), forward=norm)
    parts = (back,)
    forward = norm
    if activation is not None:
        act = Call("forward", activation, (s["z"],), (s["y"],))
        up = Call("backward", activation, (s["dy"],), (s["dz"],), forward=act)
        back.reads = (s["dz"],)
        forward = Call(
            "forward", ops.normalize, norm.reads, (s["y"],), options, activation=activation, parts=(norm, act)
        )
        parts = (up, back)
    through = Call("backward", ops.moments, (s["dm"],), (s["d2"],), forward=moments)
    total = Call("add", None, (s["d1"], s["d2"]), (s["dx"],))
    fused = Call(
        "backward", ops.normalize, (s["dy"],), (s["dx"], None, *found), {"moments": moments}, forward=forward,
        parts=(*parts, through, total),
    )  # fmt: skip
    return [moments, forward, fused]


def slots(both, case, dtype, rows, x):
    shape, axis, along = case
    kept = tuple(1 if a in axis else extent for a, extent in enumerate(shape))
    features = shape[1:2] if 0 in axis else shape[along:]
    for number, (name, extent) in enumerate({"w": features, "b": features, "dy": shape}.items()):
        both.slot(name, numbers(extent, dtype, 5 + number))
    both.slot("x", x)
    shapes = dict.fromkeys(("z", "y", "dz", "d1", "d2", "dx"), shape)
    shapes |= {"m": (rows, *kept), "dm": (rows, *kept), "dw": features, "db": features}
    for name, extent in shapes.items():
        both.empty(name, extent, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("affine", "activation", "rows"), [(True, ops.relu, 3), (True, None, 3), (False, ops.tanh, 2)], ids=str
)
def test_normalization(both, case, dtype, affine, activation, rows):
    slots(both, case, dtype, rows, values(case[0], dtype, 1.0))
    found = both.run(lambda s: calls(s, *case[1:], affine, activation, rows))
    for name in ("m", "y" if activation else "z"):
        close(*found[name], 64)
    # ReLU's gradient at an output that rounding brings to the other side of 0 is another
    for name in ("dx", *(("dw", "db") if affine else ())):
        close(*found[name], 400, size=4.0)
    for name in ("x", "w", "b", "dy"):
        assert found[name][0].tobytes() == found[name][1].tobytes(), f"{name} was written"


@pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[5], CASES[6]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_numbers_whose_squares_are_out_of_range(both, case, dtype, size):
    slots(both, case, dtype, 3, values(case[0], dtype, SIZES[size]))
    found = both.run(lambda s: calls(s, *case[1:], True, None, 3, 0.0 if size == "tiny" else 1e-5))
    kernel, op = found["m"]
    for row in range(3):
        close(kernel[row], op[row], 64 if size != "far" else 1e4)
    factor = 1e4 if size == "far" else 1
    close(*found["z"], 64 * factor)
    close(*found["dx"], 400 * factor, size=float(np.max(np.abs(found["d1"][1]))))


@pytest.mark.parametrize("case", CASES[1:7], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_group(both, case, dtype, bad):
    x = values(case[0], dtype, 1.0)
    x.reshape(-1)[3] = bad
    slots(both, case, dtype, 3, x)
    found = both.run(lambda s: calls(s, *case[1:], True, None, 3))
    for name in ("m", "z"):
        close(*found[name], 64, special=True)
    assert np.array_equal(np.isnan(found["dx"][0]), np.isnan(found["dx"][1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_gradients_of_weights_alone(both, case, dtype):
    """Of a normalization whose input needs no gradient."""
    slots(both, case, dtype, 3, values(case[0], dtype, 1.0))

    def make(s):
        moments, norm, _ = calls(s, *case[1:], True, None, 3)
        return [
            moments,
            norm,
            Call("backward", ops.normalize, (s["dy"],), (None, None, s["dw"], s["db"]), forward=norm),
        ]

    found = both.run(make)
    for name in ("dw", "db"):
        close(*found[name], 100, size=4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [2, 3])
def test_running_statistics_of_several_layers_are_one_launch(both, dtype, scaled):
    """Those of a single element keep their variance."""
    shapes = [(4, 3, 5, 5), (6, 300), (1, 2)]
    for number, shape in enumerate(shapes):
        extents = (scaled, 1, shape[1], *(1 for _ in shape[2:]))
        both.slot(f"mean{number}", numbers((shape[1],), dtype, number))
        both.slot(f"var{number}", numbers((shape[1],), dtype, number + 5))
        both.slot(f"m{number}", np.abs(numbers(extents, dtype, number + 9)))

    def make(s):
        made = []
        for n, shape in enumerate(shapes):
            kept = s[f"mean{n}"], s[f"var{n}"]
            options = {"momentum": 0.1, "axis": (0, *range(2, len(shape))), "shape": shape}
            made.append(Call("keep", running_moments, (*kept, s[f"m{n}"]), kept, options))
        return made

    found = both.run(make)
    assert both.launches == 1
    for number in range(3):
        close(*found[f"mean{number}"], 4)
        close(*found[f"var{number}"], 8)


def test_the_same_statistics_twice_are_updated_one_after_the_other(both):
    both.slot("mean", numbers((3,), "float32", 1))
    both.slot("var", numbers((3,), "float32", 2))
    both.slot("m", np.abs(numbers((3, 1, 3), "float32", 3)))

    def make(s):
        options = {"momentum": 0.1, "axis": (0,), "shape": (8, 3)}
        kept = s["mean"], s["var"]
        return [Call("keep", running_moments, (*kept, s["m"]), kept, options) for _ in range(2)]

    found = both.run(make)
    assert both.launches == 2
    close(*found["mean"], 8)
    close(*found["var"], 16)


@pytest.mark.parametrize(("axis", "along"), [((0,), 1), ((0, 1), 1), ((1,), 1)])
def test_other_axes_have_no_kernel(both, axis, along):
    shape = (4, 3, 5)
    slots(both, (shape, axis, along), "float32", 3, values(shape, "float32", 1.0))
    table = both.gpu.kernels("cuda")
    assert not table.accepts(calls(both.there, axis, along, False, None, 3)[0])


def test_moments_without_the_axes_they_are_over_have_no_kernel(both):
    """The op broadcasts them along the features of a square array, not along its samples."""
    x, y = (Slot(name, (4, 4), np.dtype("f4")) for name in "xy")
    for shape, accepted in (((2, 4, 1), True), ((2, 4), False), ((2, 1, 4), False)):
        moments = Slot("m", shape, np.dtype("f4"))
        call = Call("forward", ops.normalize, (x, moments), (y,), {"axis": (1,)})
        assert both.gpu.kernels("cuda").accepts(call) == accepted
