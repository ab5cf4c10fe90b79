"""The documentation's site: the reference names everything public, docstrings become Markdown, guides are complete.

These tests need no Sphinx: .ci/run builds the site and checks its links.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import xnn
from xnn import errors

DOCS = Path(__file__).parents[2] / "docs"


def loaded(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = loaded("reference")


@pytest.mark.parametrize("module", reference.MODULES)
def test_every_public_name_has_an_entry(module):
    if module == "xnn.sklearn":
        pytest.importorskip("sklearn")
    if module == "xnn":  # it names all others first
        public = {name for name in xnn.__all__ if f"xnn.{name}" not in reference.MODULES}
    else:
        public = set(importlib.import_module(module).__all__) - {"updates"}  # a module
    page = reference.page(module)
    described = set(re.findall(r"^`{7}\{py:\w+\} (\w+)", page, re.MULTILINE))
    assert described == public
    assert all(f"`{name} <{module}.{name}>`" in page for name in public)


def test_every_module_of_names_has_a_page():
    modules = {f"xnn.{name}" for name in xnn.__all__ if type(getattr(xnn, name)) is type(re)}
    assert modules <= set(reference.MODULES)


def test_a_docstring_becomes_markdown():
    text = """Scale by a * b: see `losses.MSE`.

    factor, other: a number;
        default 1.
    **options: the rest.

    Source: somebody.

        >>> 1 < 2
        True

        >>> 3
        3
    """
    lines = [
        "Scale by a \\* b: see {py:obj}`losses.MSE <xnn.losses.MSE>`.",
        "`factor, other`\n: a number;\n  default 1.",
        "`**options`\n: the rest.",
        "Source: somebody.",
        "```pycon\n>>> 1 < 2\nTrue\n\n>>> 3\n3\n```",
    ]
    assert reference.markdown(text) == "\n\n".join(lines)


def test_signatures_have_no_types():
    assert reference.signature(xnn.ops.leaky_relu) == "(x, *, negative_slope=0.01)"
    assert reference.signature(xnn.layers.Dropout).startswith("(rate")


def test_the_guide_has_every_error():
    text = (DOCS / "when_training_fails.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(errors.__all__)


def test_the_front_page_leads_to_every_page():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCS.glob("*.md")} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([^)]+)\)", text)) == set()


def test_the_picture_is_that_of_the_figures():
    speed = loaded("speed")
    figures = json.loads(speed.FIGURES.read_text(encoding="utf-8"))
    assert (DOCS / "speed.svg").read_text(encoding="utf-8") == speed.picture(figures)


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    check = loaded("check")
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="#x">1</a><a href="b.html#y">2</a><a href="c.html">3</a>'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#x">4</a><a href="https://example.org/z">5</a>')
    assert check.missing(tmp_path) == (4, ["a.html: b.html#y", "a.html: c.html"])
