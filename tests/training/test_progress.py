"""Progress on standard error: a bar on a terminal, a line that changes in Jupyter, a line an epoch elsewhere."""

import io
import sys

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import DivergenceError
from xnn.history import Bar, History, LiveLine

X = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(-1, 1)


class Stream(io.StringIO):
    """Standard error with an isatty of one's choice."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class Jupyters(Stream):
    """Standard error in Jupyter, as xnn tells it: by the module of its class."""


Jupyters.__module__ = "ipykernel.iostream"


def trainer(rate=0.1):
    return xnn.Trainer(xnn.Sequential(layers.Dense(1, 1), seed=0), losses.MSE(), optimizers.SGD(rate))


def shown(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    history = trainer().fit((X, X), **{"validation": (X, X), "epochs": 3, **options})
    assert len(history.epochs) == 3
    return stream.getvalue()


def on_screen(text):
    """The lines that are left after each carriage return has gone back to the start of its line."""
    lines = []
    for line in text.split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_a_line_an_epoch_where_there_is_no_terminal(monkeypatch, capsys):
    lines = shown(monkeypatch, Stream()).splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert all("loss" in line and "val_loss" in line and "\r" not in line for line in lines)
    assert capsys.readouterr().out == ""


def test_a_line_that_changes_in_jupyter(monkeypatch):
    assert "ipykernel" not in sys.modules
    text = shown(monkeypatch, Jupyters())
    assert "ipykernel" not in sys.modules
    assert "epoch 2/3  loss" in text
    assert "samples/s" in text
    lines = on_screen(text)
    assert [line.split()[:2] for line in lines[:3]] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert lines[3:] == [""]
    assert not any("samples/s" in line for line in lines)  # what is longer is wiped


def test_an_error_does_not_leave_half_a_line_in_jupyter(monkeypatch):
    stream = Jupyters()
    monkeypatch.setattr(sys, "stderr", stream)
    x = np.tile(X, (400, 1))  # some checks, before it diverges
    with pytest.raises(DivergenceError):
        trainer(1e19).fit((x, x), epochs=3, batch_size=8)
    assert stream.getvalue() == "" or stream.getvalue().endswith("\n")


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, Stream(terminal=True))
    assert "epoch 3/3" in text
    assert "val_loss" in text


@pytest.mark.parametrize("stream", [Jupyters, lambda: Stream(terminal=True)])
def test_a_resumed_training_shows_its_own_epochs(monkeypatch, tmp_path, stream):
    saver, seen = callbacks.Checkpoint(tmp_path), []
    first = trainer()
    first.callbacks = [saver]
    first.fit((X, X), epochs=2, progress=False)
    for shows in (Bar, LiveLine):
        monkeypatch.setattr(shows, "update", lambda self, epoch, steps, numbers: seen.append((epoch, steps)))
    monkeypatch.setattr(sys, "stderr", stream())
    again = trainer()
    again.resume(tmp_path)
    again.fit((X, X), epochs=4)
    assert seen == [("3/4", 6), ("4/4", 8)]


@pytest.mark.parametrize("stream", [Stream, Jupyters, lambda: Stream(terminal=True)])
def test_none_if_it_is_not_wanted(monkeypatch, stream):
    assert shown(monkeypatch, stream(), progress=False) == ""


@pytest.mark.parametrize("kind", [Stream, Jupyters])
def test_a_closed_or_missing_standard_error_does_not_end_a_run(monkeypatch, kind):
    stream = kind()
    stream.close()
    for broken in (stream, None):
        monkeypatch.setattr(sys, "stderr", broken)
        assert len(trainer().fit((X, X), epochs=2).epochs) == 2


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
