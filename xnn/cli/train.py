"""`xnn train`: train a network, report how well it does, and write the files that were asked for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import click

from xnn.backends import backend as use_backend
from xnn.backends import current_numerics
from xnn.backends import numerics as use_numerics
from xnn.backends.memory import peak_resident_bytes
from xnn.callbacks import Callback, Checkpoint, EarlyStopping, EpochLines, JsonLines, TensorBoard
from xnn.cli.options import (
    FILE,
    backend_option,
    chosen_backend,
    device_option,
    given_options,
    numerics_option,
    run_options,
    with_table,
)
from xnn.cli.outputs import check_apart
from xnn.cli.train_summary import print_files, print_summary
from xnn.data import Dataset, load
from xnn.errors import DataError, DivergenceError, OptionError, ScaleWarning
from xnn.files import StandardError, check_plot, check_writable, notice, to_json
from xnn.history import History
from xnn.layers import Sequential
from xnn.layers import files as weights
from xnn.optimizers import Optimizer
from xnn.runs.digests import RECORD_BEGINS, Recorder
from xnn.runs.names import KERNELS, MOST_THREADS, thread_count
from xnn.runs.spec import RunSpec
from xnn.runs.target_units import metrics_in_units
from xnn.training import Trainer
from xnn.training.interrupt import interruptible

__all__ = ["command", "train_command"]


def _threads(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    number = thread_count(value)
    if number is None:
        raise click.BadParameter(f"{value!r} is neither a positive integer up to {MOST_THREADS} nor auto")
    return number


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
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many times to go through the training data.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after N epochs without a lower validation loss, and keep the weights of the best epoch.",
)
@backend_option
@device_option
@numerics_option
@click.option(
    "--threads",
    callback=_threads,
    metavar="N|auto",
    help="Threads of a matrix product (BLAS); auto measures which number is fastest. Default: OMP_NUM_THREADS, else "
    "by the network's size (see xnn info).",
)
@click.option(
    "--kernels",
    type=click.Choice(KERNELS),
    default="auto",
    show_default=True,
    help="The code that runs a step: plain ops, or faster kernels for them; compiled needs the extra fast.",
)
@click.option(
    "--save", type=FILE, metavar="FILE", help="Save the model as FILE, a name that ends in .safetensors."
)
@click.option("--plot", type=FILE, metavar="FILE", help="Draw the learning curves into a .png or .svg file.")
@click.option(
    "--log", type=FILE, metavar="FILE", help="Write one JSON object per epoch; an older log is replaced."
)
@click.option(
    "--tensorboard",
    type=FILE,
    metavar="DIR",
    help="Write the numbers of each epoch into DIR, for TensorBoard.",
)
@click.option("--record", type=FILE, metavar="FILE", help="Write digests of every step, for xnn verify.")
@click.option(
    "--checkpoint",
    type=FILE,
    metavar="DIR",
    help="Write checkpoints into the folder DIR, from which --resume goes on after a crash.",
)
@click.option(
    "--every",
    default="1epoch",
    show_default=True,
    metavar="N",
    help="How often: a number of epochs, steps, s, min or h, such as 500steps or 10min.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many are kept, and the best.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the newest checkpoint in DIR; begin afresh if there is none."
)
@click.option(
    "--allow-different-plan",
    is_flag=True,
    help="Resume also where fast numerics would give other bits, as with other threads.",
)
@click.option("--json", "as_json", is_flag=True, help="Print nothing but the result, as one JSON object.")
@click.option("--quiet", is_flag=True, help="Print neither progress nor summary.")
@click.pass_context
def command(context: click.Context, /, backend: str | None, numerics: str | None, **options: Any) -> None:
    """The command `xnn train`; its help is _HELP."""
    given_options(context)  # raises if two options describe the network
    with use_numerics(numerics), use_backend(chosen_backend(backend)):
        interrupted = train_command(**with_table(options))
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
    save: str | None,
    plot: str | None,
    log: str | None,
    tensorboard: str | None,
    record: str | None,
    checkpoint: str | None,
    every: str,
    keep: int,
    resume: bool,
    allow_different_plan: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> bool:
    """Train, report and write files. Returns whether Ctrl-C ended the training.

    table: arguments of `load` for reading a table.
    options: those of RunSpec.from_options. All others are the command's own.
    """
    outputs = {"--save": save, "--record": record, "--plot": plot, "--log": log}
    _check_files(outputs, {"--dataset": dataset, "--model": options.get("model")})
    logger = JsonLines(log) if log else None
    board = TensorBoard(tensorboard) if tensorboard else None
    if not checkpoint and (resume or allow_different_plan or (every, keep) != ("1epoch", 3)):
        raise OptionError(
            "--resume, --every, --keep and --allow-different-plan need --checkpoint DIR, a folder for checkpoints"
        )
    saver = Checkpoint(checkpoint, every, keep) if checkpoint else None
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
    recorder = Recorder(model, {**spec.record_header(data), "table": table}) if record else None
    stopper = EarlyStopping(patience=patience) if patience else None
    about = {"dataset": data.name, "seed": spec.seed, "run": spec.as_json()}
    about["model"] = [weights.full_text(layer) for layer in model.layers]
    for writer in (logger, saver):
        if writer is not None:
            writer.about = about
    if board is not None:
        board.optimizer = optimizer
    printer = None if quiet or as_json else EpochLines()
    callbacks: list[Callback] = [
        c for c in (logger, board, printer, recorder, stopper, saver) if c is not None
    ]
    metrics = None if data.target_scaling is None else metrics_in_units(data.target_scaling)
    trainer = Trainer(model, loss, optimizer, metrics, callbacks=callbacks, threads=threads, kernels=kernels)
    if resume and checkpoint and (found := trainer.resume(checkpoint, allow_different_plan)):
        notice(f"xnn: resumed from {found}, step {trainer.step:,}")
    job = _Job(spec, data, model, optimizer, trainer, recorder, stopper)
    history = _fit(job, epochs, save, record, progress=not quiet)
    # Files are written before anything else can fail, such as Ctrl-C now.
    with job.averaged(), interruptible() as interrupted:
        written, failure = _write_files(job, history, save, record, plot)
        tested = trainer.evaluate((data.x_test, spec.targets(data.y_test)))
        result = _result(job, history, tested)
    try:
        if as_json:
            click.echo(to_json(result))
        elif not quiet:
            print_summary(result, history, written.get("save"), tested, checkpoint)
            print_files(result, written, recorder)
    finally:  # a file that could not be written must not hide the results, nor the results what became of the file
        if failure is not None:  # after the training no option is wrong any more
            raise DataError(str(failure)) if isinstance(failure, OptionError) else failure
    return history.interrupted or interrupted()


@dataclass(frozen=True)
class _Job:
    """One training: what is run, on which data, and the objects that take part."""

    spec: RunSpec
    data: Dataset
    model: Sequential
    optimizer: Optimizer
    trainer: Trainer
    recorder: Recorder | None
    stopper: EarlyStopping | None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block, the model has the moving averages of its weights if there are any (--average)."""
        return self.optimizer.averaged() if self.optimizer.averages else nullcontext()

    def kept_epoch(self, history: History) -> int:
        """The epoch after which the model had its present weights; 0 if it has not trained a whole epoch."""
        return (self.stopper.best_epoch if self.stopper else 0) or len(history.epochs)

    def save(self, path: str, history: History, error: Exception | None = None) -> None:
        """Save the model, with notes that `xnn predict` needs. It predicts in the units of the targets."""
        data, model = self.data, self.model
        if data.target_scaling is not None:
            model = Sequential(*model.layers, data.target_scaling.inverse(), seed=model.seed)
            model.numerics = self.model.numerics
        notes: dict[str, Any] = {
            "dataset": data.name,
            "task": data.task,
            "features": data.x_train.shape[1],
            "labels": data.labels,
            "classes": data.classes,
            "columns": None if data.columns is None else asdict(data.columns),
            "epochs": self.kept_epoch(history),
        }
        weights.save(model, path, notes if error is None else {**notes, "error": str(error)})


def _check_files(outputs: dict[str, str | None], inputs: dict[str, str | None]) -> None:
    """Raise now if a file could not be written after hours of training, or would overwrite another one."""
    save, record, plot, log = outputs.values()
    if save:
        check_writable(save, (".safetensors",))
    if plot:
        check_plot(plot)
    if record:
        check_writable(record, begins=RECORD_BEGINS)
    if log:
        check_writable(log, replaced=False)
    check_apart(outputs, inputs)


def _fit(job: _Job, epochs: int, save: str | None, record: str | None, progress: bool) -> History:
    """Train. If an error ends the training, save the last good weights and the record, and raise the error."""
    spec, data = job.spec, job.data
    shown = progress and StandardError().isatty()  # elsewhere EpochLines writes to standard output
    try:
        with warnings.catch_warnings():  # restores showwarning
            warnings.filterwarnings("ignore", "training targets", ScaleWarning)  # data.advice said it
            warnings.showwarning = lambda message, *_, **__: notice(f"xnn: {message}")
            return job.trainer.fit(
                (data.x_train, spec.targets(data.y_train)),
                validation=(data.x_val, spec.targets(data.y_val)),
                epochs=epochs,
                batch_size=spec.batch_size,
                seed=spec.seed,
                progress=shown,
            )
    except Exception as error:
        history = job.trainer.history
        if history is not None and (history.steps or isinstance(error, DivergenceError)):
            with job.averaged():
                written, failure = _write_files(job, history, save, record, None, error)
            if "save" in written:
                best = job.stopper.best_epoch if job.stopper else 0
                before = "that step" if isinstance(error, DivergenceError) else "that"
                which = f"after epoch {best}, the best" if best else f"before {before}"
                error.add_note(f"{save} holds the model as it was {which}")
            if failure is not None:
                error.add_note(str(failure))
        raise


def _write_files(
    job: _Job,
    history: History,
    save: str | None,
    record: str | None,
    plot: str | None,
    error: Exception | None = None,
) -> tuple[dict[str, str], Exception | None]:
    """Write the files that were asked for. Returns what was written, as option -> file, and the first failure.

    error: what ended the training.
    """

    def save_record(path: str) -> None:
        if job.recorder is not None:
            job.recorder.record.save(path)

    files: list[tuple[str, str | None, Callable[[str], None]]] = [
        ("save", save, lambda path: job.save(path, history, error)),
        ("record", record, save_record),
        ("plot", plot, history.plot),
    ]
    written: dict[str, str] = {}
    failure: Exception | None = None
    for option, path, write in files:
        if path:
            try:
                write(path)
                written[option] = path
            except Exception as fault:  # the other files are written all the same
                failure = failure or fault
    return written, failure


def _result(job: _Job, history: History, tested: dict[str, float]) -> dict[str, Any]:
    """The object that --json prints."""
    keys, lib = ["loss", "accuracy", "val_loss", "val_accuracy"], job.model.backend
    keys += [name for name in ("val_mae", "val_rmse") if job.data.target_scaling is not None]
    return {
        "dataset": job.data.name,
        "task": job.data.task,
        "backend": history.plan["backend"],
        "numerics": history.plan["numerics"],
        "plan": history.plan,
        "seed": job.spec.seed,
        "run": job.spec.as_json(),
        "epochs": len(history.epochs),
        "kept_epoch": job.kept_epoch(history),
        "interrupted": history.interrupted,
        "stopped": history.stopped,
        "steps": history.steps,
        "history": [{key: entry.get(key) for key in keys} for entry in history.epochs],
        "test_loss": tested["loss"],
        "test_accuracy": tested.get("accuracy"),
        **{f"test_{name}": tested[name] for name in ("mae", "rmse") if name in tested},
        "ms_per_step": round(history.ms_per_step, 4),
        "samples_per_second": round(history.samples_per_second, 1),
        "first_step_seconds": round(history.first_step_seconds, 4),
        "peak_rss_mb": round(peak_resident_bytes() / 2**20, 1),
        **({} if lib.is_host else {"peak_device_mb": round(lib.memory()["peak"] / 2**20, 1)}),
        "weights_sha256": weights.weights_sha256(job.model),
        "losses_sha256": history.losses_sha256,
    }
