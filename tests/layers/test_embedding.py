"""Embedding: rows of a table by number, against NumPy and PyTorch, as a layer, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError
from xnn.layers.files import weights_sha256
from xnn.ops.apply import backward_of, forward_of

TABLE = np.random.default_rng(1).standard_normal((6, 3))


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (2, 3, 4), (500,), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_rows_and_their_gradient(lib, shape, dtype):
    rng = np.random.default_rng(2)
    indices = np.asarray(rng.integers(0, 6, shape), dtype)
    dy = rng.standard_normal((*shape, 3))
    y, saved = forward_of(ops.embedding, lib.math, (lib.to_device(indices), lib.to_device(TABLE)), {})
    assert np.array_equal(lib.to_host(y), TABLE[indices])
    none, dw = backward_of(ops.embedding, lib.math, lib.to_device(dy), saved)
    assert none is None
    wanted = np.zeros_like(TABLE)
    np.add.at(wanted, indices.astype(int), dy)
    np.testing.assert_allclose(lib.to_host(dw), wanted, rtol=1e-12, atol=1e-12)


def test_an_index_outside_gives_nan_and_no_gradient(lib):
    indices = np.array([-1, 0, 6, 5, 300])
    y, saved = forward_of(ops.embedding, lib.math, (lib.to_device(indices), lib.to_device(TABLE)), {})
    assert np.isnan(lib.to_host(y)).all(axis=1).tolist() == [True, False, True, False, True]
    dw = lib.to_host(backward_of(ops.embedding, lib.math, lib.to_device(np.ones((5, 3))), saved)[1])
    assert dw[:, 0].tolist() == [1, 0, 0, 0, 0, 1]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 4))
def test_it_is_pytorchs(indices, width):
    torch = pytest.importorskip("torch")
    indices, table = np.array(indices, np.int64), np.random.default_rng(width).standard_normal((6, width))
    dy = np.random.default_rng(3).standard_normal((len(indices), width))
    weight = torch.tensor(table, requires_grad=True)
    theirs = torch.nn.functional.embedding(torch.tensor(indices), weight)
    theirs.backward(torch.tensor(dy))
    y, saved = forward_of(ops.embedding, np, (indices, table), {})
    assert np.array_equal(y, theirs.detach().numpy())
    np.testing.assert_allclose(
        backward_of(ops.embedding, np, dy, saved)[1], weight.grad.numpy(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.embedding(np.array([0.0]), TABLE), DTypeError, "indices of float64: it needs integers"),
        (lambda: ops.embedding(np.array([0]), TABLE[0]), ShapeError, r"shape \(3,\): it needs \(num, dim\)"),
        (lambda: layers.Embedding(0, 3), OptionError, "num_embeddings"),
        (lambda: layers.Embedding(3, 1.5), OptionError, "embedding_dim"),
        (lambda: layers.Embedding(6, 3)(np.array([0.5])), DTypeError, "takes integers, got float64"),
        (lambda: layers.Embedding(6, 3)(np.array([True])), DTypeError, "takes integers, got bool"),
        (lambda: layers.Embedding(6, 3)(np.array([2, 6])), LabelError, r"from 2 to 6: they must lie in 0 \.\. 5"),
        (lambda: layers.Embedding(6, 3)(np.array([-1, 2])), LabelError, "from -1 to 2"),
        (lambda: model().predict(np.array([[1, 2, 9]])), LabelError, "from 1 to 9"),
        (lambda: model().predict(np.array([[0.5, 1, 2]])), DTypeError, "takes integers, got float32"),
        (lambda: model().predict(np.array([[1, 2]])), ShapeError, "the last axis must be 9"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()


def model():
    return xnn.Sequential(
        xnn.Sequential(layers.Embedding(9, 3)), layers.Flatten(), layers.Dense(9, 2), seed=0
    )


WORDS = np.random.default_rng(4).integers(0, 9, (64, 3))
LABELS = (WORDS == 4).any(axis=1).astype(np.int64)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_model_of_words_learns(lib, numerics, tmp_path):
    words = model()
    trainer = xnn.Trainer(words, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.05), numerics=numerics)
    history = trainer.fit((WORDS, LABELS), epochs=12, batch_size=20, progress=False)
    assert history.epochs[-1]["accuracy"] > 0.95
    words.save(tmp_path / "w.safetensors")
    loaded = xnn.load(tmp_path / "w.safetensors")
    assert loaded.predict(WORDS).tobytes() == words.predict(WORDS).tobytes()
    assert words.output_shape((3,)) == (2,)


@pytest.mark.parametrize("table", ["numpy", "compiled"])
def test_kernels_train_the_same_exact_model(table):
    if table == "compiled":
        pytest.importorskip("numba")
    digests = set()
    for kernels in ("ops", table):
        words = model()
        trainer = xnn.Trainer(
            words, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels, numerics="exact"
        )
        trainer.fit((WORDS, LABELS), epochs=2, batch_size=20, progress=False)
        digests.add(weights_sha256(words))
    assert len(digests) == 1


def test_a_wrong_word_anywhere_in_the_data_is_heard_of_before_training():
    words, wrong = model(), WORDS.copy()
    wrong[-1, 2] = 9
    trainer = xnn.Trainer(words, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    before = weights_sha256(words)
    with pytest.raises(LabelError, match="from 0 to 9"):
        trainer.fit((wrong, LABELS), batch_size=8, progress=False)
    assert weights_sha256(words) == before


def test_the_layer(lib):
    layer = layers.Embedding(6, 3, seed=1)
    assert layer.weight.shape == (6, 3)
    assert layer.flops((4,)) == 0
    y = layer.forward(lib.to_device(np.array([[1, 1], [5, 0]])))
    assert tuple(y.shape) == (2, 2, 3)
    assert layer.backward(lib.to_device(np.ones((2, 2, 3), np.float32))) is None
    assert lib.to_host(layer.weight.grad)[:, 0].tolist() == [1, 2, 0, 0, 0, 1]
    assert layer.config() == {"num_embeddings": 6, "embedding_dim": 3, "dtype": "float32"}
