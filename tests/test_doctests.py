"""Runs the examples in the docstrings of all modules."""

import doctest
import importlib

import pytest
from import_graph import MODULES, extra_missing, modules

WITH_EXAMPLES = [name for name in MODULES if ">>> " in modules()[name].read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module(name):
    if extra_missing(name):
        pytest.skip("needs scikit-learn")
    if name == "xnn.data.digit_photos":
        pytest.importorskip("PIL")
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert found, f"{name}: its examples stand in no docstring"
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in found:  # as in a file of the user's: a layer defined in an example is none of xnn's own
        test.globs["__name__"] = "__main__"
    failed = sum(runner.run(test, out=report.append, clear_globs=True).failed for test in found)
    assert failed == 0, "".join(report)
