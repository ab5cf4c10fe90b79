"""Ranks whose arrays lie on a device: the messages go by way of the host. In exact numerics backends may be mixed."""

import numpy as np
import pytest
from trainings import NUMBERED, digits, mlp, on_each, outcome, small, steps_and_messages

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends import backend
from xnn.backends.ranks.threads import in_threads
from xnn.errors import RankError


def everything(name, **options):
    """A training with dropout, batch normalization, clipping and averages; the last batch is smaller than 3 ranks."""
    data = digits(34)
    with backend(name):
        between = (
            layers.Dense(20, 8, bias=False), layers.BatchNorm(8), layers.Dropout(0.3), layers.LayerNorm(8),
            layers.ReLU(),
        )  # fmt: skip
        optimizer = optimizers.AdamW(0.02, weight_decay={"weight": 0.01}, clip_norm=0.5, average=0.9)
        trainer = mlp(*between, optimizer=optimizer, metrics=["accuracy", "f1"], **options)
        history = trainer.fit(data, validation=data, epochs=2, batch_size=32, progress=False)
        return outcome(trainer, history, data) | {"shared": trainer.predict(data[0], 25).tobytes()}


def test_exact_numerics_give_the_bits_of_one_process(other):
    alone = everything("numpy", numerics="exact")
    assert on_each(3, lambda: everything(other.address, numerics="exact")) == alone


@pytest.mark.parametrize("threads", [None, "auto"])
def test_backends_are_mixed_in_exact_numerics(other, threads):
    alone = everything("numpy", numerics="exact")
    names = other.address, "numpy", other.address
    together = in_threads(3, lambda ranks: everything(names[ranks.rank], numerics="exact", threads=threads))
    assert together == [alone] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("place", "name"), NUMBERED)
def test_a_network_of_the_digest_matrix(other, place, name):
    def train(ranks, names, numerics):
        with backend(names[ranks.rank]):
            return small(name, numerics)[1]

    alone, mixed = small(name, "exact")[1], (other.address, "numpy", other.address)
    assert in_threads(3, lambda ranks: train(ranks, mixed, "exact")) == [alone] * 3
    with backend(other.address):
        alone = small(name, "fast")[1]
    one, same = in_threads(2, lambda ranks: train(ranks, (other.address,) * 2, "fast"))
    assert one == same
    assert one["epochs"][0]["loss"] == pytest.approx(alone["epochs"][0]["loss"], rel=1e-5)


def test_what_is_sent_comes_back_changed_and_the_array_stays(lib):
    def change(numbers):
        assert numbers.flags.c_contiguous
        numbers += 1

    shapes = (3, 4), (2, 1000), (), (1, 5), (0, 4)
    given = [lib.to_device(np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)) for shape in shapes]
    given.append(lib.xp.permute_dims(given[0], (1, 0)))
    found = [lib.exchanged(x, change) for x in given]
    for x, y in zip(map(lib.to_host, given), map(lib.to_host, found), strict=True):
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(y, x + 1)


def test_fast_numerics_are_close_to_one_process(other):
    alone = everything(other.address)
    found = on_each(3, lambda: everything(other.address))
    assert found["epochs"][0]["loss"] == pytest.approx(alone["epochs"][0]["loss"], rel=1e-4)
    assert found["tested"]["loss"] == pytest.approx(alone["tested"]["loss"], rel=1e-3)


def test_fast_numerics_refuse_to_mix_backends(other):
    names = "numpy", other.address
    said = "rank 1 of 2 .* differs from rank 0 in: backend .only exact numerics mix them."
    with pytest.raises(RankError, match=said):
        in_threads(2, lambda ranks: everything(names[ranks.rank]))
    x, _ = digits()

    def predict(ranks):
        with backend(names[ranks.rank]):
            return mlp().predict(x)

    with pytest.raises(RankError, match=said):
        in_threads(2, predict)


def test_kernels_compute_the_rows_in_fast_numerics(other):
    """In exact numerics ops compute, since their messages are those of other backends."""
    with backend(other.address):
        table = other.kernels().name
        assert in_threads(2, lambda ranks: mlp().fit(digits(), progress=False).plan["kernels"]) == [table] * 2


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_rows_are_read_from_files(other, tmp_path, numerics):
    x, y = digits()
    np.save(tmp_path / "x.npy", x)

    def train():
        with backend(other.address):
            trainer = mlp(numerics=numerics)
            given = np.load(tmp_path / "x.npy", mmap_mode="r"), y
            return trainer.fit(given, epochs=2, progress=False)["loss"]

    assert on_each(3, train) == pytest.approx(train(), rel=1e-4 if numerics == "fast" else 0)


def test_a_divergence_goes_back_on_all_ranks(other, tmp_path):
    class Poison(callbacks.Callback):
        """At step 8 a weight becomes infinite, until the learning rate was halved."""

        def on_step(self, history, epoch, step, loss):
            if len(history.lowered) == 0 and history.steps == 8:
                weight = self.model.parameters()[0]
                weight.value = weight.value * float("inf")

    def train(folder):
        with backend(other.address):
            saver = callbacks.Checkpoint(tmp_path / folder, every="3steps", keep=9, on_nan="lower-lr")
            trainer = mlp(optimizer=optimizers.Adam(0.02), callbacks=[saver, Poison()])
            history = trainer.fit(digits(), epochs=2, batch_size=32, progress=False)
            return [entry["step"] for entry in history.lowered], history["loss"]

    steps, found = on_each(2, lambda: train("together"))
    assert steps == [6]
    assert found == pytest.approx(train("alone")[1], rel=1e-3)


def test_lbfgs_searches_on_rank_0(other):
    pytest.importorskip("scipy")
    x = np.linspace(-1.0, 1.0, 60).reshape(-1, 1)

    def train():
        with backend(other.address):
            model = xnn.Sequential(layers.Dense(1, 6), layers.Tanh(), layers.Dense(6, 1), seed=0)
            trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS())
            return trainer.fit((x, x * x), epochs=4, batch_size=30, progress=False)["loss"]

    assert on_each(2, train) == pytest.approx(train(), rel=1e-3)


def test_a_step_sends_one_message(other):
    def make():
        with backend(other.address):
            return mlp(optimizer=optimizers.Adam(0.01), metrics=[])

    steps, messages = steps_and_messages(make, 2, digits(), batch_size=32)
    assert messages["sum"] == steps
    assert messages["maximum"] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metrics_that_need_all_rows_and_weights_of_samples(other, dtype):
    x, y = digits()
    data = (x / 255).astype(dtype), (y[:, None] - np.array([0.0, 1.5])).astype(dtype)

    def train():
        with backend(other.address):
            model = xnn.Sequential(layers.Dense(20, 2, dtype=dtype), seed=1)
            trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), metrics=["mae", "mse", "r2"])
            weights = np.linspace(0.5, 2.0, len(x)).astype(dtype)
            history = trainer.fit(data, epochs=2, batch_size=50, sample_weight=weights, progress=False)
            return history.epochs

    for one, alone in zip(on_each(3, train), train(), strict=True):
        assert one == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("work", ["evaluate", "predict"])
def test_fast_numerics_refuse_other_backends_outside_of_training(other, work):
    x, y = digits()

    def compute(ranks):
        with backend((other.address, "numpy")[ranks.rank]):
            trainer = mlp()
            return trainer.predict(x) if work == "predict" else trainer.evaluate((x, y))

    with pytest.raises(RankError, match=r"rank 1 of 2 .* differs from rank 0 in: backend"):
        in_threads(2, compute)
