"""The command line: the group of commands, their exit codes, and how errors are shown.

Each command stands in a module of its name, which is imported when the command runs. So `xnn --help` is fast.
"""

from __future__ import annotations

import errno
import importlib
import keyword
import sys
from collections.abc import Callable
from typing import IO, Any, cast

import click

from xnn import __version__
from xnn.cli.exit_codes import EXIT_CODES, exit_code
from xnn.cli.surroundings import forget_output, forget_what_is_lost, surroundings
from xnn.cli.together import Failures, as_one_of_many
from xnn.errors import XnnError
from xnn.files import StandardError, printable

__all__ = ["main"]

# Each command with its line in `xnn --help`, which is the first sentence of its own help.
_COMMANDS = {
    "train": "Train a network and report its accuracy on the test set.",
    "predict": "Print a trained model's prediction for each sample.",
    "export": "Write a trained model in a format that other programs run.",
    "import": "Make a model file of an ONNX network.",
    "report": "Write a report of training runs as one HTML file.",
    "info": "Show versions, backends, GPUs, BLAS, threads and data sets.",
    "bench": "Time a training step of xnn and of other libraries.",
    "check": "Check the gradients of all ops, and whether the backends agree.",
    "verify": "Compare two runs step by step and bit by bit.",
}

# Not a docstring: `python -OO` removes those.
_HELP = """\
Train neural networks in plain Python: with NumPy on the CPU, with CuPy on a GPU (XNN_BACKEND=cupy).

\b
xnn train                         train on MNIST, one line per epoch
xnn train --save digits.safetensors
xnn report digits.safetensors     curves, weights and mistakes, as one HTML file
xnn predict digits.safetensors mnist
xnn export digits.safetensors digits.onnx
xnn info --probe                  what works here, and why the rest does not
xnn bench                         time per step, beside the matrix products alone
xnn check                         check gradients and backends
xnn verify threads=1 threads=2    compare two runs bit by bit
"""


class _Commands(click.Group):
    """Imports a command when it is asked for, and shows errors as one line with an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"xnn.cli.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command and end the process with its exit code. Errors are shown as one line."""
        options["standalone_mode"] = (
            False  # click's own way of showing errors can fail, and prints tracebacks
        )
        given = args[0] if args and args[0] is not None else options.get("args")
        arguments = sys.argv[1:] if given is None else list(given)
        run = lambda: super(_Commands, self).main(*args, **options)  # noqa: E731
        with surroundings() as ended_by:
            code = as_one_of_many(arguments, lambda failures: _exit_code(run, ended_by, failures))
        forget_what_is_lost()
        sys.exit(code)


def _exit_code(run: Callable[[], Any], ended_by: list[int], failures: Failures) -> int:
    """Run a command. Returns its exit code, after telling `failures` the error that ended it.

    ended_by: the signals that came, such as SIGTERM; those whose effect is that of Ctrl-C.
    """
    try:
        try:
            code = run()
        except SystemExit as error:
            code = error.code
        if sys.stdout is not None:
            sys.stdout.flush()  # the last place where a full disk can be seen
    except click.ClickException as error:
        return _refuse(error, failures)
    except XnnError as error:
        _show(failures, error, str(error))
        return exit_code(error)
    except OSError as error:
        if error.errno != errno.EPIPE:  # else the reader has gone, as in `xnn train | head`
            _show(failures, error, f"{_what_failed(error)}: {error.strerror or error}")
        forget_output()
        return exit_code(error)
    except MemoryError as error:
        what = f"out of memory ({error})" if str(error) else "out of memory"
        _show(failures, error, f"{what}: try a smaller network (--hidden, --model) or --batch-size")
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        failures.add("interrupted")
        code = 130
    if code == 130 and ended_by:
        return 128 + ended_by[0]
    return code if isinstance(code, int) else 0


def _show(failures: Failures, error: Exception, text: str) -> None:
    """Tell an error in words, and then its notes, such as which file holds the weights."""
    for line in (text, *getattr(error, "__notes__", ())):
        failures.add(line, error)


def _what_failed(error: OSError) -> str:
    """What an OSError is about: a file, if it names one, or else standard output."""
    return "cannot write the output" if error.filename is None else f"cannot use {error.filename}"


def _refuse(error: click.ClickException, failures: Failures) -> int:
    """Show a wrong option, as click does. Returns the exit code."""
    if failures.kept:
        failures.add(printable(error.format_message()))
        return error.exit_code
    if not isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # its message is the help
        vars(error)["message"] = printable(error.message)
    error.show(cast(IO[str], StandardError()))
    return error.exit_code


@click.group(
    cls=_Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES
)
@click.version_option(__version__, prog_name="xnn")
def main() -> None:
    """The command line; its help is _HELP."""
