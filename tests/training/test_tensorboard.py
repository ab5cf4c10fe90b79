"""callbacks.TensorBoard: event files that TensorBoard's own reader reads, also after a run was killed and resumed."""

import importlib.util
import os
import sys

import numpy as np
import pytest
from command_line import refused, run

import xnn
from xnn import callbacks, layers, losses, optimizers, schedules
from xnn.errors import MissingExtraError, OptionError

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="tensorboard is not installed: .ci/full installs it",
)
X = np.linspace(-1.0, 1.0, 60, dtype=np.float32).reshape(60, 1)
Y = (X[:, 0] > 0.2).astype(np.int64)
TRAIN = ("train", "--dataset", "synthetic", "--hidden", "8", "--threads", "1", "--json", "--quiet")


def build(folder, *others, rate=0.1):
    """A trainer with a TensorBoard, which is the first of its callbacks."""
    model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 2), seed=0)
    optimizer = optimizers.SGD(rate)
    watchers = [callbacks.TensorBoard(folder, optimizer), *others]
    metrics = ["accuracy", "confusion_matrix"]
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, metrics, callbacks=watchers)


def fit(trainer, epochs):
    return trainer.fit((X, Y), validation=(X[::2], Y[::2]), epochs=epochs, progress=False)


def events(folder):
    """All events of all event files in a folder, as they lie there; and how many files hold some."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = [file for file in sorted(folder.glob("*tfevents*")) if file.stat().st_size]
    return [event for file in files for event in LegacyEventFileLoader(str(file)).Load()], len(files)


def curves(folder):
    """By name, the pairs of step and number in the files."""
    found = {}
    for event in events(folder)[0]:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def expected(history, *rates):
    """The curves of a history, in float32."""
    rows = {name: history[name] for name in history.epochs[0] if name != "epoch" and "matrix" not in name}
    rows["learning_rate"] = rates
    return {name: [(n + 1, np.float32(v)) for n, v in enumerate(values)] for name, values in rows.items()}


class Shown:
    """What a TensorBoard that was started on a folder shows of it now."""

    def __init__(self, folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})

    def __call__(self):
        self.reader.Reload()
        scalars = {tag: self.reader.Scalars(tag) for tag in self.reader.Tags()["scalars"]}
        return {tag: [(event.step, event.value) for event in found] for tag, found in scalars.items()}


@needs_tensorboard
def test_the_folder_is_the_same_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    """Also where the events are written anew, as after a divergence."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Moves(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            os.chdir(tmp_path / "elsewhere")
            board.restore(board.state())

    trainer = build("logs", Moves())
    board = trainer.callbacks[0]
    history = fit(trainer, 2)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert curves(tmp_path / "logs") == expected(history, 0.1, 0.1)


class KilledError(Exception):
    """Ends a fit as a killed process does."""


class Kill(callbacks.Callback):
    bystander = True

    def on_epoch_end(self, history, entry):
        if entry["epoch"] == 3:
            raise KilledError


@needs_tensorboard
class TestFiles:
    def test_the_numbers_are_those_of_the_history(self, tmp_path):
        rate = schedules.Step(0.1, every=4, factor=0.5)
        history = fit(build(tmp_path / "logs" / "run", rate=rate), 3)
        wanted = expected(history, 0.1, 0.05, 0.05)
        assert curves(tmp_path / "logs" / "run") == wanted
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} == wanted.keys()
        assert Shown(tmp_path / "logs" / "run")() == wanted
        found, files = events(tmp_path / "logs" / "run")
        assert (found[0].file_version, files) == ("brain.Event:2", 1)
        assert [event.wall_time for event in found] == sorted(event.wall_time for event in found)

    def test_it_is_a_bystander_of_the_numbers(self, tmp_path):
        trainer = build(tmp_path)
        without = build(tmp_path)
        without.callbacks = []
        assert fit(trainer, 2).losses_sha256 == fit(without, 2).losses_sha256

    def test_numbers_that_other_callbacks_add(self, tmp_path):
        class Adds(callbacks.Callback):
            def on_epoch_end(self, history, entry):
                entry.update(
                    whole=3, half=np.float32(0.5), flag=True, text="text", huge=1e300, nothing=np.nan
                )

        trainer = build(tmp_path)
        trainer.callbacks = [Adds(), *trainer.callbacks]
        fit(trainer, 1)
        found = curves(tmp_path)
        assert (found["whole"], found["half"], found["huge"]) == ([(1, 3.0)], [(1, 0.5)], [(1, np.inf)])
        assert np.isnan(found["nothing"][0][1])
        assert not {"flag", "text", "epoch", "confusion_matrix"} & found.keys()

    def test_it_can_be_read_after_every_epoch(self, tmp_path):
        seen, show = [], Shown(tmp_path)

        class Look(callbacks.Callback):
            def on_epoch_end(self, history, entry):
                seen.append([step for step, _ in show()["loss"]])

        fit(build(tmp_path, Look()), 3)
        assert seen == [[1], [1, 2], [1, 2, 3]]


@needs_tensorboard
class TestResuming:
    @pytest.mark.parametrize("every", ["2epochs", "3steps", "1epoch"])
    def test_a_killed_run_has_no_step_twice(self, tmp_path, every):
        whole = fit(build(tmp_path / "whole"), 5)

        def trainer(*others):
            saver = callbacks.Checkpoint(tmp_path / "run", every=every)
            return build(tmp_path / "killed", saver, *others)

        with pytest.raises(KilledError):
            fit(trainer(Kill()), 5)
        show = Shown(tmp_path / "killed")  # is not started anew
        assert [step for step, _ in show()["loss"]] == [1, 2, 3]
        first = {event.step: event.wall_time for event in events(tmp_path / "killed")[0] if event.step}
        again = trainer()
        again.resume(tmp_path / "run")
        history = fit(again, 5)
        assert history.losses_sha256 == whole.losses_sha256
        wanted = expected(whole, *[0.1] * 5)
        assert curves(tmp_path / "killed") == curves(tmp_path / "whole") == wanted
        assert show() == Shown(tmp_path / "killed")() == wanted
        found, files = events(tmp_path / "killed")
        assert files == 1
        later = {event.step: event.wall_time for event in found if event.step}
        assert later[1] == first[1]

    @pytest.mark.parametrize("every", ["3steps", "1epoch", "99epochs"])
    def test_a_run_that_diverged_and_went_back_has_no_step_twice(self, tmp_path, every):
        class Poison(callbacks.Callback):
            def on_step(self, history, epoch, step, loss):
                if history.steps == 7 and trainer.optimizer.rate_factor == 1.0:
                    self.model[0].weight.value = self.model[0].weight.value * np.float32(np.nan)

            def state(self):
                return None

        saver = callbacks.Checkpoint(tmp_path / "run", every=every, on_nan="lower-lr")
        trainer = build(tmp_path / "logs", saver, Poison())
        shown = Shown(tmp_path / "logs")
        history = fit(trainer, 5)
        rates = [0.1 if 2 * epoch <= history.lowered[0]["step"] else 0.05 for epoch in range(1, 6)]
        assert curves(tmp_path / "logs") == expected(history, *rates) == shown()

    def test_the_disk_is_full_when_it_goes_back(self, tmp_path, capsys):
        trainer = build(tmp_path)
        board = trainer.callbacks[0]

        class Back(callbacks.Callback):
            def on_epoch_end(self, history, entry):
                if entry["epoch"] == 2:
                    board.folder = tmp_path / "removed"
                    board.restore(board.state()[:1])

        trainer.callbacks = [*trainer.callbacks, Back()]
        assert len(fit(trainer, 4).epochs) == 4
        said = capsys.readouterr().err
        assert said.count("removed end here (No such file or directory); training goes on") == 1

    def test_the_files_may_be_gone(self, tmp_path):
        fit(build(tmp_path / "first", callbacks.Checkpoint(tmp_path / "run")), 2)
        again = build(tmp_path / "second", callbacks.Checkpoint(tmp_path / "run"))
        again.resume(tmp_path / "run")
        history = fit(again, 4)
        assert curves(tmp_path / "second") == expected(history, *[0.1] * 4)
        assert [step for step, _ in curves(tmp_path / "first")["loss"]] == [1, 2]

    def test_killed_while_the_files_are_replaced(self, tmp_path):
        """The new file is written before the older one is emptied: then both have the epochs."""
        fit(build(tmp_path / "logs", callbacks.Checkpoint(tmp_path / "run")), 2)
        (older,) = (tmp_path / "logs").iterdir()
        (tmp_path / "logs" / "events.out.tfevents.1.xnn").write_bytes(older.read_bytes())
        again = build(tmp_path / "logs", callbacks.Checkpoint(tmp_path / "run"))
        again.resume(tmp_path / "run")
        history = fit(again, 3)
        assert Shown(tmp_path / "logs")() == curves(tmp_path / "logs") == expected(history, *[0.1] * 3)

    def test_from_a_checkpoint_between_two_fits(self, tmp_path):
        trainer = build(tmp_path / "logs")
        fit(trainer, 2)
        trainer.save(tmp_path / "two.safetensors")
        fit(trainer, 2)
        assert [step for step, _ in curves(tmp_path / "logs")["loss"]] == [1, 2, 3, 4]
        again = build(tmp_path / "logs")
        again.resume(tmp_path / "two.safetensors")
        fit(again, 1)
        assert [step for step, _ in curves(tmp_path / "logs")["loss"]] == [1, 2, 3]
        assert events(tmp_path / "logs")[1] == 1

    def test_xnn_train(self, tmp_path, monkeypatch):
        monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (600, 100, 100))
        words = ("--tensorboard", tmp_path / "logs", "--checkpoint", tmp_path / "run", "--resume")
        for epochs in (1, 3):
            assert run(*TRAIN, "--epochs", epochs, "--schedule", "cosine", *words[:2]).exit_code == 0
        before = curves(tmp_path / "logs")
        for epochs in (2, 3):
            assert run(*TRAIN, "--epochs", epochs, *words).exit_code == 0
        found = curves(tmp_path / "logs")
        assert [step for step, _ in found["val_loss"]] == [1, 2, 3]
        assert found.keys() == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
        assert [rate for _, rate in found["learning_rate"]] == [np.float32(0.1)] * 3
        assert before["learning_rate"][-1][1] < 0.01  # the cosine's


@needs_tensorboard
class TestFolder:
    def test_an_older_run_is_replaced(self, tmp_path):
        fit(build(tmp_path), 3)
        show = Shown(tmp_path)
        assert len(show()["loss"]) == 3
        for rate in (0.3, 0.2):
            history = fit(build(tmp_path, rate=rate), 2)
            assert show() == curves(tmp_path) == expected(history, rate, rate)
            assert len([*tmp_path.iterdir()]) == 2  # a TensorBoard may still be at the one before

    def test_one_callback_of_two_trainers(self, tmp_path):
        trainer, other = build(tmp_path), build(tmp_path / "unused")
        fit(trainer, 3)
        other.callbacks = trainer.callbacks
        fit(other, 1)
        assert [step for step, _ in curves(tmp_path)["loss"]] == [1]
        assert events(tmp_path)[1] == 1

    def test_event_files_of_another_program_are_not_mixed_in(self, tmp_path):
        trainer = build(tmp_path)
        other = tmp_path / "events.out.tfevents.1700000000.host.1.0"
        other.write_bytes(b"other")
        for begin in (lambda: build(tmp_path), lambda: fit(trainer, 1)):
            with pytest.raises(OptionError, match=r"event files of another program, such as events\.out"):
                begin()
        assert [*tmp_path.iterdir()] == [other]
        refused(run(*TRAIN, "--tensorboard", tmp_path, "--dataset", "none.npz"), 2, "of another program")

    def test_two_runs_do_not_write_into_one_folder(self, tmp_path):
        pytest.importorskip("fcntl")
        refusals = []

        class Another(callbacks.Callback):
            def on_epoch_end(self, history, entry):
                with pytest.raises(OptionError, match="another run is writing there") as caught:
                    fit(build(tmp_path), 1)
                refusals.append(caught)

        fit(build(tmp_path, Another()), 2)
        assert len(refusals) == 2
        assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]
        assert events(tmp_path)[1] == 1
        fit(build(tmp_path), 1)  # and now it is free

    def test_a_file_is_not_a_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OptionError, match=r"cannot write event files into .*file is a file"):
            build(tmp_path / "file" / "logs")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has this file")
    def test_a_full_disk_ends_the_curves_and_not_the_training(self, tmp_path, capsys):
        class Fill(callbacks.Callback):
            def on_epoch_end(self, history, entry):
                if entry["epoch"] == 1:
                    board._file.close()
                    board._file = open("/dev/full", "wb")  # noqa: SIM115

        trainer = build(tmp_path, Fill())
        board = trainer.callbacks[0]
        assert len(fit(trainer, 4).epochs) == 4
        said = capsys.readouterr().err
        assert (
            said.count(f"the curves in {tmp_path} end here (No space left on device); training goes on") == 1
        )
        assert [step for step, _ in curves(tmp_path)["loss"]] == [1]

    def test_its_repr(self, tmp_path):
        board = callbacks.TensorBoard(tmp_path, optimizers.SGD(0.1))
        assert repr(board) == f"TensorBoard({str(tmp_path)!r}, optimizer=SGD(learning_rate=0.1))"
        plain = callbacks.TensorBoard("logs/first")
        assert repr(plain) == "TensorBoard('logs/first')"

    def test_a_wrong_optimizer(self, tmp_path):
        with pytest.raises(OptionError, match=r"takes an optimizer or None, got 'adam'"):
            callbacks.TensorBoard(tmp_path, "adam")


def test_without_the_package(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[tensorboard\]"'):
        callbacks.TensorBoard(tmp_path / "logs")
    refused(run(*TRAIN, "--tensorboard", tmp_path / "logs", "--dataset", "none.npz"), 1, "tensorboard")
    assert not (tmp_path / "logs").exists()
