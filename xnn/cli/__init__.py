"""The command line: xnn train, predict, info, bench, check, verify."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from xnn import __version__
from xnn.cli.options import given_options, run_options, widths, with_table
from xnn.errors import OptionError, UnknownBackendError, XnnError

__all__ = ["main"]

_EXIT_CODES = """\b
Exit codes: 0 done; 1 it failed, and standard error says why; 2 a wrong option
or environment variable; 130 ended by Ctrl-C, after reporting what was done."""


class _Commands(click.Group):
    """Turns xnn's errors into one line on standard error and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:  # of its own help and version, before a command is invoked
            click.echo(f"xnn: cannot write the output: {error.strerror or error}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except XnnError as error:
            click.echo(f"xnn: {error}", err=True)
            ctx.exit(2 if isinstance(error, (OptionError, UnknownBackendError)) else 1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has gone: click ends quietly, with exit code 1
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
    """Train neural networks in plain Python: NumPy on the CPU, CuPy on a GPU (XNN_BACKEND=cupy).

    \b
    xnn train                         MNIST, 784-100-200-10, a line per epoch
    xnn train --save digits.safetensors
    xnn predict digits.safetensors mnist
    xnn info --probe                  what works here, and why the rest does not
    xnn bench                         time per step, beside the matrix products alone
    xnn check                         gradients and backends, checked
    xnn verify threads=1 threads=2    two runs compared bit by bit
    """


def _threads(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """A positive integer, or auto."""
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a positive integer nor auto")
    return int(value)


def _backend_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--backend", metavar="NAME", help="numpy or cupy; default: XNN_BACKEND, else numpy.")(
        command
    )


_NUMERICS = "fast, or exact: the same bits everywhere; default: XNN_NUMERICS, else fast."


@main.command("train")
@run_options
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--patience",
    type=click.IntRange(1),
    metavar="N",
    help="End after N epochs in which the validation loss did not fall; the best epoch's weights are kept.",
)
@_backend_option
@click.option("--numerics", metavar="NAME", help=_NUMERICS)
@click.option(
    "--threads",
    callback=_threads,
    metavar="N|auto",
    help="BLAS threads; auto measures. Default: OMP_NUM_THREADS, else a rule that xnn info shows.",
)
@click.option(
    "--kernels",
    type=click.Choice(["auto", "ops", "numpy", "compiled"]),
    default="auto",
    show_default=True,
    help="What runs the steps: the ops themselves, or kernels; compiled needs the extra fast.",
)
@click.option("--save", metavar="FILE", help="Write the model to FILE.safetensors.")
@click.option("--plot", metavar="FILE", help="Write the learning curves to a .png or .svg file.")
@click.option("--log", metavar="FILE", help="Write JSON lines, one an epoch.")
@click.option("--record", metavar="FILE", help="Write digests of every step, for xnn verify.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, and nothing else."
)
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.pass_context
def _train(context: click.Context, /, backend: str | None, numerics: str | None, **options: Any) -> None:
    """Train a multilayer perceptron, or the network of a file, and report its accuracy on the test set.

    \b
    xnn train                                       the MNIST article's network
    xnn train --epochs 25 --plot curve.png
    xnn train --epochs 100 --patience 5
    xnn train --hidden 512,256 --optimizer adam --batch-size 128
    xnn train --epochs 10 --schedule cosine --momentum 0.9 --weight-decay 1e-4
    xnn train --epochs 10 --schedule onecycle --lr 0.4 --augment --label-smoothing 0.1
    xnn train --optimizer adamw --schedule step:every=1000,factor=0.5 --warmup 300 --clip-norm 1
    xnn train --dataset iris.csv --target species --save model.safetensors
    xnn train --model network.toml                  layers of your choice: docs/architecture.md
    xnn train --numerics exact --record run.jsonl   to be verified on another machine
    XNN_BACKEND=cupy xnn train                      the same run on a GPU
    """
    from xnn.backends import backend as use
    from xnn.backends import get_backend
    from xnn.backends import numerics as use_numerics
    from xnn.cli.train import train_command

    given_options(context)
    with use_numerics(numerics), use(get_backend(backend).name):
        interrupted = train_command(**with_table(options))
    if interrupted:
        sys.exit(130)


@main.command()
@click.argument("model")
@click.argument("data")
@click.option("--data-home", metavar="DIR", help="Where a named data set's files are.")
@_backend_option
@click.option("--numerics", metavar="NAME", help=_NUMERICS)
@click.option("--output", metavar="FILE", help="Write the model's outputs to a .npy file as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict(model: str, data: str, backend: str | None, numerics: str | None, **options: Any) -> None:
    """Print a prediction for each sample: MODEL is a file from `xnn train --save`.

    DATA is a .npy, .npz (x, and y if known), .csv or idx file, or a data set's name (its test set). In the
    numerics the model was trained in, unless --numerics or XNN_NUMERICS says otherwise.
    A classifier prints labels, a regression numbers; accuracy goes to standard error if y is known.

    \b
    xnn predict digits.safetensors mnist
    xnn predict digits.safetensors images.npy --output logits.npy
    """
    from xnn.backends import backend as use
    from xnn.backends import get_backend
    from xnn.backends import numerics as use_numerics
    from xnn.cli.train import predict_command

    with use_numerics(numerics), use(get_backend(backend).name):
        predict_command(model, data, **options)


@main.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--probe", is_flag=True, help="Run something on every backend.")
def _info(as_json: bool, probe: bool) -> None:
    """Show versions, backends and why one is unavailable, BLAS, threads, plan and data sets.

    \b
    xnn info
    xnn info --probe --json > report.json
    """
    from xnn.cli.info import check_variables, collect

    facts = collect(probe)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    for key, value in {} if as_json else facts.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            for name, text in value.items():
                click.echo(f"  {name}: {text}")
        elif isinstance(value, list):
            for entry in value:
                click.echo(f"{key}: {', '.join(f'{k} {v}' for k, v in entry.items())}")
        else:
            click.echo(f"{key}: {value}")
    check_variables()


@main.command("bench")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Time this one; default: all that run here."
)
@click.option(
    "--preset",
    metavar="NAME",
    help="article (default), medium, large, ciresan, or targets: five pairs of network and batch.",
)
@click.option(
    "--batch-sizes",
    default="",
    callback=widths,
    metavar="N,N,...",
    help="Default: 32,128,512; a sweep: 32 to 2048.",
)
@click.option(
    "--peers", default="", metavar="NAME,...", help="torch, jax, sklearn, ..., or all; as far as installed."
)
@click.option("--threads", type=click.IntRange(1), help="For everybody; default: all cores.")
@click.option("--numerics", metavar="NAME", help="fast, exact or both; default: XNN_NUMERICS, else fast.")
@click.option("--repeat", type=click.IntRange(1), help="Turns of each contestant; default: 9.")
@click.option("--json", "json_file", metavar="FILE", help="Write figures and environment to FILE.")
@click.option("--plot", metavar="FILE", help="Throughput against batch size, and losses, as .png or .svg.")
@click.option(
    "--compare", metavar="FILE", help="Ratios to an older --json file; exits with 1 if slower beyond noise."
)
@click.option("--sweep", is_flag=True, help="Over widths and batch sizes: from which size a GPU pays.")
@click.option(
    "--to-accuracy",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="A",
    help="Seconds to this accuracy on MNIST's test set, by recipe: half a minute on two cores, a minute with torch.",
)
def _bench(**options: Any) -> None:
    """Time a training step of xnn beside its matrix products alone, and beside other libraries.

    Contestants take turns, each in its own process. A figure is shown only if the run learned and its
    losses agree with the others'. Exits with 1 if one of xnn's own has none, is slower than before
    (--compare), or does not come to the accuracy (--to-accuracy). BLAS has all cores here, or --threads,
    for everybody; xnn train chooses by a rule (xnn info).

    \b
    xnn bench
    xnn bench --preset targets --peers all --json results.json
    xnn bench --compare results.json --preset targets
    xnn bench --to-accuracy 0.98 --peers torch
    """
    from xnn.cli.bench import bench_command

    if not bench_command(**options):
        sys.exit(1)


@main.command("check")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Check this one; default: all that run here."
)
@click.option("--verbose", is_flag=True, help="Every check, not only the failed ones.")
@click.option("--table", is_flag=True, help="The error of each op's gradient on each backend.")
def _check(backends: tuple[str, ...], verbose: bool, table: bool) -> None:
    """Check every op's gradient, the three doors and the agreement of the backends.

    Exits with 1 if anything fails.

    \b
    xnn check
    xnn check --table
    xnn check --backend cupy --verbose
    """
    from xnn.cli.train import check_command

    if not check_command(list(backends), verbose, table):
        sys.exit(1)


@main.command("verify")
@click.argument("a")
@click.argument("b")
@click.option("--steps", type=click.IntRange(1), help="Default: 200, or all of a record.")
@click.option(
    "--numerics",
    metavar="NAME",
    default="exact",
    show_default=True,
    help="exact, or fast; XNN_NUMERICS is not read.",
)
@run_options
@click.pass_context
def _verify(context: click.Context, /, **options: Any) -> None:
    """Compare two runs in lock-step: the first step, layer and tensor that differ, or that all bits agree.

    A and B are each a file of `xnn train --record`, or settings of a run in a process of its own, with
    commas between them: backend=NAME, threads=N, kernels=NAME, blas=CORE (OpenBLAS's kernels, such as
    Haswell). With a record the run's options are the record's; without, a schedule lasts for --steps.
    Exits with 1 if they differ.

    \b
    xnn verify threads=1 threads=2
    xnn verify backend=numpy,blas=Haswell backend=cupy
    xnn verify run.jsonl backend=numpy              is this machine's run the recorded one?
    """
    from xnn.cli.verify import verify_command

    if not verify_command(given=given_options(context), **with_table(options)):
        sys.exit(1)
