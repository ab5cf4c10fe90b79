"""What `xnn report` reads: a log, a folder of checkpoints, or a model file; each becomes a Run of the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xnn import __version__
from xnn.callbacks import checkpoints_in
from xnn.cli.model_notes import read_notes
from xnn.data import Dataset, load
from xnn.errors import CorruptFileError, DataNotFoundError, LabelError, XnnError
from xnn.files import reading
from xnn.layers import Rescale, Sequential
from xnn.layers import files as weights
from xnn.layers.safetensors_file import CHECKPOINT, read_signed
from xnn.layers.sequential import load as load_model
from xnn.optimizers import Optimizer
from xnn.report.checkpoints import read_folder, snapshot_of, weights_in
from xnn.report.curves import add_rates
from xnn.report.facts import ending, facts_of
from xnn.report.of_trainer import examples_of, say_scaling
from xnn.report.run import Run, Snapshot
from xnn.runs.record_file import RECORD_BEGINS
from xnn.runs.spec import RunSpec
from xnn.training.resuming import Checkpoint, read

__all__ = ["read_runs"]

_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError)
_IN_PYTHON = "This is known of runs of xnn train alone: in Python, trainer.report(path, data) makes a report."


def read_runs(paths: tuple[str, ...], data: str | None, data_home: str | None) -> list[Run]:
    """The runs of these files and folders. A log and the checkpoints of one run become one Run.

    data: of which the test set is taken, a data set's name or a file; None takes what the run says.

    Raises DataNotFoundError, CorruptFileError or DataError for what cannot be read, LabelError for data that do not
    fit, and the errors of the data that were named.
    """
    found: list[tuple[Any, bool, Run]] = []
    for path in _with_checkpoints(paths):
        about, run = _read(Path(path), data, data_home)
        is_log = not run.snapshots
        identity = about and {name: about.get(name) for name in ("dataset", "run", "model")}
        other = next((o for o in found if identity and o[0] == identity and o[1] != is_log), None)
        if other is None and path not in paths:  # checkpoints of another run, which wrote there later
            continue
        if other is None:
            found.append((identity, is_log, run))
        else:
            both = _joined(other[2], run) if is_log else _joined(run, other[2])
            found[found.index(other)] = None, False, both
    return [run for _, _, run in found]


def _with_checkpoints(paths: tuple[str, ...]) -> list[str]:
    """The paths, and those folders of checkpoints that their logs name, if they are there."""
    found = list(paths)
    for path in paths:
        if os.path.isfile(path) and not path.endswith(".safetensors"):
            files = _lines_of(Path(path))[0][0].get("files")
            folder = files.get("checkpoint") if isinstance(files, dict) else None
            given = [os.path.realpath(one) for one in found]
            if (
                isinstance(folder, str)
                and checkpoints_in(Path(folder))
                and os.path.realpath(folder) not in given
            ):
                found.append(folder)
    return found


def _joined(weights_of: Run, log: Run) -> Run:
    """One Run of the checkpoints and the log of a run. The log has the numbers of more epochs, and its end."""
    weights_of.name = f"{log.name}, {weights_of.name}"
    weights_of.epochs = log.epochs or weights_of.epochs
    weights_of.facts = {group: {**rows, **log.facts[group]} for group, rows in weights_of.facts.items()}
    weights_of.command = log.command or weights_of.command
    weights_of.notes += log.notes
    return weights_of


def _read(path: Path, data: str | None, data_home: str | None) -> tuple[dict[str, Any], Run]:
    with reading(path):
        is_folder, there = path.is_dir(), path.exists()
    if not there:
        raise DataNotFoundError(f"there is no file or folder {path}")
    if is_folder:
        newest, snapshots, notes = read_folder(path)
        if newest is None:
            raise DataNotFoundError(
                f"{path} has no checkpoint that can be read: name a folder of xnn train --checkpoint"
                + "".join(f"; {note}" for note in notes[:1])
            )
        return _of_checkpoint(str(path), newest, snapshots, notes, data, data_home)
    if path.suffix == ".safetensors":
        if CHECKPOINT in read_signed(path)[1]:
            checkpoint = read(path)
            return _of_checkpoint(str(path), checkpoint, [snapshot_of(checkpoint)], [], data, data_home)
        return {}, _of_model(path, data, data_home)
    return _of_log(path, data, data_home)


def _of_log(path: Path, data: str | None, data_home: str | None) -> tuple[dict[str, Any], Run]:
    lines, notes = _lines_of(path)
    begins, ends = lines[0], next((line for line in lines if line.get("event") == "end"), None)
    plan = begins["plan"] if isinstance(begins.get("plan"), dict) else {}
    told = ("event", "seconds")
    epochs = [
        {name: value for name, value in line.items() if name not in told}
        for line in lines
        if line.get("event") == "epoch" and type(line.get("epoch")) is int
    ]
    run = Run(str(path), epochs, trained=False, notes=notes)
    facts = {
        "data": begins.get("dataset"),
        "epochs": f"{len(epochs)} of {begins.get('epochs')}",
        "steps": None if ends is None else ends.get("steps"),
        "seconds": lines[-1].get("seconds"),
        "ended": "not: the log has no end" if ends is None else ending(ends),
    }
    digests = {} if ends is None else {"losses of all steps": ends.get("losses_sha256")}
    run.facts = facts_of({**facts, **_options(begins)}, plan, digests)
    without = "A log has no weights: name the run's checkpoint folder, too, or its model file (--save)."
    run.missing = {"snapshots": without, "classes": without}
    _rebuild(run, begins, data, data_home)
    return begins, run


def _lines_of(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a log, and notes. A last line that was cut off, as by a power failure, is left out."""
    with reading(path, "the log"):
        content = path.read_bytes()
    if content.startswith(RECORD_BEGINS.encode()):
        raise CorruptFileError(
            f"{path} is a record of digests, which xnn verify reads: name the file of --log"
        )
    found: list[dict[str, Any]] = []
    rows = content.splitlines()
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if number == 1 and not (isinstance(line, dict) and line.get("event") == "start"):
            break
        if not isinstance(line, dict):
            if number == len(rows):
                return found, [f"The last line of {path} is cut off and was left out."]
            raise CorruptFileError(f"{path}:{number} is no line of a log: remove it, or name another file")
        found.append(line)
    if not found:
        raise CorruptFileError(
            f"{path} is not the log of a run: name a file of xnn train --log, a checkpoint folder or a model file"
        )
    return found, []


def _of_checkpoint(
    name: str,
    newest: Checkpoint,
    snapshots: list[Snapshot],
    notes: list[str],
    data: str | None,
    data_home: str | None,
) -> tuple[dict[str, Any], Run]:
    try:
        abouts = [about for about in newest.about["about"] if isinstance(about, dict)]
        fit = newest.about["fit"] or {}
        history = fit.get("history") or {}
        epochs = [dict(entry) for entry in history.get("epochs", ()) if type(entry.get("epoch")) is int]
        plan = dict(fit.get("plan") or {})
    except _WRONG as error:
        raise CorruptFileError(
            f"{name} has a description that no checkpoint has: use an older one"
        ) from error
    about = next((about for about in abouts if "run" in about), {})
    run = Run(name, epochs, snapshots=snapshots, notes=notes)
    facts = {
        "data": about.get("dataset"),
        "checkpoint": newest.path.name,
        "epochs": newest.about.get("epoch"),
        "steps": newest.about.get("step"),
        "seconds in steps": history.get("seconds"),
        "xnn": newest.about.get("xnn"),
    }
    found = weights_in(newest)
    run.missing = {"curves": "The checkpoint was not written during a training, so it has no curves."}
    digests: dict[str, str] = {}
    optimizer = _rebuild(run, about, data, data_home)
    if optimizer is not None and epochs:
        try:
            optimizer.rate_factor = newest.about["state"]["optimizer"]["rate_factor"]
            steps = newest.about["step"] - fit["batch"]  # of whole epochs
            add_rates(run, optimizer, steps // newest.about["epoch"])
        except (*_WRONG, ArithmeticError, XnnError):
            run.notes.append(f"The learning rate is not known: {name} does not say how many steps it took.")
    if run.model is not None:
        named = dict(run.model.named_state())
        if {n: a.shape for n, a in found.items()} == {n: tuple(p.shape) for n, p in named.items()}:
            for key, parameter in named.items():
                parameter.value = run.model.backend.to_device(found[key].astype(parameter.dtype))
            _put_back_scales(run.model, newest)
            digests["weights"] = weights.weights_sha256(run.model)
        else:
            run.trained = False
            run.missing["classes"] = "The checkpoint has other weights than a model for these data (--data)."
    run.facts = facts_of({**facts, **_options(about)}, plan, digests)
    return about, run


def _of_model(path: Path, data: str | None, data_home: str | None) -> Run:
    model, notes, header = load_model(path), read_notes(str(path)), weights.metadata(path)
    said = header["notes"]
    run = Run(str(path), model=model, task=notes.task, labels=notes.labels)
    host = {name: np.asarray(model.backend.to_host(array.value)) for name, array in model.named_state()}
    epochs = said.get("epochs") if type(said.get("epochs")) is int else None
    run.snapshots = [Snapshot(-1, -1 if epochs is None else epochs, "the saved model", lambda: host)]
    facts = {
        "data": said.get("dataset"),
        "task": notes.task,
        "epochs": epochs,
        "numerics": header.get("numerics"),
    }
    run.facts = facts_of(facts, {}, {"weights": weights.weights_sha256(model)})
    run.missing = {
        "curves": "A model file has no curves: name the run's log (--log) or checkpoint folder (--checkpoint).",
        "gradients": "A model file does not say its loss, which gradients need: name the run's checkpoint folder.",
        "command": "A model file does not say how it was trained: name the run's log or checkpoint folder.",
        "classes": "The file does not say which data the model was trained on: name them (--data).",
    }
    name = data or said.get("dataset")
    if isinstance(name, str):
        try:
            dataset = load(name, data_home)
            if dataset.task != notes.task or (notes.labels and dataset.labels != notes.labels):
                raise LabelError(f"{name} has other classes than the model {path}: name other data (--data)")
            run.examples = examples_of(dataset, name)
        except XnnError as error:
            if data:
                raise
            run.missing["classes"] = f"The data were not found: {error}. Name them (--data)."
    return run


def _options(about: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that are single values, for the table of facts."""
    run = about.get("run")
    return {k: v for k, v in run.items() if isinstance(v, (str, int, float))} if isinstance(run, dict) else {}


def _put_back_scales(model: Sequential, checkpoint: Checkpoint) -> None:
    """Scale samples as the run did. A model built for other data (--data) scales by their mean and deviation."""
    names = "scale", "offset", "shift"
    for number, layer in enumerate(model.all_layers()):
        if isinstance(layer, Rescale):
            try:
                packed = checkpoint.about["state"][f"layers.{number}"]
                held = {name: packed[name] for name in names}
                arrays = {n: checkpoint.tensors[p["$array"]] for n, p in held.items() if p is not None}
            except _WRONG as error:
                raise CorruptFileError(
                    f"{checkpoint.path} does not say how its layer {number} scales: use an older checkpoint"
                ) from error
            for name in names:
                setattr(layer, name, arrays.get(name))


def _rebuild(run: Run, about: Mapping[str, Any], data: str | None, data_home: str | None) -> Optimizer | None:
    """Build the model of a run again from its options, and take its data, for shapes, gradients and predictions.

    Returns the optimizer of the run; None if it cannot be built.
    """
    name, options = about.get("dataset"), about.get("run")
    if not isinstance(name, str) or not isinstance(options, dict):
        run.missing = {**dict.fromkeys(("layers", "classes", "command"), _IN_PYTHON), **run.missing}
        return None
    run.command = str(about.get("command", ""))
    try:
        spec = RunSpec.from_json(options, str(about.get("xnn", __version__)))
        dataset = _data_of(about, data, data_home)
        learned = spec.with_targets(dataset)
        run.model, run.loss, optimizer = spec.build(learned)
    except (XnnError, *_WRONG) as error:
        if data and isinstance(error, XnnError):
            raise
        said = f"The model could not be built again: {error}. The data may be named (--data)."
        run.missing = {"layers": said, "classes": said, **run.missing}
        return None
    run.task, run.labels, run.targets = dataset.task, dataset.labels, spec.targets
    scaling = learned.target_scaling
    try:
        if data and scaling is not None:  # of the data that the run learned, not of these
            scaling = spec.with_targets(_data_of(about, None, data_home)).target_scaling
    except XnnError as error:
        run.missing["classes"] = f"The run's own data say how its targets were scaled: {error}."
        return optimizer
    run.examples = examples_of(dataset, data or name)
    if scaling is not None:
        say_scaling(run, scaling)
    return optimizer


def _data_of(about: Mapping[str, Any], data: str | None, data_home: str | None) -> Dataset:
    """The data that were named, or those of the run, which `cli.origin.origin` has noted."""
    source = about.get("source", {"dataset": about["dataset"], "table": {}})
    table = {name: value for name, value in source["table"].items() if value not in (None, (), [])}
    return load(data or source["dataset"], data_home, **table)
