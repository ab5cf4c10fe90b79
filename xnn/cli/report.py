"""`xnn report`: one HTML file about a run, or about several side by side."""

from __future__ import annotations

import click

from xnn.cli.options import FILE, FOLDER
from xnn.cli.outputs import check_apart
from xnn.cli.report_sources import read_runs
from xnn.cli.surroundings import say
from xnn.files import check_writable
from xnn.report.page import BEGINS, write

__all__ = ["command"]

# Not a docstring: `python -OO` removes those.
_HELP = """\
Write a report of training runs as one HTML file.

RUN is a log (xnn train --log), a folder of checkpoints (--checkpoint) or a model file (--save). The log and the
checkpoints of one run are shown as one; other runs are compared. The file has less than 2 MB, and needs neither a
network nor a server: open it in a browser.

\b
xnn train --log run.jsonl --checkpoint run --keep 20
xnn report run.jsonl run -o report.html
xnn report first.jsonl second.jsonl             two runs side by side
xnn report digits.safetensors --data mnist      a model and its mistakes
"""


@click.command("report", help=_HELP)
@click.argument("runs", type=FILE, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output",
    "-o",
    type=FILE,
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The .html file.",
)
@click.option(
    "--data",
    type=FILE,
    metavar="NAME",
    help="A data set, or a .npz or .csv file, whose test set shows the model's mistakes. Default: the run's own.",
)
@click.option("--data-home", type=FOLDER, metavar="DIR", help="The folder of a named data set's files.")
def command(runs: tuple[str, ...], output: str, data: str | None, data_home: str | None) -> None:
    """The command `xnn report`; its help is _HELP."""
    check_writable(output, (".html",), begins=BEGINS)
    for path in runs:
        check_apart({"--output": output}, {"RUN": path, "--data": data})
    write(read_runs(runs, data, data_home), output)
    say(f"report: {output}")
