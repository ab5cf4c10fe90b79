"""The examples in docstrings, the README and the docs run as they stand and print what they say."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from test_house import modules

ROOT = Path(__file__).parent.parent
WITH_EXAMPLES = [name for name, path in modules().items() if ">>> " in path.read_text(encoding="utf-8")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def faults(test):
    """What a doctest prints when it fails; nothing if it passes."""
    said = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(name, monkeypatch, tmp_path):
    """Each begins with no names at all, so that it can be copied out as it is."""
    monkeypatch.chdir(tmp_path)
    tests = [
        test
        for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
        if test.examples
    ]
    assert tests, (
        "no docstring has the examples: are they in a comment, or of something private to a function?"
    )
    for test in tests:
        test.globs = {"__name__": "__main__"}
        assert faults(test) == ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages(path, monkeypatch, tmp_path):
    """What is written with >>> in a page; its blocks of Python are run by tests/examples."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    found = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    assert faults(found) == ""
    assert re.findall(r"^\s*>>>(?! )", text, re.MULTILINE) == []


def test_a_wrong_example_is_seen():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", "wrong", 0)
    assert "Expected:\n    3\nGot:\n    2" in faults(wrong)
