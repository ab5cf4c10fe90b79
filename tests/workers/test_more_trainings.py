"""Trainings by ranks that are out of the ordinary: divergence, data on disk, other dtypes, optimizers of yours."""

import numpy as np
import pytest
from trainings import digits, mlp, on_each, outcome

import xnn
from xnn import callbacks, data, layers, losses, optimizers
from xnn.backends import get_backend
from xnn.backends.ranks.group import current_ranks
from xnn.backends.ranks.threads import in_threads
from xnn.errors import DivergenceError


def test_a_divergence_is_that_of_one_process():
    x, y = digits()

    def train():
        model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(20, 8), layers.Dense(8, 1), seed=1)
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(40.0), numerics="exact")
        with pytest.raises(DivergenceError) as error:
            trainer.fit((x, y.reshape(-1, 1)), epochs=40, batch_size=32, progress=False)
        return str(error.value), trainer.step, trainer.history.losses_sha256

    assert on_each(3, train) == train()


def test_rows_are_read_from_files(tmp_path):
    x, y = digits()
    np.save(tmp_path / "x.npy", x)

    def train():
        given = np.load(tmp_path / "x.npy", mmap_mode="r"), y
        trainer = mlp(numerics="exact")
        return outcome(trainer, trainer.fit(given, epochs=2, progress=False), (x, y))

    assert on_each(3, train) == train()


def test_a_stream_is_shared():
    x, y = digits()

    def train():
        trainer = mlp(numerics="exact")
        stream = data.Stream(
            lambda epoch: ((x[n : n + 40], y[n : n + 40]) for n in range(0, 160, 40)), samples=160, window=80
        )
        return outcome(trainer, trainer.fit(stream, epochs=2, progress=False), (x, y))

    assert on_each(2, train) == train()


def test_double_precision():
    x, y = digits()

    def train():
        model = xnn.Sequential(
            layers.Dense(20, 8, dtype="float64"), layers.Tanh(), layers.Dense(8, 4, dtype="float64")
        )
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        return trainer.fit((x / 255, y), epochs=3, progress=False)["loss"]

    assert on_each(3, train) == pytest.approx(train(), rel=1e-12)


def test_an_optimizer_with_a_step_of_its_own_and_a_callback_that_reads_gradients():
    class Plain(optimizers.Optimizer):
        def step(self, parameters, gradients=None):
            for p in parameters:
                p.value = p.value - 0.1 * p.grad

    class Norms(callbacks.Callback):
        needs_gradients = True

        def __init__(self):
            self.found = []

        def on_step(self, history, epoch, step, loss):
            self.found.append(float(sum((p.grad**2).sum() for p in self.model.parameters())))

    def train():
        norms = Norms()
        trainer = mlp(optimizer=Plain(0.1), callbacks=[norms])
        trainer.fit(digits(), epochs=2, progress=False)
        return norms.found

    assert on_each(3, train) == pytest.approx(train(), rel=1e-4)


def test_a_callback_stops_all_ranks_by_the_word_of_rank_0():
    class Stops(callbacks.Callback):
        def __init__(self, rank):
            self._rank = rank

        def on_epoch_end(self, history, entry):
            if self._rank == 0 and entry["epoch"] == 2:
                history.stopped = "enough"

    def work(ranks):
        history = mlp(callbacks=[Stops(ranks.rank)]).fit(digits(), epochs=5, progress=False)
        return history.stopped, len(history.epochs)

    assert in_threads(3, work) == [("enough", 2)] * 3


def test_rank_0_alone_writes(tmp_path):
    log, folder = tmp_path / "log.jsonl", tmp_path / "run"

    def work(ranks):
        watchers = [callbacks.JsonLines(log), callbacks.Checkpoint(folder, every="3steps", keep=9)]
        trainer = mlp(callbacks=watchers)
        trainer.fit(digits(), epochs=2, batch_size=32, progress=False)
        trainer.save(tmp_path / f"{ranks.rank}.safetensors")

    in_threads(2, work)
    assert len(log.read_text().splitlines()) == 4
    assert [path.name for path in sorted(folder.glob("step*"))] == [
        f"step-{n:09d}.safetensors" for n in (3, 6, 9, 10)
    ]
    assert [path.name for path in tmp_path.glob("?.safetensors")] == ["0.safetensors"]


def test_the_plan_says_how_many_ranks():
    plans = in_threads(2, lambda ranks: mlp().fit(digits(), progress=False).plan)
    assert [plan["ranks"] for plan in plans] == [2, 2]
    assert "ranks" not in mlp().fit(digits(), progress=False).plan


def test_a_divergence_goes_back_on_all_ranks(tmp_path, capsys):
    class Poison(callbacks.Callback):
        """From step 8 on the learning rate is too large, until it was halved."""

        def on_step(self, history, epoch, step, loss):
            if len(history.lowered) == 0 and history.steps == 8:
                self.model.parameters()[0].value = self.model.parameters()[0].value * np.float32(np.inf)

    def train(folder):
        saver = callbacks.Checkpoint(tmp_path / folder, every="3steps", keep=9, on_nan="lower-lr")
        trainer = mlp(optimizer=optimizers.Adam(0.02), callbacks=[saver, Poison()], numerics="exact")
        history = trainer.fit(digits(), epochs=3, batch_size=32, progress=False)
        return outcome(trainer, history, digits()), history.lowered

    alone = train("alone")
    told = capsys.readouterr().err
    assert [entry["step"] for entry in alone[1]] == [6]
    assert on_each(3, lambda: train("together")) == alone
    assert capsys.readouterr().err == told
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("alone", "together")]
    assert names[0] == names[1]


def test_each_rank_looks_at_its_own_memory(monkeypatch):
    """Rank 0 has little, so that it takes steps to measure them; rank 1 has plenty and takes none."""
    data = digits()
    monkeypatch.setattr("xnn.training.room._LITTLE", 0)
    lib = get_backend("numpy")
    monkeypatch.setattr(lib, "free_memory", lambda: 2**19 if current_ranks().rank == 0 else 2**40)

    def train(ranks):
        return mlp(numerics="exact").fit(data, epochs=2, progress=False).losses_sha256

    one, other = in_threads(2, train)
    monkeypatch.undo()
    assert one == other == mlp(numerics="exact").fit(data, epochs=2, progress=False).losses_sha256


def test_threads_are_measured_together(monkeypatch):
    """Rank 0 alone would take two threads, with which rank 1 is slower."""
    monkeypatch.setattr("xnn.training.thread_choice.threads_of_rank", lambda ranks: 2)
    for module in ("training.thread_choice", "backends.threads"):  # ranks that are threads share one BLAS
        monkeypatch.setattr(f"xnn.{module}.blas_threads", lambda: 2)
    seconds = [[1.0, 0.5], [1.0, 2.0]]
    monkeypatch.setattr(
        "xnn.training.steps.Stepper.seconds_per_step", lambda self, step: seconds[current_ranks().rank].pop(0)
    )
    plans = in_threads(2, lambda ranks: mlp(threads="auto").fit(digits(), progress=False).plan)
    assert [(plan["threads"], plan["threads_because"]) for plan in plans] == [
        (1, "measured: fastest of 1, 2, for each of 2 processes on this machine")
    ] * 2
