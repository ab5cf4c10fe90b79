"""`xnn import`: a network of another program as a model file. A file of Python cannot be called `import`."""

from __future__ import annotations

import click

from xnn.backends import backend as use_backend
from xnn.cli.model_notes import unfit
from xnn.cli.options import FILE
from xnn.cli.outputs import check_apart
from xnn.cli.surroundings import say
from xnn.exchange.from_onnx import read_onnx
from xnn.files import check_writable
from xnn.layers import files

__all__ = ["command", "import_command"]


# Not a docstring: `python -OO` removes those.
_HELP = """\
Make a model file of an ONNX network.

NETWORK is an .onnx file: a chain of layers, with branches that are added or joined. OUT is the .safetensors file,
which `xnn predict` and xnn.load read. An operator for which xnn has no layer is named, and nothing is written.
An old file is replaced.

\b
xnn import net.onnx net.safetensors
"""


@click.command("import", help=_HELP)
@click.argument("network", type=FILE)
@click.argument("out", type=FILE)
def command(network: str, out: str) -> None:
    """The command `xnn import`; its help is _HELP."""
    with use_backend("numpy"):
        import_command(network, out)


def import_command(network: str, out: str) -> None:
    """Read the network, write the model, and print its layers."""
    check_writable(out, (".safetensors",))
    check_apart({"OUT": out}, {"NETWORK": network})
    model, notes = read_onnx(network)
    strange = unfit(notes)  # another program's metadata, under the same names
    files.save(model, out, {name: value for name, value in notes.items() if name not in strange})
    for position, layer in enumerate(model):
        say(f"{position} {layer!r}")
