"""Lines of TOML values, for texts written by hand, and for random texts whose lines are noted as they are drawn."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnn.runs.toml_lines import lines_of


def paths_of(value, path=()):
    """The paths of all values that tomllib read."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


def lines(text):
    """Check that exactly the paths of tomllib have lines."""
    found = lines_of(text)
    assert set(found) == set(paths_of(tomllib.loads(text)))
    return found


HARD = '''# a comment with [[layers]] and "quotes"
title = "a # [x] = {"   # [[no]]

[[layers]]  # 4
type = "Dense"
outputs = 10
weight_init = {type = "He", distribution = "uniform"}

[[layers]]  # 9
type = """
[[layers]]
x = 1 \\""" ""
"""""
note = \'\'\'
]] \' \'\' \'\'\'
other = 'C:\\' # a literal string ends here
values = [  # 17
  1, [2,
  3],
  {a = 1, b = [
    4]},   # 21
  1979-05-27 07:32:00, "]",

]
[layers.bias_init]   # 25
type = "Zeros"

[[layers]]
type="Sequential"
[[layers.layers]]
"type" = "ReLU"
[[layers.layers]]
weight_init . "ty\\u0070e" . 'k' = "a"
weight_init.b = -1.5e3
[[ layers . "layers" ]]
[other-table.x]
y = true
'''


@pytest.mark.parametrize("text", [HARD, HARD.replace("\n", "\r\n"), "\n\n" + HARD])
def test_a_hard_text(text):
    first = 2 if text[0] == "\n" else 0
    expected = {
        ("title",): 2,
        ("layers",): 4,
        ("layers", 0): 4,
        ("layers", 0, "type"): 5,
        ("layers", 0, "outputs"): 6,
        ("layers", 0, "weight_init"): 7,
        ("layers", 0, "weight_init", "distribution"): 7,
        ("layers", 1): 9,
        ("layers", 1, "type"): 10,
        ("layers", 1, "note"): 14,
        ("layers", 1, "other"): 16,
        ("layers", 1, "values"): 17,
        ("layers", 1, "values", 0): 18,
        ("layers", 1, "values", 1): 18,
        ("layers", 1, "values", 1, 1): 19,
        ("layers", 1, "values", 2): 20,
        ("layers", 1, "values", 2, "b", 0): 21,
        ("layers", 1, "values", 3): 22,
        ("layers", 1, "values", 4): 22,
        ("layers", 1, "bias_init"): 25,
        ("layers", 1, "bias_init", "type"): 26,
        ("layers", 2): 28,
        ("layers", 2, "layers"): 30,
        ("layers", 2, "layers", 0): 30,
        ("layers", 2, "layers", 0, "type"): 31,
        ("layers", 2, "layers", 1, "weight_init", "type", "k"): 33,
        ("layers", 2, "layers", 1, "weight_init", "b"): 34,
        ("layers", 2, "layers", 2): 35,
        ("other-table",): 36,
        ("other-table", "x", "y"): 37,
    }
    found = lines(text)
    assert {path: found[path] - first for path in expected} == expected


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a comment", "a=1", "a=[]", "a={}", 'a="""\n"""', "[a]\n[b]"]
)
def test_small_texts(text):
    lines(text)


STRINGS = st.sampled_from(
    [
        '""',
        "''",
        '"]"',
        "'}'",
        '"a # b"',
        "'\"'",
        '"\\""',
        '"""\n[[x]]\n"""',
        "'''\n'''",
        '"""a"" """',
        '"""a"""""',
    ]
)
PLAIN = st.one_of(
    st.sampled_from(["1", "-2.5", "true", "1e5", "inf", "07:32:00", "1979-05-27 07:32:00Z"]), STRINGS
)


@st.composite
def texts(draw):
    """Draw a TOML text, and note the line of each key while writing it."""
    written, noted = "", {}

    def write(part):
        nonlocal written
        written += part

    def line():
        return written.count("\n") + 1

    def blank():
        write(draw(st.sampled_from(["", "", " ", "\n", '  # ]] } = "\n', "\t"])))

    def value(path, depth=0, inline=False):
        kind = draw(st.sampled_from(["plain", "array", "table"] if depth < 3 else ["plain"]))
        if kind == "array":
            write("[")
            for position in range(draw(st.integers(0, 3))):
                if position:
                    write(",")
                if not inline:
                    blank()
                noted[(*path, position)] = line()
                value((*path, position), depth + 1, inline)
            write("]")
        elif kind == "table":
            write("{")
            for position in range(draw(st.integers(0, 2))):
                write(", " if position else " ")
                pair(path, position, depth + 1)
            write("}")
        else:
            text = draw(PLAIN)
            write("''" if inline and "\n" in text else text)

    def pair(path, number, depth=0):
        key = f"k{number}"
        noted[(*path, key)] = line()
        write(draw(st.sampled_from([key, f'"{key}"', f"'{key}'"])) + draw(st.sampled_from(["=", " = "])))
        value((*path, key), depth, inline=depth > 0)

    for count in range(draw(st.integers(0, 4))):
        blank()
        written and write("\n")
        noted.setdefault(("layers",), line())
        noted[("layers", count)] = line()
        write(draw(st.sampled_from(["[[layers]]", "[[ 'layers' ]]", '[["layers"]] # [[x]]'])) + "\n")
        for number in range(draw(st.integers(0, 3))):
            pair(("layers", count), number)
            write("\n")
    return written, noted


@settings(max_examples=300)
@given(texts())
def test_drawn_texts(drawn):
    text, noted = drawn
    assert lines(text) == noted
    assert lines(text.replace("\n", "\r\n")) == noted


def test_a_long_text_is_read_in_linear_time():
    """A megabyte of quotes and backslashes is read to the end."""
    text = 'a = """' + '\\"" \\\\ ' * 120_000 + '"""\n' + "[[b]]\n" * 10_000
    assert lines_of(text)[("b", 9_999)] == 10_001
