"""Networks as TOML files: whatever is wrong with a file is an error that names the line."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_texts import DENSE, FULL, layer

from xnn.errors import DataNotFoundError, OptionError, ShapeError, XnnError
from xnn.runs import architecture
from xnn.runs.architecture import Architecture

WRONG = [
    # not TOML
    (b"[[layers]]\ntype = Dense\n", 2, "not TOML"),
    (b"[[layers]]\r\n\r\ntype = 'a\r\n", 4, "not TOML: Expected \"'\" at the end of the file"),
    (b"[[layers]]\ntype = \"a\"\ntype = \"b\"\n", 3, "not TOML"),
    (b"[[layers\n", 1, "not TOML"),
    (b"[layers]\ntype = 'a'\n[layers]\n", 3, "each layer begins with [[layers]], in two brackets"),
    (b"[[layers]]\nx = [1, 2\n\n", 4, "not TOML"),
    (b"[[layers]]\nx = \"\"\"\n", 3, "not TOML"),
    (b"[[layers]]\ntype = \"\xff\"\n", 2, "byte 0xff is not UTF-8"),
    (b"\n\n\xff\xfe[\x00", 3, "not UTF-8"),
    (b"\xef\xbb\xbf\n\xe9", 2, "byte 0xe9 is not UTF-8"),
    # no layers
    (b"", None, "has no layers"),
    (b"# nothing\n", None, "has no layers"),
    (b"layers = []", None, "has no layers"),
    (b"\n[layers]\ntype = 'Dense'", 2, "[[layers]], in two brackets"),
    (b"\nlayers = 3", 2, "must be tables"),
    (b"\nlayers = [\n1]", 2, "must be tables"),
    (DENSE + "\n[optimizer]\nlr = 1", 5, "optimizer has no meaning here"),
    ("outputs = 3\n" + DENSE, 1, "arguments of a layer stand below"),
    # no such layer
    ("[[layers]]\n\n[[layers]]", 1, "the layer has no type"),
    (layer("Relu"), 2, "there is no layer 'Relu': write type = \"NAME\", one of Add, Affine, "),
    (layer("Layer"), 2, "no layer 'Layer'"),
    (layer("Parameter"), 2, "no layer"),
    (layer("_Named"), 2, "no layer"),
    ("[[layers]]\ntype = 3", 2, "no layer 3"),
    ("[[layers]]\ntype = ['Dense']", 2, "no layer ['Dense']"),
    # arguments
    (layer("Dense", "units = 3"), 3, "Dense has no argument units: it takes inputs, outputs, bias, weight_init"),
    (layer("Dense", "outputs = 3", "seed = 4"), 4, "no argument seed"),
    (layer("ReLU", "", "slope = 3"), 4, "ReLU has no argument slope: it takes none"),
    (layer("ReLU", "parameters = 3"), 3, "no argument parameters"),
    ("\n" + layer("Dense", "bias = true"), 2, "Dense needs outputs: it takes inputs, outputs"),
    (layer("Rescale"), 1, "needs scale"),
    (layer("Function"), 1, "needs op"),
    # values
    (layer("Dense", "outputs = 0"), 1, "outputs must be a positive integer, got 0"),
    (layer("Dense", "outputs = -5"), 1, "outputs must be a positive integer, got -5"),
    (layer("Dense", "outputs = 1.5"), 3, "Dense: outputs must be a whole number, got 1.5"),
    (layer("Dense", "outputs = '3'"), 3, "whole number, got '3'"),
    (layer("Dense", "outputs = true"), 3, "whole number, got True"),
    (layer("Dense", "outputs = [3]"), 3, "whole number, got [3]"),
    (layer("Dense", "outputs = {a = 3}"), 3, "cannot be {'a': 3}"),
    (layer("Dense", "outputs = 1979-05-27"), 3, "cannot be datetime.date"),
    (layer("Dense", "outputs = 'Classes'"), 3, "whole number, got 'Classes'"),
    (layer("Dense", "outputs = 100000000000000000000000000000000"), 1, "is too large for memory"),
    (layer("Dense", "outputs = 3", "bias = 'no'"), 4, "bias must be true or false, got 'no'"),
    (layer("Dense", "outputs = 3", "bias = 1"), 4, "true or false, got 1"),
    (layer("Dense", "outputs = 3", "dtype = 'float16'"), 1, "dtype must be 'float32' or 'float64'"),
    (layer("Dense", "outputs = 3", "dtype = 32"), 4, "text in quotes, got 32"),
    (layer("Dropout", "rate = 1.5"), 1, "in [0, 1), got 1.5"),
    (layer("Dropout", "rate = nan"), 3, "must be finite, got nan"),
    (layer("Dropout", "rate = 'high'"), 3, "rate must be a number, got 'high'"),
    (layer("Dropout", "rate = 'classes'"), 3, "rate must be a number, got 'classes'"),
    (layer("Rescale", "scale = [1, inf]"), 3, "must be finite, got inf"),
    (layer("Rescale", "scale = [[1, 2], [3]]"), 1, "Rescale: Rescale needs finite numbers"),
    (layer("Rescale", "scale = 'one'"), 1, "Rescale: Rescale needs finite numbers"),
    (layer("Rescale", "scale = 1" + 400 * "0"), 1, "Rescale"),
    (layer("Rescale", "scale = [{type = 'He'}]"), 3, "cannot be {'type': 'He'}"),
    # initializers
    (layer("Dense", "outputs = 3", "weight_init = 'He'"), 4, 'must be a table such as {type = "He"}, got \'He\''),
    (layer("Dense", "outputs = 3", "weight_init = {}"), 4, "the initializer has no type"),
    (layer("Dense", "outputs = 3", "weight_init = {type = 'Dense'}"), 4, "no initializer 'Dense'"),
    (layer("Dense", "outputs = 3", "weight_init = {type = 'Initializer'}"), 4, "no initializer 'Initializer'"),
    (layer("Dense", "outputs = 3", "weight_init = {type = 'Zeros', std = 1}"), 4, "Zeros has no argument std"),
    (
        layer("Dense", "outputs = 3", "[layers.weight_init]", "type = 'He'", "distribution = 'flat'"), 4,
        "He: distribution must be",
    ),
    (layer("Dense", "outputs = 3", "weight_init = {type = 'Normal', std = -1}"), 4, "Normal"),
    (layer("Dense", "outputs = 3", "weight_init = {type = 'Normal', std = '1'}"), 4, "std must be a number"),
    # functions
    (layer("Function", "op = 'sin_of_all'"), 3, "op must be one of "),
    (layer("Function", "op = 'mul'"), 3, "got 'mul'"),
    (layer("Function", "op = 3"), 3, "got 3"),
    # layers inside
    (layer("Sequential", "layers = 3"), 3, "layers.layers must be tables"),
    (layer("Sequential", "layers = {type = 'ReLU'}"), 3, "must be tables"),
    (layer("Sequential", "layers = [", "{type = 'ReLU'},", "{type = 'ReLu'}]"), 5, "no layer 'ReLu'"),
    (layer("Sequential", "[[layers.layers]]", "", "type = 'Tan'"), 5, "no layer 'Tan'"),
    (layer("Sequential", "[[layers.layers]]", "type = 'Dropout'", "rate = 7"), 3, "Dropout: rate must be"),
    (layer("Sequential", "seed = 3"), 3, "it takes layers"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), WRONG, ids=range(len(WRONG)))
def test_an_error_names_the_line(read, text, line, message):
    with pytest.raises(OptionError) as caught:
        read(text).build((6,), 3)
    place, _, said = str(caught.value).partition("net.toml")[2].partition(" ")
    assert place == ("" if line is None else f":{line}:")
    assert message in said
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (DENSE + layer("Dense", "inputs = 4", "outputs = 2"), 4, "samples of shape (3,): the last axis must be 4"),
        (layer("Dense", "outputs = 4") + layer("Sequential", "layers = [{type = 'ReLU'},", "{type = 'Dense',"
         " inputs = 5, outputs = 1}]"), 7, "samples of shape (4,)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(read, text, line, message):
    with pytest.raises(ShapeError) as caught:
        read(text).build((6,), 3)
    assert f"net.toml:{line}: " in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for path, message in (
        (tmp_path / "nosuch.toml", "No such file"),
        (tmp_path, "directory"),
        ("a\0b", "null"),
    ):
        with pytest.raises(DataNotFoundError, match=message):
            architecture.read(path)


@pytest.mark.parametrize(
    "key",
    [
        "a." * 500_000,
        '"a".' * 250_000,
        "'a'.'b'." * 100_000,
        '"\\"".' * 200_000,
        ('"' + 150 * "a" + '".') * 6000,
        "a . " * 200,
    ],
    ids=["bare", "quoted", "single", "escaped", "long", "spaced"],
)
@pytest.mark.parametrize("form", ["{}a = 1", "[{}a]", "[[{}a]]", "[a]\nb = {{{}a = 1}}"])
def test_keys_with_many_dots_are_refused_before_they_are_read(tmp_path, key, form):
    """Half a million dots took 25 s and 2.3 GB."""
    path = tmp_path / "net.toml"
    path.write_text(form.format(key))
    tracemalloc.start()
    try:
        with pytest.raises(OptionError, match=r"net\.toml:[12]: keys are nested too deeply"):
            architecture.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_numbers_and_comments_may_have_many_dots(tmp_path):
    path = tmp_path / "net.toml"
    numbers = ",".join(["0.5"] * 500)
    path.write_text(f'# {"." * 500}\n[[layers]]\ntype = "Rescale"\nscale = [{numbers}] # 1.2.3\n')
    assert architecture.read(path).build((500,), 2).output_shape((500,)) == (500,)


@pytest.mark.parametrize(
    "lines",
    [
        'type="Rescale"\nscale=[]',
        'type="Rescale"\nscale=1' + "0" * 400,
        'type="Dropout"\nrate=1' + "0" * 400,
        'type="Dense"\noutputs=1' + "0" * 4200,
        'type="Dense"\noutputs=1' + "0" * 5000,
        'type="Softmax"\naxis=99999999999999999999',
        'type="Identity"\nbuffers=[1]',
        'type="Embedding"\nnum_embeddings=1099511627776\nembedding_dim=1099511627776',
        'type="Reshape"\nshape=[99999999999999999999]',
        'type="Conv2D"\nout_channels=4\nkernel_size=99999999999999999999',
    ],
)  # fmt: skip
def test_numbers_that_no_machine_holds(tmp_path, lines):
    path = tmp_path / "net.toml"
    path.write_text(f"[[layers]]\n{lines}\n")
    with pytest.raises((OptionError, ShapeError), match=r"net\.toml"):
        architecture.read(path).build((3,), 2)


def test_files_that_are_too_large_or_too_deep(read):
    with pytest.raises(OptionError, match=r"larger than 1,048,576 bytes"):
        read("#" * 2**21)
    deep = 50_000
    with pytest.raises(OptionError, match="deeply"):
        read("layers = " + "[" * deep + "]" * deep)
    with pytest.raises(OptionError, match="not TOML"):
        read("layers = 1" + "0" * 5000)
    inside = {"type": "ReLU"}
    for _ in range(deep):
        inside = {"type": "Sequential", "layers": [inside]}
    with pytest.raises(OptionError, match="deeply"):
        Architecture([inside])


def test_without_lines_the_place_is_a_path():
    """The layers of a record have no lines."""
    tables = [
        {"type": "ReLU"},
        {"type": "Sequential", "layers": [{"type": "Dense", "outputs": 3, "bias": 0}]},
    ]
    with pytest.raises(OptionError, match=r"^model.layers\[1\].layers\[0\].bias: Dense: bias must be true"):
        Architecture(tables)
    tables[1]["layers"][0] = {"type": "Dense", "inputs": 5, "outputs": 3}
    with pytest.raises(ShapeError, match=r"^model.layers\[1\].layers\[0\]: Dense\(5, 3\)"):
        Architecture(tables).build((4,), 2)


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whatever_is_in_a_file_is_built_or_refused(tmp_path_factory, seed, changes):
    """The full example, with characters lost, doubled and exchanged."""
    draw = random.Random(seed)
    text = list(FULL)
    for _ in range(changes):
        place = draw.randrange(len(text))
        text[place : place + draw.randrange(3)] = draw.choice(
            ["", "[", "]", "=", '"', "\n", "0", "a", "#", "{", "."]
        )
    path = tmp_path_factory.getbasetemp() / "drawn.toml"
    path.write_text("".join(text))
    with contextlib.suppress(XnnError):
        architecture.read(path).build((6,), 3)
