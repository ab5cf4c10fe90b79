"""Exact numerics from a user's side: what is refused, and how; pixels; workers; models and training."""

from __future__ import annotations

import numpy as np
import pytest
from exact_tools import any_bits, bits_of, f4, f8, is_stored, run

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import backend, current_numerics, get_backend, numerics, use_numerics
from xnn.backends.communicator import with_communicator
from xnn.backends.exact import ScaledIntegers
from xnn.benchmarks.exactness import rounding
from xnn.data import synthetic_digits
from xnn.errors import DTypeError, MixedArraysError, NumericsError
from xnn.graph import Input, forward_and_backward, topological_sort
from xnn.layers import Dense, Flatten, Rescale, Sequential
from xnn.layers.files import load, metadata, weights_sha256
from xnn.ops.apply import apply_rule
from xnn.runs.mlp import mlp
from xnn.training import Trainer

RNG = np.random.default_rng(7)


# What is refused.


def test_float64_arrays_are_refused_with_advice(lib):
    wide, narrow = lib.to_device(np.ones((2, 3))), lib.to_device(np.ones((3, 2), f4))
    message = r"exact numerics store float32 and got \S*float64: convert it .*numerics='fast'"
    with numerics("exact"):
        for call in (
            lambda: ops.relu(wide),
            lambda: ops.dense(wide, narrow),
            lambda: ops.dense(lib.to_device(np.ones((2, 3), f4)), lib.xp.astype(narrow, lib.xp.float64)),
            lambda: ops.sum(wide),
            lambda: xnn.grad(ops.sum)(wide),
            lambda: apply_rule(ops.updates.sgd, lib.math, (wide, wide, None), {"learning_rate": 0.1}),
        ):
            with pytest.raises(DTypeError, match=message):
                call()


def test_float64_models_are_refused_with_the_same_message(lib):
    x, y = np.ones((4, 3)), np.ones((4, 2))
    model = Sequential(Dense(3, 2, dtype="float64"))
    scaled = Sequential(Rescale(0.5, dtype="float64"), Dense(3, 2, dtype="float64"))
    pixels = np.ones((4, 3), np.uint8)
    for made, samples in ((model, x), (scaled, x), (scaled, pixels)):
        with (
            numerics("exact"),
            pytest.raises(DTypeError, match=r"exact numerics store float32 and got .*float64"),
        ):
            made.predict(samples)
        trainer = Trainer(made, losses.MSE(), optimizers.SGD(0.1), kernels="ops", numerics="exact")
        with pytest.raises(DTypeError, match=r"exact numerics store float32 and got .*float64"):
            trainer.fit((samples, y), progress=False)
    assert model.predict(x).dtype == f8  # fast numerics still take float64


class Calls(xnn.Op):
    """A user's op that calls one function of xp."""

    def __init__(self, function):
        self.function = function

    def forward(self, xp, x):
        return self.function(xp, x), None

    def backward(self, xp, grad, saved):
        return (grad,)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("fft", lambda xp, x: xp.fft.fft(x)),
        ("linalg", lambda xp, x: xp.linalg.inv(x)),
        ("cumulative_sum", lambda xp, x: xp.cumulative_sum(x, axis=0)),
        ("prod", lambda xp, x: xp.prod(x)),
        ("log2", lambda xp, x: xp.log2(x)),
        ("einsum", lambda xp, x: xp.einsum("ij->i", x)),
        ("vecdot", lambda xp, x: xp.vecdot(x, x)),
        ("tensordot", lambda xp, x: xp.tensordot(x, x)),
    ],
)
def test_functions_without_an_exact_form_are_refused_by_name(lib, name, function):
    x = lib.to_device(np.ones((3, 3), f4))
    with (
        numerics("exact"),
        pytest.raises(NumericsError, match=rf"xp\.{name} has no exact form: .*numerics='fast'"),
    ):
        Calls(function)(x)


def test_arrays_of_two_backends_do_not_mix(other):
    numpy = get_backend("numpy")
    pixels = np.ones((2, 3), np.uint8)
    with numerics("exact"):
        for here, there in ((other, numpy), (numpy, other)):
            scaled = ops.rescale(here.to_device(pixels), scale=0.5)
            with pytest.raises(MixedArraysError):
                ops.dense(scaled, there.to_device(np.ones((3, 2), f4)))


def test_python_numbers_become_float32_in_graphs_and_autograd(lib):
    """In fast numerics they become float64, which exact numerics do not store."""
    with numerics("exact"):
        slope = lib.to_host(xnn.grad(lambda x: x * x)(1.5))
        assert bits_of(slope) == bits_of(f4(3.0))
        x = Input()
        square = ops.mul(x, x)
        forward_and_backward(topological_sort({x: 1.5}))
        assert bits_of(lib.to_host(square.value)) == bits_of(f4(2.25))
        assert bits_of(lib.to_host(x.gradients[x])) == bits_of(f4(3.0))
        listed = xnn.grad(lambda x: ops.sum(x * x))([1.0, 2.0])
        assert bits_of(lib.to_host(listed)) == bits_of(f4([2.0, 4.0]))


# Pixels.


def scaled_of(lib, pixels, scale=1 / 255):
    with numerics("exact"):
        return ops.rescale(lib.to_device(pixels), scale=scale)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_rescaled_integers_act_as_float32(lib, dtype):
    pixels = any_bits(RNG, (2, 3, 4)).view(np.uint32).astype(dtype)
    scaled = scaled_of(lib, pixels)
    assert isinstance(scaled, ScaledIntegers)
    assert (scaled.shape, scaled.ndim, scaled.size, len(scaled)) == ((2, 3, 4), 3, 24, 2)
    assert scaled.dtype == lib.xp.float32
    assert repr(scaled).startswith("ScaledIntegers(")
    assert "scale=0.00392" in repr(scaled)
    wanted = (pixels.astype(f8) * (1 / 255)).astype(f4)
    for read in (np.asarray(scaled), lib.to_host(scaled), np.asarray(scaled, dtype=f8).astype(f4)):
        assert bits_of(read) == bits_of(wanted)
    assert bits_of(np.asarray(scaled[1, ...])) == bits_of(wanted[1])
    assert bits_of(np.asarray(scaled[:, 1:, ...])) == bits_of(wanted[:, 1:])
    with numerics("exact"):
        for op, options in (
            (ops.add, {}),
            (ops.sum, {}),
            (ops.max, {"axis": 0}),
            (ops.transpose, {}),
            (ops.relu, {}),
        ):
            same = run(lib, op, (wanted,), options)[0]
            assert bits_of(run(lib, op, (scaled,), options)[0]) == bits_of(same)


def test_offsets_wide_integers_and_scales_per_feature_give_float32(lib):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with numerics("exact"):
        for options in (
            {"scale": 0.5, "offset": 1.0},
            {"scale": lib.to_device(f4([1, 2, 3]))},
            {"scale": lib.to_device(f4([1, 2, 3])), "offset": lib.to_device(f4([3, 2, 1]))},
        ):
            there = lib.to_device(pixels)
            y = ops.rescale(there, dtype=lib.xp.float32, **options)
            assert not isinstance(y, ScaledIntegers)
            host = {k: lib.to_host(v) for k, v in options.items()}
            wanted = pixels * host["scale"].astype(f4) + host.get("offset", f4(0.0)).astype(f4)
            assert bits_of(lib.to_host(y)) == bits_of(wanted.astype(f4))
        wide = ops.rescale(lib.to_device(pixels.astype(np.int32)), scale=0.5, dtype=lib.xp.float32)
        assert bits_of(lib.to_host(wide)) == bits_of((pixels * f4(0.5)).astype(f4))
        assert not isinstance(wide, ScaledIntegers)


def two_orders():
    """Return two models of equal weights, with Rescale before and after Flatten, and images."""
    orders = ((Rescale(1 / 255), Flatten()), (Flatten(), Rescale(1 / 255)))
    models = [Sequential(*first, Dense(12, 4), seed=3) for first in orders]
    return *models, RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)


def test_flatten_and_rescale_can_change_places(lib):
    one, other, pixels = two_orders()
    dy = lib.to_device(RNG.standard_normal((5, 4)).astype(f4))
    with numerics("exact"):
        y = [bits_of(lib.to_host(m.forward(lib.to_device(pixels), training=True))) for m in (one, other)]
        for model in (one, other):
            model.backward(dy, input_gradient=False)
        assert y[0] == y[1] == bits_of(one.predict(pixels))
        floats = Sequential(Dense(12, 4), seed=3)
        for mine, its, plain in zip(one.parameters(), other.parameters(), floats.parameters(), strict=True):
            assert bits_of(lib.to_host(mine.grad)) == bits_of(lib.to_host(its.grad))
            plain.value = mine.value
        near = floats.predict((pixels.reshape(5, 12) / 255).astype(f4))
        np.testing.assert_allclose(one.predict(pixels), near, rtol=1e-5, atol=1e-6)


def test_flatten_and_rescale_can_change_places_in_predict(lib):
    one, other, pixels = two_orders()
    with numerics("exact"):
        assert bits_of(one.predict(pixels)) == bits_of(other.predict(pixels))


def test_a_model_may_end_in_rescale(lib):
    pixels = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    model = Sequential(Flatten(), Rescale(1 / 255))
    with numerics("exact"):
        found = model.predict(pixels, batch_size=2)
    assert type(found) is np.ndarray
    assert bits_of(found) == bits_of((pixels.reshape(5, 12).astype(f8) / 255).astype(f4))


def test_rescaled_integers_can_be_computed_with(lib):
    scaled = scaled_of(lib, np.array([[1, 2], [3, 4]], np.uint8), 0.5)
    assert (lib.to_host(scaled + scaled) == [[1, 2], [3, 4]]).all()
    assert (lib.to_host(2.0 * scaled) == [[1, 2], [3, 4]]).all()
    assert lib.to_host(scaled > 1.0).tolist() == [[False, False], [True, True]]


# Workers.


class TwoAlike:
    """A communicator for two workers that hold the same rows."""

    def maximum(self, x):
        return x

    def total(self, x):
        return x + x

    def count(self, rows):
        return 2 * rows


def test_only_gradients_of_weights_are_added_over_workers(lib):
    x, dy = RNG.standard_normal((6, 5)).astype(f4), RNG.standard_normal((6, 3)).astype(f4)
    w, b = RNG.standard_normal((5, 3)).astype(f4), f4([1, 2, 3])
    for inputs, gradient in (((x, w, b), dy), ((x, w[:, 0], b[0]), dy[:, 0])):
        with numerics("exact"):
            _, dx, *own = run(lib, ops.dense, inputs, {}, gradient)
            with with_communicator(TwoAlike()):
                _, shared_dx, *shared = run(lib, ops.dense, inputs, {}, gradient)
        assert bits_of(dx) == bits_of(shared_dx)
        for mine, everybodys in zip(own, shared, strict=True):
            np.testing.assert_allclose(everybodys, 2 * mine, rtol=1e-6)


def test_columns_taken_from_a_batch_are_not_added_over_workers(lib):
    x, columns = RNG.standard_normal((4, 3)).astype(f4), np.array([0, 2, 2])
    with numerics("exact"):
        alone = run(lib, ops.take, (x, columns), {"axis": 1})[1]
        with with_communicator(TwoAlike()):
            shared = run(lib, ops.take, (x, columns), {"axis": 1})[1]
    assert bits_of(alone) == bits_of(shared)


# Models and training.


def digits_model(**options):
    return mlp(784, (16,), 10, rescale=(1 / 255, 0.0), seed=3, **options)


def trained(model, epochs=(1,), data=None, loss=None, **options):
    options = {"kernels": "ops", "numerics": "exact", **options}
    optimizer = optimizers.SGD(learning_rate=0.1, momentum=0.9)
    trainer = Trainer(model, loss or losses.SoftmaxCrossEntropy(), optimizer, **options)
    for count in epochs:
        trainer.fit(data or synthetic_digits(96), epochs=count, seed=1, progress=False)
    return trainer


def test_a_trainer_does_not_change_the_numerics_in_force(lib, tmp_path):
    data = synthetic_digits(96)
    for outside in ("fast", "exact"):
        use_numerics(outside)
        for inside in ("fast", "exact"):
            model = digits_model()
            trainer = trained(model, numerics=inside)
            assert current_numerics() == outside
            trainer.evaluate(data)
            assert (current_numerics(), model.numerics) == (outside, inside)
            model.save(tmp_path / "model.safetensors")
            assert metadata(tmp_path / "model.safetensors")["numerics"] == inside
        again = load(tmp_path / "model.safetensors")
        assert bits_of(again.predict(data[0])) == bits_of(model.predict(data[0]))


def test_a_fit_that_fails_before_it_begins_does_not_count_as_training(lib):
    model = digits_model()
    x, y = synthetic_digits(8)
    with pytest.raises(xnn.errors.LabelError):
        trained(model, data=(x, y + 10))
    assert model.numerics is None


def test_predictions_are_in_the_numerics_in_force(lib):
    model, (x, _) = digits_model(), synthetic_digits(96)
    trained(model)
    with numerics("fast"):
        fast = model.predict(x)
    assert bits_of(model.predict(x)) != bits_of(fast)  # nothing is chosen, so as it was trained
    with numerics("exact"):
        exact = model.predict(x)
        parts = np.concatenate([model.predict(x[:50], batch_size=7), model.predict(x[50:])])
        backwards = model.predict(x[::-1])[::-1]
    assert is_stored(exact)
    assert bits_of(exact) == bits_of(parts) == bits_of(backwards)
    assert bits_of(exact) != bits_of(fast)
    np.testing.assert_allclose(exact, fast, rtol=1e-4, atol=1e-5)


def test_two_fits_of_one_epoch_equal_one_of_two_on_every_backend(other):
    digests = set()
    for name in ("numpy", other.name):
        with backend(name):
            for epochs in ((2,), (1, 1)):
                model = digits_model(dropout=0.2)
                results = trained(model, epochs).evaluate(synthetic_digits(96))
                digests.add((weights_sha256(model), results["loss"]))
    assert len(digests) == 1


def test_frozen_layers_do_not_change(lib):
    model = digits_model()
    frozen = model.parameters()[0]
    before, frozen.frozen = bits_of(lib.to_host(frozen.value)), True
    others = [bits_of(lib.to_host(p.value)) for p in model.parameters()[1:]]
    trained(model)
    assert bits_of(lib.to_host(frozen.value)) == before
    assert all(
        bits_of(lib.to_host(p.value)) != b for p, b in zip(model.parameters()[1:], others, strict=True)
    )


class Square(xnn.Op):
    def forward(self, xp, x):
        return x * x, x

    def backward(self, xp, grad, x):
        return (2.0 * x * grad,)


class OwnDense(Dense):
    """A layer with a `compute` of its own, which calls Dense's."""

    def compute(self, x, training):
        return super().compute(x, training)


class OwnLoss(losses.SoftmaxCrossEntropy):
    def compute(self, outputs, targets):
        return super().compute(outputs, targets)


def test_a_users_layers_ops_and_losses_train_to_the_same_bits(lib):
    def model(dense):
        stack = (Rescale(1 / 255), dense(784, 8), layers.Function(Square()), Dense(8, 10))
        return Sequential(*stack, seed=3)

    plain, own = model(Dense), model(OwnDense)
    trained(plain)
    trained(own, loss=OwnLoss())
    assert weights_sha256(plain) == weights_sha256(own)
    assert all(is_stored(lib.to_host(p.value)) for p in own.parameters())


# Accuracy.


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", [c for c in rounding.CASES if c.name.startswith(("Gaussian", "digits"))],
                         ids=lambda case: case.name)  # fmt: skip
def test_exact_products_are_more_accurate_than_float32(case):
    if case.name.endswith("65536") or np.finfo(np.longdouble).nmant < 63:
        pytest.skip("takes seconds, or long double has no more digits than float64")
    errors = rounding.measure(case)
    assert 1e-8 < errors.floor < 4e-8
    assert max(errors.forward, errors.gradient) < min(errors.float32, 1.5 * errors.floor)
