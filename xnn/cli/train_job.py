"""One training of `xnn train`: fits, writes the files that were asked for, and sums up the results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xnn.backends.memory import peak_resident_bytes
from xnn.callbacks import EarlyStopping
from xnn.data import Dataset
from xnn.errors import DivergenceError, ScaleWarning
from xnn.files import StandardError, notice
from xnn.history import History
from xnn.layers import Sequential
from xnn.layers import files as weights
from xnn.optimizers import Optimizer
from xnn.report.curves import add_rates
from xnn.report.of_trainer import run_of_trainer, say_scaling
from xnn.report.page import write as write_report
from xnn.runs.digests import Recorder
from xnn.runs.spec import RunSpec
from xnn.training import Trainer
from xnn.training.disk import compare_room

__all__ = ["Job", "fit", "result_of", "write_files"]


@dataclass(frozen=True)
class Job:
    """One training: what is run, on which data, and the objects that take part."""

    spec: RunSpec
    data: Dataset
    model: Sequential
    optimizer: Optimizer
    trainer: Trainer
    recorder: Recorder | None
    stopper: EarlyStopping | None
    about: dict[str, Any]

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block, the model has the moving averages of its weights if there are any (--average)."""
        return self.optimizer.averaged() if self.optimizer.averages else nullcontext()

    def kept_epoch(self, history: History) -> int:
        """The epoch after which the model had its present weights; 0 if it has not trained a whole epoch."""
        return (self.stopper.best_epoch if self.stopper else 0) or len(history.epochs)

    def report(self, path: str) -> None:
        """Write the report of the run, whose predictions are those of the test set."""
        known = {"data set": self.data.name, "seed": self.spec.seed}
        run = run_of_trainer(self.trainer, self.data, self.data.name, known)
        run.command, run.targets = self.about.get("command", ""), self.spec.targets
        add_rates(run, self.optimizer, self.spec.steps_per_epoch(self.data))
        scaling = self.data.target_scaling
        if scaling is not None:
            assert run.examples is not None
            run.examples = replace(run.examples, y=scaling.inverse().on_host(run.examples.y))
            say_scaling(run, scaling)
        write_report([run], path)

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
        if self.spec.loss is not None:  # else it is the first for such data
            notes["loss"] = self.spec.loss
        if data.scale == 1 / 255 and len(data.sample_shape) > 1:  # images of bytes
            notes["image"] = data.sample_shape
        weights.save(model, path, notes if error is None else {**notes, "error": str(error)})


def fit(job: Job, epochs: int, save: str | None, record: str | None, progress: bool) -> History:
    """Train. If an error ends the training, save the last good weights and the record, and raise the error."""
    spec, data = job.spec, job.data
    shown = progress and StandardError().isatty()  # elsewhere EpochLines writes to standard output
    if save:
        size = sum(array.nbytes for _, array in job.model.named_state())
        compare_room({Path(save): size}, "make room, or choose another place for --save")
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
                written, failure = write_files(job, history, save, record, None, error)
            if "save" in written:
                best = job.stopper.best_epoch if job.stopper else 0
                before = "that step" if isinstance(error, DivergenceError) else "that"
                which = f"after epoch {best}, the best" if best else f"before {before}"
                error.add_note(f"{save} holds the model as it was {which}")
            if failure is not None:
                error.add_note(str(failure))
        raise


def write_files(
    job: Job,
    history: History,
    save: str | None,
    record: str | None,
    plot: str | None,
    error: Exception | None = None,
    report: str | None = None,
) -> tuple[dict[str, str], Exception | None]:
    """Write the files that were asked for. Returns what was written, as option -> file, and the first failure.

    error: what ended the training.
    """

    def check_record(path: str) -> None:
        if job.recorder and job.recorder.file and job.recorder.file.failure:
            raise job.recorder.file.failure

    files: list[tuple[str, str | None, Callable[[str], None]]] = [
        ("save", save, lambda path: job.save(path, history, error)),
        ("record", record, check_record),
        ("plot", plot, history.plot),
        ("report", report, job.report),
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


def result_of(job: Job, history: History, tested: dict[str, float]) -> dict[str, Any]:
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
        "lowered": history.lowered,
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
