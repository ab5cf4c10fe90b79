"""`predict` by kernels: the numbers of the ops, for every layer, kind of samples, thread and process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading
import weakref

import numpy as np
import pytest
from predicted_models import (
    CATALOGUE,
    IMAGES,
    PICTURES,
    ROWS,
    TABLES,
    by,
    close,
    dense,
    images,
    write_into_weights,
)

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.benchmarks import networks
from xnn.errors import LabelError, MixedArraysError, ShapeError
from xnn.layers import prediction
from xnn.layers.parts import Parts


@pytest.fixture(autouse=True)
def every_model_has_programs(monkeypatch):
    """Those of dense layers, too, which are as fast by ops."""
    monkeypatch.setattr(prediction, "_LIGHT", frozenset())


#: Networks whose ops take long.
LARGE = "vgg", "resnet"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kernels", TABLES)
@pytest.mark.parametrize("name", CATALOGUE)
def test_kernels_predict_what_ops_do(name, kernels):
    make, x = CATALOGUE[name]
    model = make()
    for count in (1, 2, 17, 40) if name in LARGE else (1, 2, 17, 1000):
        found, wanted = by(kernels, model, x[:count]), by("ops", model, x[:count])
        assert found.dtype == wanted.dtype
        close(found, wanted, 1e-12 if model.dtype == "float64" else 2e-5)


@pytest.mark.parametrize("name", CATALOGUE)
def test_other_rows_and_other_calls_change_no_bit_of_a_row(name):
    make, x = CATALOGUE[name]
    model, given = make(), x[:21].copy()
    before = model.predict(given)
    model.predict(x[21:50])  # leaves its rows in the buffers
    assert np.array_equal(model.predict(given), before)
    others = np.arange(21) % 4 != 1
    given[others] = 3 if x.dtype.kind in "iu" else np.nan
    assert np.array_equal(model.predict(given)[~others], before[~others])


@pytest.mark.parametrize("name", [name for name, (_, x) in CATALOGUE.items() if x.dtype.kind == "f"])
def test_nan_and_infinity_come_out_where_ops_give_them(name):
    make, x = CATALOGUE[name]
    model, given = make(), x[:6].copy()
    for row, number in enumerate([np.nan, np.inf, -np.inf, 1e30, 0.0]):
        given[row].flat[5] = number
    with np.errstate(all="ignore"):
        found, wanted = model.predict(given), by("ops", model, given)
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted))
    assert np.array_equal(np.isnan(found), np.isnan(wanted))


# Inputs and outputs.


def test_outputs_are_arrays_of_their_own():
    model = dense(layers.ReLU())
    first = model.predict(ROWS[:8])
    kept = first.copy()
    second = model.predict(ROWS[8:16])
    assert np.array_equal(first, kept)
    assert not np.shares_memory(first, second)
    first[...] = 7.0
    assert np.array_equal(model.predict(ROWS[:8]), kept)
    same = xnn.Sequential(layers.Flatten())
    found = same.predict(ROWS[:8])
    assert not np.shares_memory(found, ROWS)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i4", ">i8", "?", "f2", "f4", ">f4", "f8"])
def test_samples_of_every_dtype_and_layout(dtype):
    model = networks.in_xnn("lenet")
    wanted = by("ops", model, IMAGES[:5] % 2)
    for given in (
        IMAGES[:5] % 2,
        np.asfortranarray(IMAGES[:5] % 2),
        (IMAGES[:10] % 2)[::2],
        (IMAGES[:5] % 2)[::-1],
    ):
        close(model.predict(given.astype(dtype, order="K")), by("ops", model, given))
    close(model.predict((IMAGES[:5] % 2).tolist()), wanted)


def test_samples_of_other_shapes_and_no_samples():
    model = images(layers.ReLU(), layers.GlobalAvgPool())
    for size in (7, 5, 6, 7):
        x = PICTURES[:5, :, :size, :size]
        close(model.predict(x), by("ops", model, x))
    assert model.predict(PICTURES[:0]).shape == (0, 4)
    for _ in range(2):
        with pytest.raises(ShapeError):
            model.predict(PICTURES[:, :1])
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            model.predict(PICTURES[0])


def test_parts_of_a_batch_have_the_sizes_that_were_asked_for():
    model = dense(layers.ReLU())
    alone = np.concatenate([model.predict(row[None]) for row in ROWS[:20]])
    assert np.array_equal(model.predict(ROWS[:20], batch_size=1), alone)


def test_labels_out_of_range_are_an_error_at_each_call():
    model = CATALOGUE["embedding"][0]()
    for _ in range(2):
        model.predict([[0, 1, 2, 3]])
        with pytest.raises(LabelError):
            model.predict([[0, 1, 2, 5]])


def test_a_layer_on_another_backend_is_an_error():
    pytest.importorskip("array_api_strict")
    model = dense(layers.Dense(9, 2))
    model.predict(ROWS[:3])
    model[1].to("array-api-strict")
    with pytest.raises(MixedArraysError):
        model.predict(ROWS[:3])
    model[1].to("numpy")
    close(model.predict(ROWS[:3]), by("ops", model, ROWS[:3]))


def test_a_prediction_inside_compute_and_under_grad():
    teacher = dense(layers.Tanh())
    wanted = teacher.predict(ROWS[:6])

    def loss(x):
        return ops.sum(x * teacher.predict(ROWS[:6]))

    assert np.array_equal(xnn.grad(loss)(wanted), wanted)
    assert np.array_equal(xnn.grad(loss)(wanted), wanted)


def test_predict_leaves_a_forward_pass_and_statistics_alone():
    model = dense(layers.BatchNorm(9), layers.Dropout(0.5), layers.Dense(9, 2))
    y = model.forward(ROWS[:8], training=True)
    mean = np.array(model[1].running_mean.value)
    model.predict(ROWS[:8])
    assert np.array_equal(model[1].running_mean.value, mean)
    first = model.backward(np.ones_like(y))
    model.predict(ROWS[:40])
    assert np.array_equal(model.backward(np.ones_like(y)), first)


# Numerics, tables, the Trainer.


def test_exact_numerics_have_the_bits_of_the_ops():
    model = dense(layers.GELU(), layers.Dense(9, 3))
    with xnn.numerics("exact"):
        wanted = by("ops", model, ROWS)
        assert prediction.predicted(model, ROWS) is None
        exact = model.predict(ROWS)
    fast = model.predict(ROWS)
    with xnn.numerics("exact"):
        assert np.array_equal(model.predict(ROWS), exact)
    assert np.array_equal(exact, wanted)
    assert np.array_equal(model.predict(ROWS), fast)


@pytest.mark.parametrize("kernels", ["ops", "auto", *TABLES])
def test_a_trainer_measures_by_its_own_kernels(kernels):
    model = dense(layers.Tanh(), layers.Dense(9, 3))
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), kernels=kernels)
    history = trainer.fit((ROWS[:100], ROWS[:100, :3]), (ROWS[100:240], ROWS[100:240, :3]), epochs=2)
    outputs = Parts(model, kernels).together(ROWS[100:240])
    wanted = float(losses.MSE().forward(outputs, ROWS[100:240, :3]))
    assert history["val_loss"][-1] == pytest.approx(wanted, rel=1e-6)
    assert trainer.evaluate((ROWS[100:240], ROWS[100:240, :3]))["loss"] == history["val_loss"][-1]


# Threads, processes, copies, memory.


def test_threads_predict_at_once():
    model = networks.in_xnn("lenet")
    wanted = [model.predict(IMAGES[n : n + 40]) for n in range(4)]
    wrong = []

    def work(n):
        for _ in range(15):
            if not np.array_equal(model.predict(IMAGES[n : n + 40]), wanted[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_predicts():
    model = networks.in_xnn("lenet")
    wanted = model.predict(IMAGES[:40])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(model.predict(IMAGES[:40])))
    process.start()
    assert ours.poll(60)
    assert np.array_equal(ours.recv(), wanted)
    process.join(60)


def test_copies_and_pickles_hold_no_programs():
    model, fresh = dense(layers.ReLU()), dense(layers.ReLU())
    first = model.predict(ROWS[:5])
    assert len(pickle.dumps(model)) == len(pickle.dumps(fresh))
    assert vars(model).keys() == vars(fresh).keys()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        write_into_weights(other)
        close(other.predict(ROWS[:5]), by("ops", other, ROWS[:5]))
        assert np.array_equal(model.predict(ROWS[:5]), first)


def test_the_programs_of_a_model_are_bounded_and_go_with_it(monkeypatch):
    monkeypatch.setattr(prediction, "_KEPT", 1 << 20)
    model, most = networks.in_xnn("lenet"), 0
    for count in (1, 2, 3, 20, 70, 4, 5, 6):
        model.predict(IMAGES[:count])
        programs = prediction._of_model[model]
        sizes = [program.nbytes for program in programs.idle.values()]
        assert len(sizes) == 1 or sum(sizes) <= 1 << 20
        most = max(most, len(sizes))
    assert most > 1
    gone = [weakref.ref(model), weakref.ref(programs)]
    del model, programs
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (2, 2), (9, 9), (16, 16), (17, 18), (65, 72), (200, 208)]
)
def test_sizes_of_programs(count, size):
    assert prediction._size(count) == size


def test_ops_predict_for_dense_layers_alone(monkeypatch):
    """Their time is that of the products; and so predictions and validation of dense networks keep their bits."""
    monkeypatch.undo()
    model = dense(layers.Tanh(), layers.Dense(9, 3), layers.Softmax())
    assert prediction.predicted(model, ROWS) is None
    assert np.array_equal(model.predict(ROWS[:20]), model(ROWS[:20]))
    assert prediction.predicted(networks.in_xnn("lenet"), IMAGES[:3]) is not None
