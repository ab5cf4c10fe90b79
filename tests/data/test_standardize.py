"""Standardization in float64: columns far from 0, very small and very large ones, and targets."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.data import load, standardize
from xnn.data.standardize import extremes, moments
from xnn.errors import CorruptFileError, DTypeError, OptionError, ShapeError
from xnn.graph import Input, forward_pass, topological_sort

Z = np.random.default_rng(0).normal(size=(200, 1))
NORMAL = (Z - Z.mean()) / Z.std()

#: Columns that differ from Z by a shift and a factor; float32 cannot tell the numbers of most of them apart.
COLUMNS = {
    "plain": lambda z: z,
    "timestamps": lambda z: 1.7e9 + 60 * z,
    "far": lambda z: 1e8 + z,
    "tiny": lambda z: z * 1e-40,
    "huge": lambda z: z * 1e300,
    "near underflow": lambda z: z * 1e-306,
    "nanoseconds": lambda z: 1.7e18 + 6e10 * z,
}


@pytest.fixture(params=COLUMNS)
def x(request):
    return COLUMNS[request.param](Z)


def test_mean_and_deviation(x):
    mean, std = moments(x, extremes(x))
    exact = x.astype(np.longdouble)
    np.testing.assert_allclose(mean, exact.mean(axis=0).astype(float), rtol=1e-13, atol=1e-9 * float(std[0]))
    np.testing.assert_allclose(std, exact.std(axis=0).astype(float), rtol=1e-10)


def test_by_hand_on_every_backend_and_in_exact_numerics(lib, x):
    layer = standardize(x)
    for numerics in ("fast", "exact"):
        with xnn.numerics(numerics):
            z = lib.to_host(layer(lib.to_device(x)))
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, NORMAL, atol=2e-6)


def test_in_a_graph_and_under_autograd(x):
    layer = standardize(x)
    node = Input()
    output = layer(node)
    forward_pass(output, topological_sort({node: x}))
    np.testing.assert_allclose(output.value, NORMAL, atol=2e-6)
    gradient = xnn.grad(lambda v: ops.sum(layer(v)))(x)
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(gradient, np.broadcast_to(layer.scale, x.shape), rtol=1e-6)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_model_learns_every_column_as_the_plain_one(x, kernels, numerics, tmp_path):
    def trained(samples):
        model = xnn.Sequential(
            standardize(samples), layers.Dense(1, 4), layers.Tanh(), layers.Dense(4, 2), seed=1
        )
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.5), kernels=kernels, numerics=numerics
        )
        y = (Z[:, 0] > 0).astype(np.int64)
        trainer.fit((samples, y), validation=(samples, y), epochs=3, progress=False)
        return model, trainer.evaluate((samples, y))

    if kernels == "compiled":
        pytest.importorskip("numba")
    plain, expected = trained(Z)
    model, found = trained(x)
    assert found["accuracy"] == expected["accuracy"] > 0.9
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    np.testing.assert_allclose(model.predict(x), plain.predict(Z), atol=1e-4)
    model.save(tmp_path / "m.safetensors")
    again = xnn.load(tmp_path / "m.safetensors")
    assert again.layers[0].shift.dtype == np.float64
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_samples_of_every_dtype_and_lists(x):
    model = xnn.Sequential(standardize(x), layers.Dense(1, 1))
    np.testing.assert_array_equal(model.predict(x.tolist()), model.predict(x))
    stamps = np.array([[1_700_000_000], [1_700_000_060]])
    layer = standardize(stamps)
    for samples in (stamps, stamps.astype(np.int32), stamps.astype(float)):
        np.testing.assert_array_equal(xnn.Sequential(layer).predict(samples), [[-1.0], [1.0]])


def test_branches_keep_float64():
    x = COLUMNS["timestamps"](Z)
    model = xnn.Sequential(layers.Parallel(standardize(x), standardize(x)), layers.Dense(2, 1))
    assert model.takes_float64
    np.testing.assert_allclose(model.layers[0](model.prepare(x)), np.hstack([NORMAL, NORMAL]), atol=2e-6)


def test_without_a_shift_every_bit_is_as_before():
    scale, offset = np.array([1 / 3, 7.0]), np.array([0.1, -2.0])
    layer, x = layers.Rescale(scale, offset), np.random.default_rng(1).normal(size=(50, 2))
    expected = x.astype(np.float32) * scale.astype(np.float32) + offset.astype(np.float32)
    np.testing.assert_array_equal(xnn.Sequential(layer).predict(x), expected)
    assert layer.config() == {"scale": scale.tolist(), "offset": offset.tolist(), "dtype": "float32"}


def test_what_cannot_be_rescaled():
    model = xnn.Sequential(standardize(Z * 1e-300), layers.Dense(1, 1))
    with pytest.raises(DTypeError, match=r"holds 1e[+]?10, too far from"):
        model.predict(np.array([[1e10]]))
    with pytest.raises(DTypeError, match=r"9007199254740993, .* up to 2\^53"):
        model.predict(np.array([[2**53 + 1]]))
    assert np.isnan(model.predict(np.array([[np.nan]]))).all()  # as without a shift
    with pytest.raises(OptionError, match="shift nan"):
        layers.Rescale(1.0, shift=np.nan)
    with pytest.raises(OptionError, match="scale of 0 has no inverse"):
        layers.Rescale([1.0, 0.0]).inverse()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([], ShapeError, "at least one"),
        (3.0, ShapeError, "at least one"),
        ([["a"]], DTypeError, "numbers"),
        (np.ma.masked_greater([[1.0], [2.0], [1e30]], 9.0), DTypeError, "1 masked values"),
        ([[1.0, 2.0], [3.0]], ShapeError, "rows of different lengths"),
        ([[1.0], [None]], DTypeError, "the data"),
        (np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"), DTypeError, "dates"),
        ((number for number in range(3)), DTypeError, "makes one"),
        ([[1.0], [np.inf]], DTypeError, "infinity in sample 1"),
        ([[0.0], [1e-310]], OptionError, r"column \[0\], counted from 0, varies by less"),
    ],
)
def test_arrays_that_cannot_be_standardized(x, error, message):
    with pytest.raises(error, match=message):
        standardize(x)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("form", [np.ndarray.tolist, np.asmatrix, np.ma.asarray, np.asfortranarray])
def test_other_forms_of_arrays_give_the_same_layer(form):
    x = np.random.default_rng(0).normal(size=(20, 3))
    assert repr(standardize(form(x))) == repr(standardize(x))
    np.testing.assert_array_equal(standardize(form(x)).shift, standardize(x).shift)


# ---------------------------------------------------------------- tables


def table(path, columns, names="a,b,c,y"):
    path.write_text(
        names + "\n" + "".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
    )
    return load(path)


def test_constant_columns_are_named_once(tmp_path):
    n = range(40)
    data = table(tmp_path / "t.csv", ([0.1] * 40, n, [1e8 + i * 1e-7 for i in n], [i % 2 for i in n]))
    assert data.advice == "constant column, which a model learns nothing from: field 1 ('a')"
    z = data.scaling_layer()(data.x_train)
    assert z[:, 0].tolist() == [0.0] * len(z)
    np.testing.assert_allclose(z[:, 1:].std(axis=0), 1.0, rtol=1e-6)  # a column that varies is scaled


def test_constant_columns_of_arrays_are_named_once(capsys):
    x = np.column_stack([np.full(9, 0.1), np.arange(9), np.full(9, 7)])
    layer = standardize(x)
    said = "xnn: data.standardize: all numbers are equal in column 0, 2 (counted from 0), which becomes 0\n"
    assert capsys.readouterr().err == said
    assert not layer(x)[:, [0, 2]].any()
    layer(x)
    standardize(x[:, [1]])
    assert capsys.readouterr().err == ""


def test_a_column_that_varies_too_little_is_named_with_its_file(tmp_path):
    n = range(40)
    data = table(tmp_path / "t.csv", (n, [i * 1e-312 for i in n], n, [i % 2 for i in n]))
    with pytest.raises(CorruptFileError, match=r"t\.csv: column \[1\]"):
        data.scaling_layer()


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("target", [(1.7e9, 60.0), (2e5, 8e4), (0.0, 1e-9), (0.0, 1.0)])
def test_the_inverse_as_last_layer_predicts_in_the_units_of_the_targets(tmp_path, target, numerics):
    mean, size = target
    y = np.hstack([mean + size * (2 * Z + 1), mean - size * Z])
    scaling = standardize(y)
    with xnn.numerics(numerics):
        model = xnn.Sequential(layers.Dense(1, 2), seed=1)
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.2))
        trainer.fit((Z, scaling(y)), epochs=30, progress=False)
        whole = xnn.Sequential(*model.layers, scaling.inverse())
        whole.save(tmp_path / "m.safetensors")
        found = xnn.load(tmp_path / "m.safetensors").predict(Z)
    assert found.dtype == np.float64  # float32 has no digits left for the difference of two times
    np.testing.assert_allclose(found, y, atol=1e-4 * size)


@pytest.mark.parametrize(("shift", "said"), [(0.0, False), (100.0, False), (1e6, True), (1.7e9, True)])
def test_an_offset_that_float32_cannot_add_is_noted(capsys, shift, said):
    """What 0.1 advised for standardization, Rescale(1 / std, -mean / std), loses the digits of times."""
    x = Z + shift
    for scaling in (layers.Rescale(1.0, -shift), layers.Rescale(1.0, shift=shift)):
        trainer = xnn.Trainer(xnn.Sequential(scaling, layers.Dense(1, 1)), losses.MSE(), optimizers.SGD(0.1))
        trainer.fit((x, Z), progress=False)
        lossy = scaling.shift is None
        assert ("in float32, which has about 7 digits" in capsys.readouterr().err) is (said and lossy)


def test_a_model_in_the_units_of_its_targets_is_not_trained():
    """The loss would be that of prices, whose gradients are enormous."""
    whole = xnn.Sequential(layers.Dense(1, 1), standardize(Z * 1e5).inverse())
    trainer = xnn.Trainer(whole, losses.MSE(), optimizers.SGD(0.1))
    with pytest.raises(OptionError, match=r"last layer .* float64.* layers before it"):
        trainer.fit((Z, Z * 1e5), progress=False)
    assert trainer.evaluate((Z, Z * 1e5))["loss"] > 0


@pytest.mark.parametrize(
    ("factor", "said"), [(1.0, False), (1e5, True), (1e-4, True), (1e300, True), (0.0, False)]
)
def test_targets_far_from_unit_size_are_noted(tmp_path, factor, said):
    n = np.arange(40.0)
    path = tmp_path / "t.csv"
    np.savetxt(path, np.column_stack([n, np.sin(n) * factor + 1e-3 * (factor == 0) * n]), delimiter=",")
    data = load(path, task="regression")
    assert ("--scale-target" in data.advice and "data.standardize(y)" in data.advice) is said
    assert "--scale-target" not in data.with_scaled_targets().advice
