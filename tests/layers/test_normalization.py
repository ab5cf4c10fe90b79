"""Batch and layer normalization, and the buffers that training keeps."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_bytes import joined, parts

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.backends import get_backend
from xnn.backends.communicator import with_communicator
from xnn.benchmarks.exactness.digest_run import Meeting, Member
from xnn.errors import CorruptFileError, DivergenceError, DTypeError, OptionError, ShapeError
from xnn.layers import BatchNorm, Dense, LayerNorm, ReLU, Sequential
from xnn.layers.files import weights_sha256
from xnn.ops.apply import backward_of, forward_of
from xnn.ops.normalization import running_moments


def net(seed=1):
    inner = Sequential(Dense(12, 12), LayerNorm(12), layers.SiLU())
    return Sequential(
        Dense(6, 12), BatchNorm(12), ReLU(), layers.Add(layers.Identity(), inner), Dense(12, 3), seed=seed
    )


def data(rows=70, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    return (rng.normal(size=(rows, 6)) + y[:, None]).astype(np.float32), y


def test_what_batchnorm_computes_by_hand(lib):
    x = np.array([[1.0, -2.0], [3.0, 0.0], [5.0, 5.0]])
    layer = BatchNorm(2, epsilon=0.5, momentum=0.25, dtype="float64")
    layer.weight.value, layer.bias.value = [2.0, 1.0], [0.0, 10.0]
    y = lib.to_host(layer.forward(lib.to_device(x), training=True))
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.5)
    np.testing.assert_allclose(y, z * [2, 1] + [0, 10], rtol=1e-14)
    np.testing.assert_allclose(lib.to_host(layer.running_mean.value), 0.25 * x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        lib.to_host(layer.running_var.value), 0.75 + 0.25 * x.var(0, ddof=1), rtol=1e-14
    )
    before = lib.to_host(layer.running_var.value).copy()
    inferred = lib.to_host(layer.forward(lib.to_device(x)))
    mean, var = 0.25 * x.mean(0), 0.75 + 0.25 * x.var(0, ddof=1)
    np.testing.assert_allclose(inferred, (x - mean) / np.sqrt(var + 0.5) * [2, 1] + [0, 10], rtol=1e-13)
    assert lib.to_host(layer.running_var.value).tolist() == before.tolist()


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), rows=st.integers(2, 6), seed=st.integers(0, 10**6),
    affine=st.booleans(),
)  # fmt: skip
def test_batchnorm_is_pytorchs(shape, rows, seed, affine):
    torch = pytest.importorskip("torch")
    channels, kind = (
        shape[0],
        (torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)[len(shape) - 1],
    )
    own = BatchNorm(channels, affine=affine, dtype="float64")
    theirs = kind(channels, affine=affine, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    if affine:
        for name in ("weight", "bias"):
            value = rng.normal(size=channels)
            getattr(own, name).value = value
            getattr(theirs, name).data = torch.tensor(value)
    for training in (True, True, False):
        theirs.train(training)
        x, grad = rng.normal(size=(rows, *shape)) * 3 + 1, rng.normal(size=(rows, *shape))
        given_x = torch.tensor(x, requires_grad=True)
        wanted = theirs(given_x)
        theirs.zero_grad()
        wanted.backward(torch.tensor(grad))
        np.testing.assert_allclose(own.forward(x, training=training), wanted.detach(), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(own.backward(grad), given_x.grad, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(own.running_mean.value, theirs.running_mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(own.running_var.value, theirs.running_var, rtol=1e-12)
        for name in ("weight", "bias") if affine else ():
            np.testing.assert_allclose(
                getattr(own, name).grad, getattr(theirs, name).grad, rtol=1e-7, atol=1e-8
            )


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), last=st.integers(1, 3), seed=st.integers(0, 10**6),
    affine=st.booleans(),
)  # fmt: skip
def test_layernorm_is_pytorchs(shape, last, seed, affine):
    torch = pytest.importorskip("torch")
    features = shape[-last:]
    own = LayerNorm(features, affine=affine, dtype="float64")
    theirs = torch.nn.LayerNorm(features, elementwise_affine=affine, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    for name in ("weight", "bias") if affine else ():
        value = rng.normal(size=features)
        getattr(own, name).value = value
        getattr(theirs, name).data = torch.tensor(value)
    x, grad = rng.normal(size=(5, *shape)) * 3 + 1, rng.normal(size=(5, *shape))
    given_x = torch.tensor(x, requires_grad=True)
    wanted = theirs(given_x)
    wanted.backward(torch.tensor(grad))
    np.testing.assert_allclose(own.forward(x), wanted.detach(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(own.backward(grad), given_x.grad, rtol=1e-7, atol=1e-8)
    for name in ("weight", "bias") if affine else ():
        np.testing.assert_allclose(getattr(own, name).grad, getattr(theirs, name).grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_program_does_what_the_layers_do_by_hand(kernels, numerics):
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = data()
    with xnn.numerics(numerics):
        model, by_hand = net(), net()
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1, momentum=0.9), kernels=kernels
        )
        trainer.fit((x, y), epochs=2, batch_size=16, progress=False)
        loss, rule, batches = (
            losses.SoftmaxCrossEntropy(),
            optimizers.SGD(0.1, momentum=0.9),
            xnn.data.Batches((x, y), 16),
        )
        for epoch in range(2):
            for xb, yb in batches.epoch(epoch):
                loss.forward(by_hand.forward(by_hand.prepare(xb), training=True), yb)
                by_hand.backward(loss.backward(), input_gradient=False)
                rule.step(by_hand.parameters())
        if numerics == "exact":
            assert weights_sha256(model) == weights_sha256(by_hand)
        for (name, a), (_, b) in zip(model.named_state(), by_hand.named_state(), strict=True):
            np.testing.assert_allclose(a.value, b.value, rtol=2e-4, atol=2e-6, err_msg=name)
        assert not np.array_equal(model.layers[1].running_mean.value, np.zeros(12))


def test_two_fits_of_one_epoch_are_one_of_two():
    once, twice = net(), net()
    for model, epochs in ((once, [2]), (twice, [1, 1])):
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        for count in epochs:
            trainer.fit(data(), epochs=count, progress=False)
    assert weights_sha256(once) == weights_sha256(twice)


def test_buffers_are_named_saved_loaded_and_digested(tmp_path):
    model = net()
    xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)).fit(data(), progress=False)
    names = [name for name, _ in model.named_state()]
    assert names[:6] == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert [b.name for b in model.buffers()] == ["running_mean", "running_var"]
    assert not {b.name for b in model.buffers()} & {p.name for p in model.parameters()}
    before = weights_sha256(model)
    model.save(tmp_path / "m.safetensors")
    again, other = xnn.load(tmp_path / "m.safetensors"), net(seed=5)
    other.load_weights(tmp_path / "m.safetensors")
    x, _ = data()
    for loaded in (again, other):
        assert np.array_equal(loaded.predict(x), model.predict(x))
        assert weights_sha256(loaded) == before
    model.layers[1].running_mean.value = np.ones(12)
    assert weights_sha256(model) != before


def test_buffers_move_with_the_model(lib):
    model = net().to(lib.name)
    assert type(model.layers[1].running_mean.value) is type(lib.to_device(np.ones(1)))


def test_statistics_go_back_when_a_run_diverges():
    x, y = data()
    bad = x.copy()
    model = net()
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1e38))
    with pytest.raises(DivergenceError):
        trainer.fit((bad, y), epochs=3, progress=False, shuffle=False)
    by_hand = net()
    loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(1e38)
    for step in range(trainer.step):
        loss.forward(
            by_hand.forward(x[32 * step : 32 * step + 32], training=True), y[32 * step : 32 * step + 32]
        )
        by_hand.backward(loss.backward())
        rule.step(by_hand.parameters())
    for a, b in zip(model.buffers(), by_hand.buffers(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-5)
        assert np.isfinite(a.value).all()


def test_statistics_that_overflow_are_heard_of():
    model = Sequential(BatchNorm(2), Dense(2, 2))
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    x = np.array([[1e30, 0.0], [-1e30, 1.0]], np.float32)
    with pytest.raises(DivergenceError, match="not finite"):
        trainer.fit((x, np.array([0, 1])), progress=False)
    assert model.buffers()[1].value.tolist() == [1.0, 1.0]


class Counted(Sequential):
    """A model with a forward of its own: it is run as it is, as one op of the program."""

    def forward(self, x, training=False):
        return super().forward(x, training)

    def backward(self, dout, input_gradient=True):
        return super().backward(dout, input_gradient)


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_statistics_move_in_a_layer_that_is_run_as_it_is(kernels, numerics):
    x = np.random.default_rng(0).normal(3.0, size=(40, 4)).astype(np.float32)
    digests = []
    for kind in (Sequential, Counted):
        model = Sequential(kind(BatchNorm(4)), Dense(4, 2), seed=1)
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels, numerics=numerics
        )
        trainer.fit((x, np.arange(40) % 2), epochs=2, batch_size=16, progress=False)
        assert (model.buffers()[0].value > 1.0).all()
        digests.append(weights_sha256(model))
        model.layers[1].weight.value = np.full((4, 2), [3e38, -3e38])
        before = [buffer.value.tolist() for buffer in model.buffers()]
        with pytest.raises(DivergenceError):
            trainer.fit((x, np.arange(40) % 2), progress=False)
        assert [buffer.value.tolist() for buffer in model.buffers()] == before
    assert numerics == "fast" or len(set(digests)) == 1


def test_a_file_without_the_statistics_is_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    model = Sequential(BatchNorm(3))
    model.save(path)
    header, body = parts(path.read_bytes())
    start, end = header.pop("0.running_mean")["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place - (end - start) for place in entry["data_offsets"]]
    path.write_bytes(joined(header, body[:start] + body[end:]))
    with pytest.raises(CorruptFileError, match=r"0\.running_mean is missing"):
        xnn.load(path)
    with pytest.raises(CorruptFileError, match=r"missing 0\.running_mean"):
        model.load_weights(path)


@pytest.mark.parametrize("cuts", [(4,), (1, 9), (2, 3, 7)])
def test_any_number_of_workers_gives_the_same_bits(cuts):
    lib = get_backend("numpy")
    rng = np.random.default_rng(3)
    x, grad = (rng.normal(size=(10, 3, 2)).astype(np.float32) for _ in range(2))
    weight, bias = rng.normal(size=3).astype(np.float32), rng.normal(size=3).astype(np.float32)

    def everything(x, grad):
        with xnn.numerics("exact"):
            xp, axis = lib.math, (0, 2)
            moments, kept = forward_of(ops.moments, xp, (x,), {"axis": axis})
            y, saved = forward_of(ops.normalize, xp, (x, moments, weight, bias), {"axis": axis})
            dx, dmoments, dw, db = backward_of(ops.normalize, xp, grad, saved)
            (through,) = backward_of(ops.moments, xp, dmoments, kept)
            running = xnn.ops.apply.apply_rule(
                running_moments, xp, (bias, weight * weight, moments),
                {"momentum": 0.1, "axis": axis, "shape": x.shape},
            )  # fmt: skip
            return [moments, dmoments, dw, db, *running], [y, dx, through]

    shared, local = everything(x, grad)
    parts, meeting = np.split(np.arange(10), cuts), Meeting(lib, len(cuts) + 1, seed=0)
    results = [None] * len(parts)

    def work(number):
        with with_communicator(Member(meeting, number)):
            results[number] = everything(x[parts[number]], grad[parts[number]])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, _ in results:
        assert [a.tobytes() for a in own] == [a.tobytes() for a in shared]
    for n, whole in enumerate(local):
        assert np.concatenate([result[1][n] for result in results]).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: BatchNorm(0), OptionError, "features must be a positive integer"),
        (lambda: BatchNorm(3, momentum=2.0), OptionError, "momentum"),
        (lambda: LayerNorm(()), OptionError, "extents of the last axes"),
        (lambda: LayerNorm(3, epsilon=-1), OptionError, "epsilon"),
        (
            lambda: BatchNorm(3).forward(np.ones((2, 4), np.float32)),
            ShapeError,
            r"\(2, 4\): it must be \(n, 3\)",
        ),
        (lambda: BatchNorm(3).forward(np.ones(3, np.float32)), ShapeError, "it must be"),
        (lambda: LayerNorm((2, 3)).forward(np.ones((5, 3, 2), np.float32)), ShapeError, r"\(n, ..., 2, 3\)"),
        (lambda: LayerNorm(3).forward(np.ones(3, np.float32)), ShapeError, "it must be"),
        (lambda: BatchNorm(3).forward(np.ones((2, 3))), DTypeError, "holds float32 numbers and got float64"),
        (lambda: BatchNorm(3).output_shape((4,)), ShapeError, "first axis must be 3"),
        (lambda: LayerNorm(3).output_shape((4,)), ShapeError, "last axes must be"),
    ],
)
def test_what_does_not_fit_is_said(make, kind, said):
    with pytest.raises(kind, match=said):
        make()


def test_statistics_alone_say_the_models_dtype():
    model = Sequential(BatchNorm(2, affine=False, dtype="float64"))
    assert model.dtype == "float64"
    assert model.predict([[1, 2], [3, 4]]).dtype == np.float64


def test_ones_are_ones():
    assert initializers.Ones()(None, (2, 3)).tolist() == [[1.0] * 3] * 2
