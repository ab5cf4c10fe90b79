"""Every page of the course runs and prints what it shows; its notebooks run, too."""

import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

COURSE = Path(__file__).parents[2] / "docs" / "course"
specification = importlib.util.spec_from_file_location("make_course", COURSE / "make.py")
make = importlib.util.module_from_spec(specification)
specification.loader.exec_module(make)


#: Pages that take seconds of a processor.
SLOW = ("01_perceptron", "02_numerical_gradients", "06_mnist", "07_training", "08_convolution")


def marked(path):
    """A page as a parameter: pages that load MNIST or Boston need the files, or are skipped."""
    needs_files = re.search(r'data\.load\("(mnist|boston)"', path.read_text(encoding="utf-8"))
    marks = [pytest.mark.data] if needs_files else []
    return pytest.param(
        path, id=path.stem, marks=[*marks, *([pytest.mark.slow] if path.stem in SLOW else [])]
    )


@pytest.mark.parametrize("path", [marked(path) for path in make.PAGES])
def test_a_page_prints_what_it_shows(path):
    if "matplotlib" in path.read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib")
    assert make.differences(path) == ""


@pytest.fixture
def page(tmp_path):
    """A small page of two blocks that draws nothing. What it prints is not what it shows."""
    path = tmp_path / "90_small.md"
    first, second = "```python\nx = 2\n```\n", "```python\nprint(x + 1)\n```\n\n```text\n4\n```\n"
    path.write_text(f"# A page\n\n{first}\nA line.\n\n{second}\nThe end.\n", encoding="utf-8")
    return path


def test_what_a_page_prints_takes_the_place_of_what_it_shows(page):
    assert "-4\n+3\n" in make.differences(page)
    text = make.made(page, page.parent)
    page.write_text(text, encoding="utf-8")
    assert make.differences(page) == ""
    assert "print(x + 1)\n```\n\n```text\n3\n```\n\nThe end." in text


def test_an_output_is_added_and_removed(page):
    code, shown = "```python\nprint(x + 1)\n```\n", "\n```text\n4\n```\n"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(shown, ""), encoding="utf-8")
    assert "```text\n3\n" in make.made(page, page.parent)
    page.write_text(text.replace(code, "```python\nx + 1\n```\n"), encoding="utf-8")
    assert "```text" not in make.made(page, page.parent)


def test_a_figure_without_a_link_and_a_link_without_a_figure_are_errors(page):
    text = page.read_text(encoding="utf-8")
    page.write_text(text + "\n![A curve.](figures/90_curve.svg)\n", encoding="utf-8")
    with pytest.raises(make.CourseError, match=r"links to the figures \['figures/90_curve.svg'\]"):
        make.made(page, page.parent)
    page.write_text(text + "\n```python\nopen('figures/90_other.svg', 'w').close()\n```\n", encoding="utf-8")
    with pytest.raises(make.CourseError, match=r"there are \['figures/90_other.svg'\]"):
        make.made(page, page.parent)


def test_a_notebook_has_the_pages_code_and_prints_the_same(tmp_path, monkeypatch):
    path = COURSE / "05_autograd.md"
    make.write_notebooks([path], tmp_path)
    book = make.json.loads((tmp_path / "05_autograd.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names, shown = {"__name__": "notebook"}, 0
    monkeypatch.chdir(tmp_path)
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec("".join(cell["source"]), names)
            outputs = cell["outputs"]
            assert out.getvalue() == "".join("".join(output["text"]) for output in outputs)
            shown += bool(outputs)
    assert shown > 3
    nbformat = sys.modules.get("nbformat") or (
        importlib.util.find_spec("nbformat") and __import__("nbformat")
    )
    if nbformat:  # where it is installed, it checks the format
        nbformat.validate(nbformat.from_dict(book))
