"""`xnn export`: a saved model as a file that other programs run."""

from __future__ import annotations

from typing import Any

import click

from xnn.backends import backend as use_backend
from xnn.cli.model_notes import read_notes
from xnn.cli.options import FILE, widths
from xnn.cli.outputs import check_apart
from xnn.errors import OptionError
from xnn.exchange.c_file import C_SUFFIXES, to_c
from xnn.exchange.onnx_graph import ONNX_SUFFIXES, to_onnx
from xnn.exchange.torch_script import TORCH_SUFFIXES, to_torch, weights_beside
from xnn.files import check_writable
from xnn.layers import files
from xnn.layers.sequential import known_shape
from xnn.layers.sequential import load as load_model

__all__ = ["command", "export_command"]


# Not a docstring: `python -OO` removes those.
_HELP = """\
Write a trained model in a format that other programs run.

MODEL is a file that `xnn train --save` or model.save wrote. OUT is an .onnx file; its metadata hold the names of
the classes and columns. --c and --torch write other formats, with or without OUT. What is written takes samples
as the model was trained on them: scaling is inside, and so are the units of a regression's targets. Old files
are replaced.

\b
xnn export digits.safetensors digits.onnx
xnn export lenet.safetensors lenet.onnx --input-shape 1,28,28
xnn export digits.safetensors --c digits.c
xnn export digits.safetensors --torch digits.py
"""


@click.command("export", help=_HELP)
@click.argument("model", type=FILE)
@click.argument("out", type=FILE, required=False)
@click.option(
    "--c", "c_file", type=FILE, metavar="FILE", help="Write one C99 file of a network of dense layers."
)
@click.option(
    "--torch",
    "script",
    type=FILE,
    metavar="FILE",
    help="Write a Python script of torch.nn, and beside it its weights: NAME_weights.safetensors.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="With --c: what the name of the function begins with, as in NAME_predict. Default: the file's name.",
)
@click.option(
    "--input-shape",
    default="",
    callback=widths,
    metavar="N,N,...",
    help="The shape of one sample. Default: what the model or its notes say.",
)
def command(**options: Any) -> None:
    """The command `xnn export`; its help is _HELP."""
    with use_backend("numpy"):
        export_command(**options)


def export_command(
    model: str,
    out: str | None = None,
    c_file: str | None = None,
    script: str | None = None,
    name: str | None = None,
    input_shape: tuple[int, ...] = (),
) -> None:
    """Read the model and write the files.

    Raises OptionError for options that do not fit together, and for a file that cannot be written: before any is.
    """
    outputs = {"OUT": out, "--c": c_file, "--torch": script}
    if not any(outputs.values()):
        raise OptionError("nothing is to be written: name an .onnx file, --c FILE or --torch FILE")
    if name is not None and c_file is None:
        raise OptionError(f"--name {name} is for the function of a C file: add --c FILE, or omit it")
    for (option, path), suffixes in zip(
        outputs.items(), (ONNX_SUFFIXES, C_SUFFIXES, TORCH_SUFFIXES), strict=True
    ):
        if path:
            check_writable(path, suffixes)
            if option == "--torch":
                outputs = {**outputs, "the weights of --torch": str(weights_beside(path))}
    check_apart(outputs, {"MODEL": model})
    net, notes = load_model(model), read_notes(model)
    shape: tuple[int, ...] | None = input_shape or known_shape(net)
    if shape is None and notes.features:
        shape = (notes.features,)
    if c_file:  # first, since it takes the fewest layers
        to_c(net, c_file, name, shape)
    if out:
        to_onnx(net, out, shape, files.metadata(model)["notes"])
    if script:
        to_torch(net, script, shape)
