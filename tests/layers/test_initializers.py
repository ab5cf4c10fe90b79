"""How weights start: the laws, PyTorch's limits and layouts, and the same bits on every processor."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from xnn import initializers as init
from xnn.backends import Purpose, Stream, memory, numerics, random
from xnn.backends.random import _total
from xnn.benchmarks import digests
from xnn.errors import OptionError, ShapeError
from xnn.layers import Dense, Parameter, Sequential


def stream(index: int = 0) -> Stream:
    return Stream(11, Purpose.WEIGHTS, index)


ALL = [
    init.Zeros(),
    init.Ones(),
    init.Constant(-2.5),
    init.Uniform(-0.25, 1.0),
    init.Normal(0.3),
    init.Normal(0.3, mean=2.0),
    init.TruncatedNormal(0.5),
    init.TruncatedNormal(0.5, mean=-1.0),
    *(kind(law) for kind in (init.Glorot, init.He, init.LeCun) for law in ("normal", "uniform")),
    init.Glorot(gain=5 / 3),
    init.He(slope=0.2, mode="fan_out"),
    init.Orthogonal(),
    init.Orthogonal(gain=math.sqrt(2)),
    init.Identity(),
]


@pytest.mark.parametrize("initializer", ALL, ids=repr)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 1), (6, 3, 3, 2), (2, 5, 3)])
def test_float64_of_the_shape_and_of_the_stream(initializer, shape):
    w = initializer(stream(), shape)
    assert w.dtype == np.float64
    assert w.shape == shape
    assert np.isfinite(w).all()
    assert w.tobytes() == initializer(stream(), shape).tobytes()
    other = initializer(stream(1), shape)
    drawn = not isinstance(initializer, (init.Zeros, init.Ones, init.Constant, init.Identity))
    if w.size > 1:
        assert (other.tobytes() != w.tobytes()) == drawn


# sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)): what is left of the standard deviation after the cut.
CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


@pytest.mark.parametrize(
    ("initializer", "shape", "mean", "std"),
    [
        (init.Uniform(-1.0, 3.0), (300, 200), 1.0, 4 / math.sqrt(12)),
        (init.Normal(0.3, mean=2.0), (300, 200), 2.0, 0.3),
        (init.TruncatedNormal(0.5, mean=-1.0), (300, 200), -1.0, 0.5 * CUT),
        (init.LeCun(), (300, 200), 0.0, math.sqrt(1 / 300)),
        (init.LeCun("uniform"), (300, 200), 0.0, math.sqrt(1 / 300)),
        (init.Glorot(gain=2.0), (300, 200), 0.0, math.sqrt(4 * 2 / 500)),
        (init.He(slope=2.0), (300, 200), 0.0, math.sqrt(2 / 5 / 300)),
        (init.He(mode="fan_out"), (300, 200), 0.0, math.sqrt(2 / 200)),
        # Three axes and more: (outputs, inputs, *kernel).
        (init.He(), (60, 40, 5, 5), 0.0, math.sqrt(2 / (40 * 25))),
        (init.He("uniform", mode="fan_out"), (60, 40, 5, 5), 0.0, math.sqrt(2 / (60 * 25))),
        (init.LeCun(), (60, 40, 25), 0.0, math.sqrt(1 / (40 * 25))),
        (init.Glorot("uniform"), (60, 40, 5, 5), 0.0, math.sqrt(2 / (100 * 25))),
        (init.Orthogonal(3.0), (300, 200), 0.0, 3 / math.sqrt(300)),
    ],
    ids=repr,
)
def test_mean_and_variance(initializer, shape, mean, std):
    w = initializer(stream(), shape)
    assert w.mean() == pytest.approx(mean, abs=5 * std / math.sqrt(w.size))
    assert w.std() == pytest.approx(std, rel=0.015)


def test_a_uniform_reaches_its_ends_and_no_further():
    for initializer, low, high in [
        (init.Uniform(-0.25, 1.0), -0.25, 1.0),
        (init.LeCun("uniform"), -0.1, 0.1),
        (init.He("uniform", slope=math.sqrt(5)), -1 / math.sqrt(300), 1 / math.sqrt(300)),
    ]:
        w = initializer(stream(), (300, 200))
        assert low <= w.min() < low + (high - low) * 1e-3
        assert high - (high - low) * 1e-3 < w.max() <= high


def test_truncated_normal_is_the_normal_between_its_cuts():
    z = np.sort(init.TruncatedNormal(1.0)(stream(), (40_000,)))
    assert -2.0 <= z[0] < -1.995
    assert 1.995 < z[-1] <= 2.0
    inside = np.array([math.erf(x / math.sqrt(2)) / math.erf(math.sqrt(2)) for x in z])
    expected = (2 * np.arange(len(z)) + 1) / len(z) - 1
    # Kolmogorov and Smirnov: above 1.63 / sqrt(n) once in a hundred seeds; distances here are twice those of p.
    assert np.abs(inside - expected).max() / 2 < 1.63 / math.sqrt(len(z))


def test_truncated_normal_never_leaves_its_cuts(monkeypatch):
    ends = 0, 2**52 - 1
    monkeypatch.setattr(Stream, "words", lambda *_: np.array(ends, np.uint64) << np.uint64(12))
    np.testing.assert_allclose(stream().truncated_normal((2,)), [-2.0, 2.0], rtol=1e-14)
    assert np.abs(stream().truncated_normal((2,))).max() <= 2.0


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("xavier_uniform_", init.Glorot("uniform"), {}),
        ("xavier_uniform_", init.Glorot("uniform", gain=5 / 3), {"gain": 5 / 3}),
        ("kaiming_uniform_", init.He("uniform"), {"nonlinearity": "relu"}),
        ("kaiming_uniform_", init.He("uniform", slope=math.sqrt(5)), {"a": math.sqrt(5)}),
        ("kaiming_uniform_", init.He("uniform", 0.2, "fan_out"), {"a": 0.2, "mode": "fan_out"}),
        ("kaiming_uniform_", init.LeCun("uniform"), {"nonlinearity": "linear"}),
    ],
)
@pytest.mark.parametrize("shape", [(300, 200), (60, 40, 5, 5), (60, 40, 25)])
def test_pytorchs_limits_and_layouts(name, ours, options, shape):
    torch = pytest.importorskip("torch")
    w = torch.empty(
        shape[::-1] if len(shape) == 2 else shape, dtype=torch.float64
    )  # its Linear is (outputs, inputs)
    getattr(torch.nn.init, name)(w, **options, generator=torch.Generator().manual_seed(0))
    ends = np.abs(ours(stream(), shape)).max(), w.abs().max().item()
    assert ends[0] == pytest.approx(ends[1], rel=5e-4)


def test_pytorchs_identities():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(init.Identity()(stream(), (4, 6)), torch.nn.init.eye_(torch.empty(4, 6)))
    for shape in [(4, 6, 3), (6, 4, 3, 5), (3, 3, 2, 4, 1)]:
        np.testing.assert_array_equal(
            init.Identity()(stream(), shape), torch.nn.init.dirac_(torch.empty(shape))
        )


def test_identity():
    assert init.Identity(2.0)(stream(), (2, 3)).tolist() == [[2, 0, 0], [0, 2, 0]]
    x = np.arange(6.0).reshape(1, 6).astype(np.float32)
    assert Dense(6, 6, weight_init=init.Identity()).forward(x).tolist() == x.tolist()
    assert init.Identity()(stream(), (2, 2, 3)).tolist() == [[[0, 1, 0], [0] * 3], [[0] * 3, [0, 1, 0]]]


@pytest.mark.parametrize(
    "shape", [(5, 5), (64, 64), (33, 7), (7, 33), (1, 1), (1, 9), (9, 1), (12, 3, 2, 2), (4, 5, 3, 3)]
)
def test_orthonormal(shape):
    w = init.Orthogonal(3.0)(stream(), shape) / 3.0
    matrix = w.reshape(shape[0], -1)
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    np.testing.assert_allclose(small @ small.T, np.eye(len(small)), atol=1e-14)


def test_orthogonal_is_the_subgroup_algorithm():
    """The first column is the first normal vector, normalized; the rest is written out as full matrices."""
    n = 6
    normal = stream().normal((n, n))
    expected = np.eye(n)
    for k in range(n):
        x = normal[k:, k]
        v = x / np.linalg.norm(x)
        sign = 1.0 if v[0] >= 0 else -1.0
        v[0] += sign
        step = np.eye(n)
        step[k:, k:] = -sign * (np.eye(n - k) - 2 * np.outer(v, v) / (v @ v))
        expected = expected @ step
    q = init.Orthogonal()(stream(), (n, n))
    np.testing.assert_allclose(q, expected, atol=1e-14)
    np.testing.assert_allclose(q[:, 0], normal[:, 0] / np.linalg.norm(normal[:, 0]), atol=1e-15)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("shape", [(4, 4), (6, 3)])
def test_orthogonal_prefers_no_direction(shape):
    """Haar's measure, by moments of the entries, their products, the trace and the determinant."""
    rows, columns = shape
    draws = np.stack([init.Orthogonal()(stream(index), shape) for index in range(4000)])
    noise = 4.5 / math.sqrt(len(draws))  # no variance below is above 1
    np.testing.assert_allclose(draws.mean(0), 0, atol=noise)
    np.testing.assert_allclose((draws**2).mean(0), 1 / rows, atol=noise)
    np.testing.assert_allclose((draws**4).mean(0), 3 / (rows * (rows + 2)), atol=noise)
    flat = draws.reshape(len(draws), -1)
    np.testing.assert_allclose(flat.T @ flat / len(draws), np.eye(rows * columns) / rows, atol=noise)
    if rows == columns:
        trace = np.trace(draws, axis1=1, axis2=2)
        assert (trace**2).mean() == pytest.approx(1.0, abs=math.sqrt(2) * noise)  # E tr^4 = 3
        assert np.linalg.det(draws).mean() == pytest.approx(0.0, abs=noise)


# The same bits everywhere: those of a processor, of NumPy's loops and of BLAS's cores must not show.

_DIGEST = """
from test_initializers import digest
print(digest())
"""


def digest() -> str:
    """Of every initializer, and of an Orthogonal with long sums."""
    found = hashlib.sha256()
    for initializer in ALL:
        for shape in [(37, 50), (13, 6, 3, 3)]:
            found.update(initializer(stream(), shape).tobytes())
    found.update(init.Orthogonal()(stream(), (301, 160)).tobytes())
    return found.hexdigest()


def test_todays_bits():
    """A change here changes every model that is trained from now on."""
    assert digest() == "f94bcc3e1a62aa02721592b45c0774fd3d5c4d36fadcebe21a3f8f4abb07ca67"


def environments() -> list[dict[str, str]]:
    """BLAS's oldest core and another, and NumPy without the vectors it would choose here."""
    cores = [{"OPENBLAS_CORETYPE": core} for core in ("Prescott", "Haswell")]
    return [*cores, *({"NPY_DISABLE_CPU_FEATURES": " ".join(names)} for names in digests._simd())]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(given, marks=[pytest.mark.slow] * (1 < n < len(environments()) - 1))
        for n, given in enumerate(environments())
    ],
    ids=str,
)
def test_the_same_bits_on_other_processors(environment):
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DIGEST],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digest()


def test_numpys_own_sums_would_show():
    """The order of _total is not NumPy's, which may change with the processor."""
    x = stream().normal((1000, 3))
    np.testing.assert_allclose(_total(x), x.sum(axis=0), rtol=1e-12)
    columns = [[*map(float, column)] for column in x.T]
    for column, total in zip(columns, _total(x), strict=True):
        while len(column) > 1:
            half = len(column) // 2
            odd = column[2 * half :]
            column = [a + b for a, b in zip(column[:half], column[half:], strict=False)]
            column[0] = column[0] + odd[0] if odd else column[0]
        assert column[0] == total


def test_fast_and_exact_start_alike():
    models = []
    for mode in ("fast", "exact"):
        with numerics(mode):
            model = Sequential(
                Dense(9, 5, weight_init=init.Orthogonal(), bias_init=init.Constant(0.1)), seed=4
            )
            models.append(model.layers[0].weight.value.tobytes())
    assert models[0] == models[1]


def test_a_function_of_the_users_is_an_initializer():
    layer = Dense(2, 3, weight_init=lambda stream, shape: 7.0 + np.zeros(shape))
    assert (layer.weight.value == 7.0).all()
    for wrong in (lambda stream, shape: np.zeros(shape[::-1]), lambda stream, shape: 0.0):
        with pytest.raises(ShapeError, match=r"weight has shape \(2, 3\), and its initializer returned"):
            Dense(2, 3, weight_init=wrong).weight.value  # noqa: B018


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: init.Constant(math.nan), "value must be a finite number, got nan"),
        (lambda: init.Constant("1"), "value must be a finite number, got '1'"),
        (lambda: init.Uniform(1.0, 1.0), r"low < high, got 1\.0 and 1\.0"),
        (lambda: init.Uniform(-1e308, 1e308), "low < high"),
        (lambda: init.Uniform(-math.inf, 0.0), "low must be a finite number, got -inf"),
        (lambda: init.Normal(-1.0), "std must be a finite number at least 0"),
        (lambda: init.Normal(1.0, None), "mean must be a finite number, got None"),
        (lambda: init.TruncatedNormal(math.inf), "std must be a finite number"),
        (lambda: init.Glorot("gaussian"), "distribution must be 'normal' or 'uniform', got 'gaussian'"),
        (lambda: init.Glorot(gain=-1.0), "gain must be"),
        (lambda: init.He(mode="inputs"), "mode must be 'fan_in' or 'fan_out', got 'inputs'"),
        (lambda: init.He(slope=True), "slope must be a finite number, got True"),
        (lambda: init.LeCun(1), "distribution"),
        (lambda: init.Orthogonal("2"), "gain must be"),
        (lambda: init.Identity(math.nan), "gain must be"),
        *(
            (lambda kind=kind: kind(stream(), (3,)), r"two or more axes, got shape \(3,\)")
            for kind in (init.Glorot(), init.He(), init.LeCun(), init.Orthogonal(), init.Identity())
        ),
    ],
)
def test_options(build, message):
    with pytest.raises(OptionError, match=message):
        build()


# ---------------------------------------------------------------- memory


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_drawing_takes_at_most_three_times_the_size(initializer, dtype):
    """Orthogonal works on a float64 matrix of the weight's size; the others take little more than the weight."""
    parameter = Parameter("w", (20_000, 60), initializer, dtype)
    tracemalloc.start()
    try:
        size = parameter.array.nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    temporary = 2**21 + 2**20  # some blocks of 2^15 numbers
    assert peak <= size * (3 if isinstance(initializer, init.Orthogonal) else 1) + temporary


def test_drawing_a_large_layer_takes_little_more_than_its_size():
    layer = Dense(2500, 2000)
    tracemalloc.start()
    try:
        size = layer.weight.array.nbytes
        assert tracemalloc.get_traced_memory()[1] <= 1.2 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_numbers_do_not_depend_on_the_blocks(initializer, monkeypatch):
    """Drawn in one block, in many, and rounded block by block or at the end."""
    shape = (61, 70)
    whole = initializer(stream(), shape)
    monkeypatch.setattr(random, "_BLOCK", 1003)
    monkeypatch.setattr(random, "_PANEL", 200)
    assert initializer(stream(), shape).tobytes() == whole.tobytes()
    rounded = init.draw(initializer, stream(), shape, "float32")
    assert rounded.dtype == np.float32
    assert rounded.tobytes() == whole.astype(np.float32).tobytes()


def test_an_initializer_of_the_users_keeps_its_array():
    kept = np.ones((2, 2), np.float32)
    parameter = Parameter("w", (2, 2), lambda stream, shape: kept)
    parameter.array[...] = 5.0
    assert kept.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_subclass_with_a_call_of_its_own_is_called():
    class Half(init.He):
        def __call__(self, stream, shape):
            return 0.5 * super().__call__(stream, shape)

    half, he = (init.draw(kind(), stream(), (3, 4), "float64") for kind in (Half, init.He))
    np.testing.assert_array_equal(half, 0.5 * he)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**20, 2**20), (2**62, 3)])
def test_a_weight_that_is_larger_than_memory_is_refused(shape):
    with pytest.raises(
        OptionError, match=r"weight of shape .* is too large for memory.*: build a smaller layer"
    ):
        Sequential(Dense(*shape))


def test_what_is_free_decides(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**27)
    with pytest.raises(OptionError, match=r"of which 0\.1 GiB are free and 0\.1 GiB are needed"):
        Sequential(Dense(2**13, 2**12 + 1))
