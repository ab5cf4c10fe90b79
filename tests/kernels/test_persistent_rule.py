"""When the persistent kernel is used: the switch, and the rule from shapes and compute capability."""

import itertools

import pytest

from xnn.backends.kernels.cuda.persistent_rule import Cluster, choose, is_on, shared_bytes
from xnn.errors import OptionError

ARTICLE = [784, 100, 200, 10]
KB = 1024


@pytest.mark.parametrize(
    ("widths", "rows", "states", "capability", "expected"),
    [
        (ARTICLE, 32, 0, (9, 0), 16),
        (ARTICLE, 32, 2, (9, 0), 16),
        (ARTICLE, 128, 1, (9, 0), 16),
        (ARTICLE, 128, 2, (9, 0), "235 KB"),
        (ARTICLE, 1, 3, (10, 0), 16),
        ([784, 10], 128, 2, (9, 0), 16),
        ([4, 3], 1, 0, (12, 0), 8),
        (ARTICLE, 32, 0, (12, 0), "100 KB of shared memory a block, and there are 99 KB"),
        (ARTICLE, 129, 0, (9, 0), "129 rows, and the most is 128"),
        (ARTICLE, 32, 0, (8, 9), "8.9, and clusters need 9.0"),
        (ARTICLE, 32, 0, (7, 5), "7.5, and clusters need 9.0"),
        ([784, 1000, 500, 10], 128, 0, (9, 0), "KB of shared memory a block, and there are 227 KB"),
        ([784, 300, 300, 10], 32, 2, (9, 0), "KB of shared memory a block"),
        ([5] * 9, 32, 0, (9, 0), 16),
        ([5] * 10, 32, 0, (9, 0), "9 layers, and the most is 8"),
    ],
)  # fmt: skip
def test_the_rule(widths, rows, states, capability, expected):
    found = choose(widths, rows, states, capability)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
        return
    assert isinstance(found, Cluster)
    assert (found.blocks, found.rows) == (expected, rows)
    assert found.threads % 32 == 0
    assert found.shared == shared_bytes(widths, rows, states, expected) <= 227 * KB


@pytest.mark.parametrize("states", range(4))
def test_all_weights_fit_into_the_cluster(states):
    """The bytes are at least those of weights and state, and grow by them for each array of state."""
    weights = sum(4 * (a * b + b) for a, b in itertools.pairwise(ARTICLE))
    here, more = (shared_bytes(ARTICLE, 32, n, 16) for n in (states, states + 1))
    assert 16 * here > (1 + states) * weights
    assert weights < 16 * (more - here) < 1.2 * weights


@pytest.mark.parametrize(
    ("text", "on"), [(None, False), ("", False), ("0", False), ("1", True), (" 1 ", True)]
)
def test_the_switch(monkeypatch, text, on):
    if text is not None:
        monkeypatch.setenv("XNN_PERSISTENT", text)
    assert is_on() is on


@pytest.mark.parametrize("text", ["2", "on", "true", "-1"])
def test_another_value_of_the_switch_is_an_error(monkeypatch, text):
    monkeypatch.setenv("XNN_PERSISTENT", text)
    with pytest.raises(OptionError, match=f"XNN_PERSISTENT={text!r} is not 0 or 1"):
        is_on()
