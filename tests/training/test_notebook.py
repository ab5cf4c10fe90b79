"""Progress in a notebook: one output that is replaced, with a line and curves. IPython is played by two objects."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import notebook
from xnn.callbacks.curves import curves
from xnn.errors import DivergenceError

X = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(-1, 1)


class Notebook:
    """What a cell shows: its outputs, each the list of what it has held, one after the other."""

    def __init__(self, kernel=True, broken=0):
        self.outputs, self.broken = [], broken
        self.shell = SimpleNamespace(kernel=object()) if kernel else SimpleNamespace()

    def display(self, bundle, raw, display_id):
        assert raw
        assert display_id
        return self.show(bundle, self.outputs.append([]) or self.outputs[-1])

    def show(self, bundle, output):
        if self.broken:
            self.broken -= 1
            raise ConnectionError("the notebook is gone")
        output.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: self.show(bundle, output) and None)


@pytest.fixture
def opened(monkeypatch):
    def opened(**options):
        cell = Notebook(**options)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: cell.shell))
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
        monkeypatch.setattr(notebook, "_PAUSE", 0.0)
        return cell

    return opened


def fitted(rate=0.1, x=X, **options):
    trainer = xnn.Trainer(xnn.Sequential(layers.Dense(1, 1), seed=0), losses.MSE(), optimizers.SGD(rate))
    return trainer.fit((x, x), **{"validation": (x, x), "epochs": 3, **options})


def pictures(bundle):
    """The curves of an output: of each its name and its points."""
    html = ElementTree.fromstring(bundle["text/html"])  # well formed, too
    return [
        (panel[0].text, [len(line.get("points").split()) for line in panel if line.tag.endswith("polyline")])
        for panel in html.iter("{http://www.w3.org/2000/svg}g")
    ]


def test_one_output_with_a_line_and_curves_that_grow(opened, capsys):
    cell = opened()
    history = fitted(epochs=4)
    (shown,) = cell.outputs
    assert "2/4  loss" in " ".join(bundle["text/plain"] for bundle in shown)
    assert any(re.search(r"samples/s  \d+:\d\d left$", bundle["text/plain"]) for bundle in shown)
    assert any("<progress" in bundle["text/html"] for bundle in shown[:-1])
    counts = [sum(count for _, lines in pictures(bundle) for count in lines) for bundle in shown]
    assert counts == sorted(counts)
    assert pictures(shown[-1]) == [("loss", [4, 4])]
    assert (
        shown[-1]["text/plain"]
        == f"epoch 4  loss {history['loss'][-1]:.4f}  val_loss {history['val_loss'][-1]:.4f}"
    )
    assert "<progress" not in shown[-1]["text/html"]
    assert capsys.readouterr() == ("", "")


def test_pictures_are_drawn_now_and_then_and_at_the_end(opened, monkeypatch):
    cell = opened()
    monkeypatch.setattr(notebook, "_PAUSE", 3600.0)
    fitted(epochs=50)
    (shown,) = cell.outputs
    assert len(shown) == 2
    assert pictures(shown[-1]) == [("loss", [50, 50])]


def test_no_output_if_it_is_not_wanted(opened):
    cell = opened()
    fitted(progress=False)
    assert cell.outputs == []


def test_ipython_in_a_terminal_is_no_notebook(opened, capsys):
    cell = opened(kernel=False)
    fitted()
    assert cell.outputs == []
    assert capsys.readouterr().err.count("epoch ") == 3


def test_ipython_is_not_imported_to_ask(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "IPython"]:
        monkeypatch.delitem(sys.modules, name)
    assert not notebook.in_notebook()
    assert "IPython" not in sys.modules


def test_a_notebook_that_is_gone_does_not_end_the_training(opened):
    cell = opened(broken=3)
    assert len(fitted().epochs) == 3
    assert cell.outputs[-1][-1]["text/plain"].startswith("epoch 3 ")


def test_an_error_leaves_the_curves_of_the_epochs_before_it(opened):
    cell = opened()
    with pytest.raises(DivergenceError):
        fitted(1e19, np.tile(X, (400, 1)), batch_size=8)
    assert cell.outputs == [] or "no epoch was finished" in cell.outputs[-1][-1]["text/plain"]


class TestCurves:
    def test_nothing_is_drawn_of_nothing(self):
        assert curves([]) == curves([{"epoch": 1, "loss": float("nan"), "confusion": [[1]]}]) == ""

    def test_names_are_text_and_not_markup(self):
        picture = curves([{"epoch": 1, "<b>": 0.5}])
        assert ElementTree.fromstring(picture)[0][0].text == "<b>"

    def test_a_long_training_is_no_larger_picture_and_keeps_its_peaks(self):
        epochs = [{"epoch": n, "loss": 9.0 if n == 4321 else 0.5 + 1.0 / n} for n in range(1, 10_001)]
        picture = curves(epochs)
        assert len(picture) < 20_000
        (line,) = re.findall(r'points="([^"]*)"', picture)
        heights = [float(point.split(",")[1]) for point in line.split()]
        assert min(heights) < 45 < 150 < sorted(heights)[2]

    @pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [9e299, -9e299], [1e-12, 2e-12], [1e9, 3e9]])
    def test_any_finite_numbers_are_drawn_within_the_picture(self, values):
        picture = curves([{"epoch": n, "loss": value} for n, value in enumerate(values, 1)])
        (line,) = re.findall(r'points="([^"]*)"', picture)
        places = np.array([[float(z) for z in point.split(",")] for point in line.split()])
        assert len(places) == len(values)
        assert ((places >= 0) & (places <= (300, 190))).all()
        assert 2 <= picture.count('text-anchor="end"') <= 9

    def test_the_epoch_that_is_not_over_is_the_last_point(self):
        picture = curves([{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}], {"epoch": 2.5, "loss": 0.4})
        (line,) = re.findall(r'points="([^"]*)"', picture)
        across = [float(point.split(",")[0]) for point in line.split()]
        assert np.diff(across)[1] == pytest.approx(np.diff(across)[0] / 2, abs=0.1)


@pytest.mark.slow
def test_in_a_real_notebook(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = (
        "import numpy as np, xnn\n"
        "from xnn import layers, losses, optimizers\n"
        "x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(-1, 1)\n"
        "trainer = xnn.Trainer(xnn.Sequential(layers.Dense(1, 1)), losses.MSE(), optimizers.SGD(0.1))\n"
        "trainer.fit((x, x), validation=(x, x), epochs=5).steps"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    shown, result = book.cells[0].outputs
    assert result["data"]["text/plain"] == "10"
    assert shown["data"]["text/plain"].startswith("epoch 5  loss")
    assert pictures(shown["data"]) == [("loss", [5, 5])]
