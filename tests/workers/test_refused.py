"""What ranks cannot do together, or were given differently, is refused before training."""

import sys

import numpy as np
import pytest
from trainings import digits, mlp

import xnn
from xnn import callbacks, initializers, layers, ops, optimizers
from xnn.backends.ranks.group import Shard
from xnn.backends.ranks.launch import Launch, launched
from xnn.backends.ranks.threads import in_threads
from xnn.errors import MissingExtraError, OptionError, RankError
from xnn.layers.files import weights_sha256


class Sheared(layers.Layer):
    def compute(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


class Divided(layers.Layer):
    """Computes with the number of rows, which is another one on each rank."""

    def compute(self, x):
        return x / float(x.shape[0])


def _by_rows(x):
    """A choice by the number of rows, which is that of a whole batch in one process alone."""
    return ops.relu(x) if x.shape[0] > 20 else x


#: Functions that compute with the number of rows.
COUNTING = [
    lambda x: x * np.float32(1.0 / x.shape[0]),
    lambda x: x * np.full(8, x.shape[0], np.float32),
    lambda x: ops.leaky_relu(x, 1.0 / x.shape[0]),
    lambda x: ops.clip(x, -x.shape[0] / 50, x.shape[0] / 50),
    _by_rows,
]


class Keeping(layers.Layer):
    """Keeps a mean over the rows in a buffer."""

    def __init__(self):
        super().__init__()
        self.seen = layers.Buffer("seen", (8,), initializers.Zeros())

    def compute(self, x, training):
        if training:
            self.keep((self.seen,), lambda xp, seen, x: (xp.mean(x, axis=0),), x)
        return x


class Means(layers.Layer):
    """Uses the means of the batch for something else than a normalization."""

    def compute(self, x):
        return x - ops.moments(x, axis=(-2,))[0]


class ByHand(layers.Layer):
    def forward(self, x, training=False):
        return x - ops.mean(x, axis=0)

    def backward(self, dout, input_gradient=True):
        return dout


class Square(xnn.Op):
    def forward(self, xp, x):
        return x * x, x

    def backward(self, xp, grad, x):
        return (2.0 * x * grad,)


def absolute(outputs, targets):
    return ops.mean(ops.abs(outputs - targets))


def squared(x):
    """The rows multiplied by one another."""
    return ops.matmul(ops.transpose(x, (1, 0)), x)[0, :] + x


MIXING = [
    Sheared, ByHand, Divided, Keeping, Means, lambda: layers.Function(Square()), lambda: layers.Lambda(squared),
    lambda: layers.Lambda(lambda x: ops.softmax(x, axis=0)),
    *[lambda function=function: layers.Lambda(function) for function in COUNTING],
]  # fmt: skip


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("between", MIXING)
def test_a_layer_that_may_mix_rows_is_refused(between, numerics):
    def work(ranks):
        mlp(layers.Dense(20, 8), between(), numerics=numerics).fit(digits(), progress=False)

    with pytest.raises(OptionError, match="several processes cannot share the batch"):
        in_threads(2, work)


def test_shapes_may_begin_with_the_number_of_rows():
    def work(ranks=None):
        halves = layers.Lambda(lambda x: ops.reshape(ops.reshape(x, (x.shape[0], 2, 4)), (x.shape[0], 8)))
        parts = layers.Dense(20, 8), halves, layers.BatchNorm(8), layers.Dropout(0.2), layers.LayerNorm(8)
        trainer = mlp(*parts, numerics="exact")
        trainer.fit(digits(), progress=False)
        return weights_sha256(trainer.model)

    assert in_threads(2, work) == [work()] * 2


def test_a_loss_made_of_other_functions_is_refused():
    x = np.ones((8, 3), np.float32)

    def work(ranks):
        model = xnn.Sequential(layers.Dense(3, 1), seed=0)
        xnn.Trainer(model, absolute, optimizers.SGD(0.1), metrics=[]).fit((x, x[:, :1]), progress=False)

    with pytest.raises(OptionError, match=r"a loss of xnn\.losses|may add or mix"):
        in_threads(2, work)


def different(rank, what):
    """A fit that is another one on rank 1."""
    odd = rank == 1
    x, y = digits()
    if what == "training data" and odd:
        x[77, 3] += 1
    trainer = mlp()
    if what == "weights before training" and odd:
        trainer.model.parameters()[0].value = trainer.model.parameters()[0].value + 1.0
    if what == "model, loss" and odd:
        trainer = mlp(optimizer=optimizers.SGD(0.2))
    options = {"batch_size": 32, "epochs": 1}
    if what in options:
        options[what] += odd
    trainer.fit((x, y), progress=False, **options)


@pytest.mark.parametrize(
    "what", ["training data", "weights before training", "model, loss", "batch_size", "epochs"]
)
def test_what_differs_on_a_rank_is_named(what):
    with pytest.raises(RankError, match=f"rank 1 of 3 .* differs from rank 0 in: {what}"):
        in_threads(3, lambda ranks: different(ranks.rank, what))


def test_other_workers_are_refused():
    with pytest.raises(OptionError, match="workers must be"):
        mlp(workers="threads")
    trainer = mlp()
    trainer.workers = "threads"
    with pytest.raises(OptionError, match="workers must be"):
        trainer.fit(digits(), progress=False)


def test_a_rank_that_fails_ends_the_others():
    class Fails(callbacks.Callback):
        def __init__(self, rank):
            self._rank = rank

        def on_step(self, history, epoch, step, loss):
            if self._rank == 1 and step == 3:
                raise ZeroDivisionError("a bad row")

    with pytest.raises(ZeroDivisionError, match="a bad row"):
        in_threads(3, lambda ranks: mlp(callbacks=[Fails(ranks.rank)]).fit(digits(), progress=False))


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_a_rank_whose_program_has_ended_ends_the_others(call):
    def work(ranks):
        trainer = mlp()
        if ranks.rank == 1:
            ranks.say_end()
        else:
            getattr(trainer, call)(digits())

    with pytest.raises(RankError, match="rank 1 of 3 has ended its program"):
        in_threads(3, work)


def test_weights_that_a_callback_changes_on_one_rank_are_found():
    class Changes(callbacks.Callback):
        def __init__(self, rank):
            self._rank = rank

        def on_epoch_end(self, history, entry):
            if self._rank == 1:
                self.model.parameters()[0].value = self.model.parameters()[0].value * 2.0

    with pytest.raises(RankError, match="rank 1 of 2 has other weights than rank 0 after epoch 1"):
        in_threads(2, lambda ranks: mlp(callbacks=[Changes(ranks.rank)]).fit(digits(), progress=False))


def test_different_messages_are_an_error():
    def work(ranks):
        ranks.total(np.ones(2 + ranks.rank))

    with pytest.raises(RuntimeError, match="do not send the same message"):
        in_threads(2, work)


def test_rows_of_a_shard():
    def work(ranks):
        shard = Shard(ranks, 10)
        return shard.own.start, shard.own.stop, shard.count(4 * shard.here)

    assert in_threads(3, work) == [(0, 3, 40), (3, 6, 40), (6, 10, 40)]
    with pytest.raises(ValueError, match="rows of a sum over the batch"):
        in_threads(2, lambda ranks: Shard(ranks, 10).count(3))


def test_long_messages_are_sent_in_pieces(monkeypatch):
    monkeypatch.setattr("xnn.backends.ranks.group.PIECE", 4)
    sizes = []

    def work(ranks):
        reduce, numbers = ranks.reduce, np.arange(10.0)
        ranks.reduce = lambda part, kind: (sizes.append(part.size), reduce(part, kind))
        ranks.total(numbers)
        return numbers.tolist(), ranks.messages["sum"]

    assert in_threads(2, work) == [([2.0 * n for n in range(10)], 1)] * 2
    assert sorted(sizes) == [2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, Launch(1, 3, 1)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Launch(0, 2, 0)),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "SLURM_LOCALID": "0"}, Launch(5, 8, 1)),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "SLURM_LOCALID": "1"}, Launch(5, 8, 1)),
        ({"PMIX_RANK": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, Launch(3, 4, 1)),
        ({"PMIX_RANK": "3", "SLURM_NTASKS": "4"}, Launch(3, 4, 3)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, None),
    ],
)
def test_launchers_are_known_by_their_variables(environment, found):
    assert launched(environment) == found


def test_other_kernels_on_a_rank_are_named_in_fast_numerics():
    """NumPy's and the compiled ones round differently."""
    pytest.importorskip("numba")
    data = digits()

    def train(ranks):
        mlp(kernels=("numpy", "compiled")[ranks.rank]).fit(data, epochs=1, progress=False)

    with pytest.raises(
        RankError,
        match="some ranks compute by the kernels numpy and others by compiled",
    ):
        in_threads(2, train)


def test_threads_that_only_one_rank_measures_are_named():
    """The measurement sends messages."""
    data = digits()
    with pytest.raises(RankError, match="differs from rank 0 in: threads='auto'"):
        in_threads(2, lambda ranks: mlp(threads=("auto", 1)[ranks.rank]).fit(data, epochs=1, progress=False))


def test_auto_trains_alone_without_a_launcher_and_needs_mpi4py_with_one(monkeypatch):
    trainer = mlp(workers="auto")
    assert trainer.ranks is None
    assert in_threads(2, lambda ranks: trainer.ranks is ranks) == [True, True]
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(MissingExtraError, match="needs mpi4py"):
        mlp(workers="auto")
    with pytest.raises(MissingExtraError, match="needs mpi4py"):
        trainer.rank  # noqa: B018


def test_the_plan_says_what_adds_up():
    def train(ranks):
        trainer = mlp()
        trainer.fit(digits(), epochs=1, batch_size=32, progress=False)
        return trainer.history.plan

    for plan in in_threads(2, train):
        assert (plan["ranks"], plan["sums"]) == (2, "shared memory")
        assert plan["threads_because"].endswith("for each of 2 processes on this machine")
