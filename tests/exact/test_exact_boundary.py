"""Values that enter exact numerics in other ways than as an op's inputs, and values that leave them."""

import copy
import json
import pickle

import numpy as np
import pytest
from exact_tools import by_workers

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import get_backend
from xnn.backends.exact import ScaledIntegers
from xnn.errors import GraphError, OptionError
from xnn.layers.files import metadata
from xnn.ops.apply import apply_rule, backward_of, batch_sum, forward_of
from xnn.ops.indexing import scatter_add
from xnn.runs.mlp import mlp

LIB = get_backend("numpy")
WEIGHTS = np.array([100, 200, 300, 400], np.float32)


@pytest.fixture(autouse=True)
def _exact():
    with xnn.numerics("exact"):
        yield


class Weighted(xnn.Op):
    """Multiplies x by weights, an option of the op, divided by their sum."""

    def forward(self, xp, x, *, weights):
        return x * (weights / xp.sum(weights)) + xp.exp(weights * 0.0), None

    def backward(self, xp, grad, saved):
        return (grad,)


class Holding(xnn.Op):
    """Computes with float32 arrays of its own, which were never converted to float64."""

    def forward(self, xp, x):
        own = xp.asarray(WEIGHTS)
        odd = xp.asarray(WEIGHTS[:3])
        return x * (own / xp.sum(own)) + (xp.mean(odd) + xp.max(xp.log(odd)) + xp.std(odd)) * 0.0, None

    def backward(self, xp, grad, saved):
        return (grad,)


def test_float32_arrays_that_are_not_inputs_are_converted_too():
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(
        Weighted()(x, weights=WEIGHTS)[0] - 1.0, np.float32([0.1, 0.2, 0.3, 0.4]) + 1 - 1
    )
    np.testing.assert_array_equal(Holding()(x)[0], np.float32([0.1, 0.2, 0.3, 0.4]))
    xp = LIB.exact
    for name in ("exp", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos"):
        narrow, wide = WEIGHTS[:3] / 500, (WEIGHTS[:3] / 500).astype(np.float64)
        assert getattr(xp, name)(narrow).tobytes() == getattr(xp, name)(wide).tobytes()
    assert xp.pow(WEIGHTS, 0.3).tobytes() == xp.pow(WEIGHTS.astype(float), 0.3).tobytes()
    assert xp.matmul(WEIGHTS[None], WEIGHTS[:, None]) == 300000.0
    assert apply_rule(lambda xp, a, *, b: xp.sum(a * b), xp, (WEIGHTS,), {"b": WEIGHTS}) == 300000.0


def test_float32_from_a_users_op_is_stored_without_subnormals_and_minus_zero():
    class Raw(xnn.Op):
        def forward(self, xp, x):
            return np.float32([-0.0, 1e-42, -1e-40, 2.5]), None

    y = Raw()(np.ones(4, np.float32))
    assert y.tobytes() == np.float32([0.0, 0.0, 0.0, 2.5]).tobytes()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_sums_of_integers_over_the_batch(dtype):
    xp, x = LIB.exact, np.array([[1, 0], [1, 1], [0, 1]]).astype(dtype)
    for axis, right in ((None, 4), (0, [2, 2]), (1, [1, 2, 1])):
        found = batch_sum(xp, x, axis=axis)
        assert np.asarray(found).dtype.kind in "iu"
        np.testing.assert_array_equal(found, right)
    if dtype is not np.bool_:
        rows = scatter_add(xp, 2, np.array([0, 1, 0]), x)
        assert rows.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(rows, [[1, 1], [1, 1]])


@pytest.mark.parametrize(
    "x", [np.uint8([0, 5]), np.int32([-(2**31), 5]), np.bool_([True, False]), np.array([2.0, np.nan])]
)
def test_argmin_and_argmax_agree_with_numpys(x):
    xp = LIB.exact
    assert (xp.argmin(x), xp.argmax(x)) == (np.argmin(x), np.argmax(x))


def test_numbers_beyond_an_integers_range_are_limited_to_it():
    x = np.array([1e30, -1e30, np.inf, np.nan, 3.7, -3.7])
    xp = LIB.exact
    assert xp.astype(x, np.int32).tolist() == [2**31 - 1, -(2**31), 2**31 - 1, 0, 3, -3]
    assert xp.astype(x, np.uint8).tolist() == [255, 0, 255, 0, 3, 0]
    assert xp.astype(x, np.int64).tolist() == [2**63 - 1024, -(2**63), 2**63 - 1024, 0, 3, -3]


def test_scaled_integers_act_as_arrays():
    pixels = np.array([[51, 102], [0, 255]], np.uint8)
    x = layers.Rescale(1 / 255).forward(pixels)
    right = np.float32([[0.2, 0.4], [0.0, 1.0]])
    assert isinstance(x, ScaledIntegers)
    np.testing.assert_array_equal(x.reshape(-1), right.reshape(-1))
    np.testing.assert_array_equal(x.mean(axis=0), right.mean(axis=0))
    np.testing.assert_array_equal(x.T, right.T)
    np.testing.assert_array_equal(x % 0.3, right % np.float32(0.3))
    assert float(x[0:1, 0:1].sum()) == np.float32(0.2)
    assert not hasattr(x, "no_such_thing")
    assert f"{x[0, 0]:.3f}" == "0.200"
    assert bool(x[1, 1])
    assert not bool(x[1, 0])
    again = copy.deepcopy(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x)), again)
    assert again.integers is not x.integers
    assert not hasattr(x, "__no_such_protocol__")


@pytest.mark.parametrize("make", [lambda: layers.Sigmoid(), lambda: layers.Dense(3, 2, seed=0)])
def test_a_backward_pass_in_other_numerics_is_refused(make):
    layer, x = make(), np.ones((4, 3), np.float32)
    y = layer.forward(x)
    with (
        xnn.numerics("fast"),
        pytest.raises(GraphError, match="forward ran in exact numerics and its backward in fast"),
    ):
        layer.backward(np.ones_like(y))
    assert layer.backward(np.ones_like(y)).dtype == np.float32
    loss = losses.MSE()
    loss.forward(y, np.ones_like(y))
    with xnn.numerics("fast"), pytest.raises(GraphError, match="keep both inside one"):
        loss.backward()


def test_a_model_and_its_file_say_how_it_was_trained(tmp_path):
    x, y = np.eye(10, dtype=np.float32), np.arange(10)

    def fit(model, numerics):
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), numerics=numerics).fit(
            (x, y), progress=False
        )

    path, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    model = mlp(10, (4,), 10)
    fit(model, "exact")
    with xnn.numerics("fast"):
        model.save(path)
        loaded = xnn.load(path)
        loaded.save(again)
        other = mlp(10, (4,), 10)
        other.load_weights(path)
    assert (
        metadata(path)["numerics"]
        == metadata(again)["numerics"]
        == loaded.numerics
        == other.numerics
        == "exact"
    )
    assert loaded.predict(x).tobytes() == model.predict(x).tobytes()
    fit(loaded, "fast")
    assert loaded.numerics == "mixed"
    loaded.predict(x)


@pytest.mark.parametrize("bias", [(3,), (1, 3), (1, 1), ()], ids=str)
@pytest.mark.parametrize("cuts", [(1,), (0,), (1, 1), (2, 3)], ids=str)
def test_workers_have_the_whole_batchs_gradients_for_any_shards_and_bias(bias, cuts):
    draw = np.random.default_rng(0).standard_normal
    x, w, dy = (draw(s).astype(np.float32) for s in ((4, 5), (5, 3), (4, 3)))
    b = np.zeros(bias, np.float32)

    def gradients(rows):
        _, saved = forward_of(ops.dense, LIB.math, (x[rows], w, b), {})
        return backward_of(ops.dense, LIB.math, dy[rows], saved)[1:]

    whole = gradients(slice(None))
    for gradient in by_workers([0, *cuts, 4], gradients):
        assert [g.tobytes() for g in gradient] == [g.tobytes() for g in whole]
        assert gradient[1].shape == bias


def test_scatter_add_over_workers_adds_the_rows_of_all():
    rows = np.random.default_rng(1).standard_normal((6, 2))
    indices = np.array([0, 2, 0, 1, 2, 2])
    whole = scatter_add(LIB.math, 3, indices, rows, batch=True)

    def work(part):
        return scatter_add(LIB.math, 3, indices[part], rows[part], batch=True)

    found = by_workers([0, 1, 6], work)
    assert found[0].tobytes() == found[1].tobytes() == whole.tobytes()


def test_machine_code_that_differs_from_the_ops_is_compiled_again(monkeypatch):
    """The loops are compared with the ops; if they differ, all are compiled again; if they still differ, refused."""
    pytest.importorskip("numba")
    from xnn.backends.exact.kernels import compiled_loops, compiled_passes
    from xnn.errors import BackendUnavailableError

    assert compiled_passes.has_the_ops_bits(LIB.exact)
    again = []
    monkeypatch.setattr(
        type(compiled_loops.sgd), "recompile", lambda self: again.append(self.py_func.__name__)
    )
    verdicts = iter([False, True, False, False])
    monkeypatch.setattr(compiled_passes, "has_the_ops_bits", lambda exact: next(verdicts))
    compiled_passes.prepare(LIB.exact)
    assert again.index("cut_columns") < again.index("slice_columns")  # which calls it
    assert {"cross_entropy", "sgd", "adam", "slice_rows"} <= set(again)
    with pytest.raises(BackendUnavailableError, match="their bits differ from those of the ops"):
        compiled_passes.prepare(LIB.exact)
    monkeypatch.undo()
    monkeypatch.setattr(compiled_passes.loops, "adam", lambda *arrays: None)  # must be noticed
    with xnn.numerics("exact"):
        assert not compiled_passes.has_the_ops_bits(LIB.exact)


def test_a_plan_says_whether_updates_were_folded():
    class Reads(xnn.callbacks.Callback):
        needs_gradients = True

    x, y = np.eye(10, dtype=np.float32), np.arange(10)
    plans = []
    for callbacks in ((), (Reads(),)):
        trainer = xnn.Trainer(
            mlp(10, (4,), 10),
            losses.SoftmaxCrossEntropy(),
            optimizers.SGD(0.1),
            kernels="numpy",
            callbacks=callbacks,
        )
        plans.append(trainer.fit((x, y), progress=False).plan)
    assert [plan.pop("folded") for plan in plans] == [True, False]
    assert plans[0] == plans[1]


def test_a_record_by_another_version_that_cannot_be_read_says_so():
    from xnn.runs.spec import RunSpec

    known = {
        "hidden": [4],
        "activation": "relu",
        "optimizer": "sgd",
        "lr": 0.1,
        "batch_size": 8,
        "seed": 0,
        "dropout": 0.0,
    }
    assert RunSpec.from_json(json.loads(json.dumps(known)), "0.1.0").hidden == (4,)
    for change, odd in (({"optimizer": "muon"}, "optimizer 'muon'"), ({"swap": 3}, "swap")):
        with pytest.raises(OptionError, match=f"by xnn 9.9.*{odd}"):
            RunSpec.from_json({**known, **change}, "9.9")
