"""Progress on standard error: a bar on a terminal, elsewhere a line an epoch. Of notebooks: test_notebook.py."""

import io
import sys

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.history import Bar, History

X = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(-1, 1)


class Stream(io.StringIO):
    """Standard error with an isatty of one's choice."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def trainer(rate=0.1):
    return xnn.Trainer(xnn.Sequential(layers.Dense(1, 1), seed=0), losses.MSE(), optimizers.SGD(rate))


def shown(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    history = trainer().fit((X, X), **{"validation": (X, X), "epochs": 3, **options})
    assert len(history.epochs) == 3
    return stream.getvalue()


def test_a_line_an_epoch_where_there_is_no_terminal(monkeypatch, capsys):
    lines = shown(monkeypatch, Stream()).splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert all("loss" in line and "val_loss" in line and "\r" not in line for line in lines)
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, Stream(terminal=True))
    assert "epoch 3/3" in text
    assert "val_loss" in text


def test_a_resumed_training_shows_its_own_epochs(monkeypatch, tmp_path):
    saver, seen = callbacks.Checkpoint(tmp_path), []
    first = trainer()
    first.callbacks = [saver]
    first.fit((X, X), epochs=2, progress=False)
    monkeypatch.setattr(Bar, "update", lambda self, epoch, steps, *_: seen.append((epoch, steps)))
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    again = trainer()
    again.resume(tmp_path)
    again.fit((X, X), epochs=4)
    assert seen == [("3/4", 6), ("4/4", 8)]


@pytest.mark.parametrize("stream", [Stream, lambda: Stream(terminal=True)])
def test_none_if_it_is_not_wanted(monkeypatch, stream):
    assert shown(monkeypatch, stream(), progress=False) == ""


def test_a_closed_or_missing_standard_error_does_not_end_a_run(monkeypatch):
    stream = Stream()
    stream.close()
    for broken in (stream, None):
        monkeypatch.setattr(sys, "stderr", broken)
        assert len(trainer().fit((X, X), epochs=2).epochs) == 2


@pytest.mark.parametrize(
    ("wanted", "made", "lines"),
    [
        (None, callbacks.ProgressBar, 3),
        (True, callbacks.ProgressBar, 6),
        (False, callbacks.ProgressBar, 3),
        (None, callbacks.EpochLines, 0),
        (True, callbacks.EpochLines, 3),
    ],
)
def test_by_default_only_what_no_callback_shows(monkeypatch, capsys, wanted, made, lines):
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    watched = trainer()
    watched.callbacks = [made()]
    watched.fit((X, X), epochs=3, progress=wanted)
    assert stream.getvalue().count("epoch ") == lines
    assert capsys.readouterr().out.count("epoch ") == (3 if made is callbacks.EpochLines else 0)


def test_anything_but_a_flag_is_refused():
    with pytest.raises(xnn.errors.OptionError, match="progress must be True or False, got 'yes'"):
        trainer().fit((X, X), progress="yes")


def test_the_command_prints_each_epoch_once(monkeypatch):
    """Standard output has the lines, where standard error is a file; with --json there are none."""
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (600, 100, 100))
    words = ("train", "--dataset", "synthetic", "--hidden", 4, "--epochs", 2, "--kernels", "numpy")
    result = run(*words)
    assert (result.exit_code, result.stdout.count("epoch 2 "), "epoch" in result.stderr) == (0, 1, False)
    result = run(*words, "--json")
    assert (result.exit_code, "epoch 2 " in result.stdout, "epoch" in result.stderr) == (0, False, False)


class TestPlot:
    history = History(
        epochs=[{"epoch": n, "loss": 1.0 / n, "val_loss": 2.0 / n, "accuracy": 0.5} for n in (1, 2, 3)]
    )

    def test_without_a_path_it_returns_the_figure(self):
        pytest.importorskip("matplotlib")
        figure = self.history.plot()
        loss, accuracy = figure.axes
        assert [axes.get_ylabel() for axes in (loss, accuracy)] == ["loss", "accuracy"]
        assert [line.get_label() for line in loss.lines] == ["training", "validation"]
        assert list(loss.lines[1].get_ydata()) == self.history["val_loss"]

    def test_with_a_path_it_saves(self, tmp_path):
        pytest.importorskip("matplotlib")
        assert self.history.plot(tmp_path / "curve.png") is None
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("path", [(), ("curve.png",)])
    def test_without_matplotlib_it_says_what_to_install(self, path, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(
            xnn.errors.MissingExtraError, match=r'plots need matplotlib: pip install "\.\[plot\]"'
        ):
            self.history.plot(*path)
        assert list(tmp_path.iterdir()) == []
