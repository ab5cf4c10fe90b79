"""The report of a Trainer's last fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xnn.backends.host_arrays import as_host_array
from xnn.callbacks import Checkpoint
from xnn.data import Dataset
from xnn.data.targets import one_hot_classes
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.history import History
from xnn.layers import Rescale
from xnn.layers.files import weights_sha256
from xnn.losses import L1, MSE, Huber, SoftmaxCrossEntropy
from xnn.options import shown
from xnn.report.checkpoints import read_folder
from xnn.report.facts import ending, facts_of
from xnn.report.run import Examples, Run, Snapshot
from xnn.report.samples import image_of

__all__ = ["examples_of", "run_of_trainer", "say_scaling"]

_DISTANCES = MSE, L1, Huber  #: losses of regressions, whose targets may be integers


def run_of_trainer(
    trainer: Any, data: Any = None, name: str = "run", about: Mapping[str, Any] | None = None
) -> Run:
    """What is known of a trainer's last fit.

    data: a pair (x, y), or a Dataset, of which the test set is taken; None for a report without predictions.
    about: more facts of the run, by their names.

    Raises OptionError for other data, DTypeError for targets that are no numbers, and ShapeError if x and y differ in
    length.
    """
    model, history = trainer.model, trainer.history or History()
    run = Run(name, list(history.epochs), model, loss=trainer.loss)
    if data is not None:
        run.examples = examples_of(data, "the samples given to report")
        run.examples = _with_classes(run.examples, trainer.loss)
        y = run.examples.y
        judged = y.dtype.kind in "iub" and y.size == len(y) and not isinstance(trainer.loss, _DISTANCES)
        run.task = "classification" if judged else "regression"
        run.labels = data.labels if isinstance(data, Dataset) else ()
        if isinstance(data, Dataset):
            run.task = data.task
    host = {key: np.asarray(model.backend.to_host(array.value)) for key, array in model.named_state()}
    folders = [c.folder for c in trainer.callbacks if isinstance(c, Checkpoint) and c.folder.is_dir()]
    for folder in folders[:1]:
        _, run.snapshots, run.notes = read_folder(folder)
    if not run.snapshots or run.snapshots[-1].step != trainer.step:
        run.snapshots.append(Snapshot(trainer.step, trainer.epoch, "the model as it is", lambda: host))
    known = {
        **(about or {}),
        "epochs": len(history.epochs),
        "steps": history.steps,
        "seconds in steps": round(history.seconds, 3),
        "milliseconds a step": round(history.ms_per_step, 4),
        "ended": ending(history),
        "loss": repr(trainer.loss),
        "optimizer": repr(trainer.optimizer),
    }
    digests = {"weights": weights_sha256(model), "losses of all steps": history.losses_sha256}
    run.facts = facts_of(known, history.plan, digests)
    said = "Predictions need samples: trainer.report(path, data=(x_test, y_test))."
    run.missing = {"classes": said, "command": "The run was started in Python, so its program repeats it."}
    return run


def say_scaling(run: Run, scaling: Rescale) -> None:
    """Say that a run learned standardized targets. Its examples have the targets of the data.

    scaling: the layer that standardized them.
    """
    learned = run.targets
    run.scaling, run.targets = scaling, lambda y: learned(scaling.on_host(y))
    run.notes.append(
        "The targets were learned with mean 0 and deviation 1 (--scale-target), and the loss and its gradients are "
        "of these. Predictions, errors, MAE and RMSE are in the units of the data."
    )


def examples_of(data: Any, name: str) -> Examples:
    """The samples and targets of a pair (x, y), or the test set of a Dataset. name: of a pair, in words."""
    if isinstance(data, Dataset):
        columns = data.columns
        names = (
            () if columns is None or not columns.names else tuple(columns.names[n] for n in columns.features)
        )
        return Examples(np.asarray(data.x_test), data.y_test, f"{data.name}'s test set", data.image, names)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise OptionError(f"data must be a pair (x, y) or a data.Dataset, got {shown(data)}")
    x, y = (
        np.asarray(as_host_array(part, f"data: {letter}")) for letter, part in zip("xy", data, strict=True)
    )
    if x.ndim < 2 or not y.ndim or len(x) != len(y):
        raise ShapeError(
            f"data have x of shape {x.shape} and y of shape {y.shape}: give samples (n, ...) and a target for each"
        )
    if y.dtype.kind not in "biuf":
        raise DTypeError(
            f"data have targets of {y.dtype}, which are no numbers: give class c as the integer c, as in training"
        )
    return Examples(x, y, name, image_of(x))


def _with_classes(examples: Examples, loss: Any) -> Examples:
    """Samples whose targets are classes, where they are one-hot rows for a cross-entropy, which takes both."""
    classes = one_hot_classes(examples.y) if isinstance(loss, SoftmaxCrossEntropy) else None
    return examples if classes is None else replace(examples, y=classes)
