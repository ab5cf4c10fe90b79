"""The Python of README.md and docs/*.md runs as it stands, and the reading list is an evening's."""

import ast
import doctest
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import xnn

pytestmark = pytest.mark.filterwarnings("error::xnn.errors.ScaleWarning")

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.md"  # needs MNIST, as the README does
PAGES = [
    ROOT / "README.md",
    TOUR,
    *sorted({*(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*.md")} - {TOUR}),
]
COURSE = sorted((ROOT / "docs" / "course").glob("*.md"))  # test_course.py runs their blocks of Python


def run(path):
    """Run a page's blocks of Python one after the other; the names they leave."""
    names = {"__name__": path.name}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        if ">>> " not in block:
            exec(compile(block, path.name, "exec"), names)
    return names


def faults(text, name):
    """What the doctests of a text print when they fail."""
    said = []
    found = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_doctests_of_a_page(path):
    assert faults(path.read_text(encoding="utf-8"), path.name) == ""


def test_a_wrong_doctest_is_seen():
    assert "Expected:\n    3\nGot:\n    2" in faults(">>> 1 + 1\n3\n", "wrong")


@pytest.mark.parametrize("path", PAGES[2:], ids=lambda path: path.name)
def test_the_python_of_a_page_runs(path, tmp_path, monkeypatch):
    if path.name == "sklearn.md":
        pytest.importorskip("sklearn")
    if path.name == "images.md":
        pytest.importorskip("PIL")
    if path.name == "export.md":
        pytest.importorskip("onnx")
    if "import torch" in path.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "mlp.toml", "network.toml")
    run(path)


def test_the_adam_of_the_page_is_xnns():
    names = run(ROOT / "docs" / "extending.md")
    found = []
    for rule in (names["OwnAdam"](0.01), xnn.optimizers.Adam(0.01)):
        model = xnn.Sequential(xnn.layers.Dense(4, 2), seed=0)
        xnn.Trainer(model, xnn.losses.MSE(), rule).fit((names["x"], names["y"]), epochs=5)
        found.append(model[0].weight.value)
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert not np.allclose(
        found[0], xnn.Sequential(xnn.layers.Dense(4, 2), seed=0)[0].weight.value, rtol=1e-2
    )


@pytest.mark.data
def test_the_python_of_the_readme_and_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "README.md")
    assert (tmp_path / "digits.safetensors").exists()
    assert names["history"]["val_accuracy"][-1] > 0.96
    names = run(TOUR)
    assert names["trainer"].evaluate((names["x_test"], names["y_test"]))["top5"] > 0.9
    assert capsys.readouterr().out.count("gradients agree") == 2


def test_the_python_of_the_readme_and_the_tour_runs_on_every_backend(lib, tmp_path, monkeypatch):
    """On a few synthetic digits in the place of MNIST; nothing but the backend is changed."""
    if lib.name == "array-api-strict":
        pytest.skip("its arrays have no methods such as NumPy's and CuPy's")
    monkeypatch.chdir(tmp_path)
    parts = [part[:256] for part in xnn.data.load("synthetic")]
    monkeypatch.setattr(xnn.data, "load", lambda name: parts)
    assert run(ROOT / "README.md")["model"].backend is lib
    names = run(TOUR)
    assert names["model"].backend is lib
    assert xnn.backends.backend_of(names["slope"]) is lib


@pytest.mark.parametrize("path", [*PAGES, *COURSE], ids=lambda path: path.name)
def test_the_files_that_a_page_links_to_exist(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    generated = {"api/index.md"}  # by docs/reference.py
    assert [link for link in links if not (path.parent / link).exists() and link not in generated] == []


def lines_of(path, parts):
    """How many lines a file has, or these classes, functions and methods of it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if parts == "all":
        return len(text.splitlines())
    total = 0
    for dotted in re.findall(r"`([\w.]+)`", parts):
        within = ast.parse(text)
        for name in dotted.split("."):
            (within,) = [node for node in within.body if getattr(node, "name", None) == name]
        total += within.end_lineno - min([within.lineno, *(d.lineno for d in within.decorator_list)]) + 1
    return total


def test_the_reading_list_is_an_evenings():
    """Under 2,000 lines; the counts on the page are nearly right, so that not every edit changes them."""
    section = (
        (ROOT / "docs" / "reading.md")
        .read_text(encoding="utf-8")
        .split("## To read it in an evening", 1)[1]
        .split("\n## ", 1)[0]
    )
    rows = re.findall(r"^\| `([\w/.]+)` \| (.*?) \| (\d+) \|", section, re.MULTILINE)
    assert len(rows) > 12
    counted = [lines_of(path, parts) for path, parts, _ in rows]
    assert sum(counted) < 2000
    assert int(section.split()[0].replace(",", "")) == pytest.approx(sum(counted), rel=0.1)
    assert [int(lines) for _, _, lines in rows] == pytest.approx(counted, rel=0.25, abs=20)


def test_the_readme_is_short():
    """Two commands, a screen of Python, a table, a picture and links: the rest stands in docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert len(re.findall(r"!\[", text)) == 1
