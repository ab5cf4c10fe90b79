"""The command line: the group of commands, their exit codes, and how errors are shown.

Each command stands in a module of its name, which is imported when the command runs. So `xnn --help` is fast.
"""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any

import click

from xnn import __version__
from xnn.errors import OptionError, UnknownBackendError, XnnError

__all__ = ["main"]

# Each command with its line in `xnn --help`, which is the first sentence of its own help.
_COMMANDS = {
    "train": "Train a network and report its accuracy on the test set.",
    "predict": "Print a trained model's prediction for each sample.",
    "info": "Show versions, backends, BLAS, threads and data sets.",
    "bench": "Time a training step of xnn and of other libraries.",
    "check": "Check the gradients of all ops, and whether the backends agree.",
    "verify": "Compare two runs step by step and bit by bit.",
}

_EXIT_CODES = """\b
Exit codes: 0 success; 1 failure, with the reason on standard error; 2 a wrong
option or environment variable; 130 ended by Ctrl-C, after a report."""


class _Commands(click.Group):
    """Imports a command when it is asked for, and shows errors as one line with an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"xnn.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:  # from printing help or version, which happens outside `invoke`
            click.echo(f"xnn: cannot write the output: {error.strerror or error}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except XnnError as error:
            click.echo(f"xnn: {error}", err=True)
            ctx.exit(2 if isinstance(error, (OptionError, UnknownBackendError)) else 1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has gone: click ends quietly with exit code 1
                raise
            click.echo(f"xnn: cannot write the output: {error.strerror or error}", err=True)
            ctx.exit(1)
        except MemoryError as error:
            click.echo(
                f"xnn: out of memory ({error}): try a smaller network (--hidden, --model) or --batch-size",
                err=True,
            )
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("xnn: interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="xnn")
def main() -> None:
    """Train neural networks in plain Python: with NumPy on the CPU, with CuPy on a GPU (XNN_BACKEND=cupy).

    \b
    xnn train                         train on MNIST, one line per epoch
    xnn train --save digits.safetensors
    xnn predict digits.safetensors mnist
    xnn info --probe                  what works here, and why the rest does not
    xnn bench                         time per step, beside the matrix products alone
    xnn check                         check gradients and backends
    xnn verify threads=1 threads=2    compare two runs bit by bit
    """
