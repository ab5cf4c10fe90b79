"""`xnn train`: train a network, report how well it does, and write the files that were asked for."""

from __future__ import annotations

import sys
from typing import Any

import click

from xnn.backends import backend as use_backend
from xnn.backends import current_numerics
from xnn.backends import numerics as use_numerics
from xnn.callbacks import Callback, EarlyStopping, EpochLines, GradientNorm, JsonLines, TensorBoard, TimeLimit
from xnn.cli.options import (
    chosen_backend,
    given_options,
    run_options,
    with_table,
)
from xnn.cli.origin import command_text, origin
from xnn.cli.outputs import check_apart
from xnn.cli.train_job import Job, fit, result_of, write_files
from xnn.cli.train_options import train_options
from xnn.cli.train_summary import print_files, print_summary
from xnn.cli.unwatched import checkpoints, say_if_stopped
from xnn.data import load
from xnn.errors import DiskError, OptionError
from xnn.files import check_plot, check_writable, notice, to_json
from xnn.layers import files as weights
from xnn.report.page import BEGINS
from xnn.runs.digests import RECORD_BEGINS, Recorder
from xnn.runs.spec import RunSpec
from xnn.runs.target_units import metrics_in_units
from xnn.training import Trainer
from xnn.training.interrupt import interruptible

__all__ = ["command", "train_command"]

# Not a docstring: `python -OO` removes those.
_HELP = """\
Train a network and report its accuracy on the test set.

The network is a multilayer perceptron, or the one in the file of --model.

\b
xnn train                                       784-100-200-10 on MNIST
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


@click.command("train", help=_HELP)
@run_options
@train_options
@click.pass_context
def command(context: click.Context, /, backend: str | None, numerics: str | None, **options: Any) -> None:
    """The command `xnn train`; its help is _HELP."""
    given_options(context)  # raises if two options describe the network
    with use_numerics(numerics), use_backend(chosen_backend(backend)):
        interrupted = train_command(command=command_text(context), **with_table(options))
    if interrupted:
        sys.exit(130)


def train_command(
    *,
    dataset: str | None,
    data_home: str | None,
    table: dict[str, Any],
    epochs: int,
    patience: int | None,
    threads: int | str | None,
    kernels: str,
    workers: str,
    save: str | None,
    plot: str | None,
    report: str | None,
    log: str | None,
    tensorboard: str | None,
    gradient_norm: bool,
    record: str | None,
    checkpoint: str | None,
    every: str,
    keep: int,
    resume: bool,
    allow_different_plan: bool,
    time_limit: str | None,
    on_nan: str,
    as_json: bool,
    quiet: bool,
    command: str = "",
    **options: Any,
) -> bool:
    """Train, report and write files. Returns whether Ctrl-C ended the training.

    table: arguments of `load` for reading a table.
    command: the command line that says all this, for the log.
    options: those of RunSpec.from_options. All others are the command's own.
    """
    limit = TimeLimit(time_limit) if time_limit is not None else None  # it counts from here
    outputs = {"--save": save, "--record": record, "--plot": plot, "--report": report, "--log": log}
    outputs["--checkpoint"] = checkpoint
    _check_files(outputs, {"--dataset": dataset, "--model": options.get("model")})
    logger = JsonLines(log) if log else None
    board = TensorBoard(tensorboard) if tensorboard else None
    saver = checkpoints(checkpoint, every, keep, on_nan, resume, allow_different_plan, bool(record))
    spec = RunSpec.from_options(**options)
    spec.check_numerics(current_numerics())
    if patience and spec.average is not None:
        raise OptionError(
            "--patience keeps the weights of the best epoch, and --average their mean over steps: omit one of them"
        )
    data = spec.with_targets(load(dataset, data_home, **table))
    for message in filter(None, (data.note, data.advice)):
        notice(f"xnn: {message}")
    spec = spec.resolved(data, epochs * spec.steps_per_epoch(data))
    model, loss, optimizer = spec.build(data)
    recorder = Recorder(model, {**spec.record_header(data), "table": table}, record) if record else None
    stopper = EarlyStopping(patience=patience) if patience else None
    about = {"dataset": data.name, "seed": spec.seed, "run": spec.as_json()}
    about["model"] = [weights.full_text(layer) for layer in model.layers]
    about |= origin(command, dataset or data.name, table, {"save": save, "checkpoint": checkpoint})
    for writer in (logger, saver):
        if writer is not None:
            writer.about = about
    for writes_rate in (board, logger):
        if writes_rate is not None:
            writes_rate.optimizer = optimizer
    printer = None if quiet or as_json else EpochLines()
    norm = GradientNorm() if gradient_norm else None
    callbacks: list[Callback] = [
        c for c in (norm, logger, board, printer, recorder, stopper, saver, limit) if c is not None
    ]
    metrics = None if data.target_scaling is None else metrics_in_units(data.target_scaling)
    how: dict[str, Any] = {"threads": threads, "kernels": kernels}
    how["workers"] = None if workers == "auto" else workers
    trainer = Trainer(model, loss, optimizer, metrics, callbacks=callbacks, **how)
    if trainer.rank:  # rank 0 writes
        save = plot = report = None
    if resume and checkpoint and (found := trainer.resume(checkpoint, allow_different_plan)):
        notice(f"xnn: resumed from {found}, step {trainer.step:,}")
    job = Job(spec, data, model, optimizer, trainer, recorder, stopper, about)
    begun = trainer.step
    history = fit(job, epochs, save, record, progress=not quiet)
    say_if_stopped(trainer, limit, begun, checkpoint)
    # Files are written before anything else can fail, such as Ctrl-C now.
    with job.averaged(), interruptible() as interrupted:
        written, failure = write_files(job, history, save, record, plot, report=report)
        tested = trainer.evaluate((data.x_test, spec.targets(data.y_test)))
        result = result_of(job, history, tested)
    if trainer.rank:
        return history.interrupted or interrupted()
    try:
        if as_json:
            click.echo(to_json(result))
        elif not quiet:
            print_summary(result, history, written.get("save"), tested, checkpoint)
            print_files(result, written, recorder)
    finally:  # a file that could not be written must not hide the results, nor the results what became of the file
        if failure is not None:  # after the training no option is wrong any more
            raise DiskError(str(failure)) if isinstance(failure, OptionError) else failure
    return history.interrupted or interrupted()


def _check_files(outputs: dict[str, str | None], inputs: dict[str, str | None]) -> None:
    """Raise now if a file could not be written after hours of training, or would overwrite another one."""
    save, record, plot, report, log, _ = outputs.values()
    if save:
        check_writable(save, (".safetensors",))
    if plot:
        check_plot(plot)
    if report:
        check_writable(report, (".html",), begins=BEGINS)
    if record:
        check_writable(record, begins=RECORD_BEGINS)
    if log:
        check_writable(log, replaced=False)
    check_apart(outputs, inputs)
