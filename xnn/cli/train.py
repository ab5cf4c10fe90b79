"""What the commands of xnn.cli do; imported only when one of them runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from xnn.backends import available_backends, backend_variable, current_numerics
from xnn.backends.memory import peak_resident_bytes
from xnn.callbacks import Callback, EarlyStopping, EpochLines, JsonLines
from xnn.cli.check import run_checks
from xnn.data import Dataset, dataset_names, load, read_idx
from xnn.data.loading import samples_from_csv
from xnn.data.tables import Columns, read_array, read_npz, samples_and_targets
from xnn.data.targets import label_numbers
from xnn.errors import (
    BackendUnavailableError,
    DataNotFoundError,
    DivergenceError,
    OptionError,
    ShapeError,
    XnnError,
)
from xnn.files import check_plot, check_writable, to_json, write_atomically
from xnn.history import History
from xnn.layers import Dense, Sequential
from xnn.layers import files as weights
from xnn.layers.sequential import classes_of
from xnn.layers.sequential import load as load_model
from xnn.optimizers import Optimizer
from xnn.runs.digests import Recorder
from xnn.runs.spec import Run
from xnn.training import Trainer

__all__ = ["check_command", "predict_command", "train_command"]


def train_command(
    dataset: str | None,
    data_home: str | None,
    table: dict[str, Any],
    batch_size: int,
    epochs: int,
    patience: int | None,
    seed: int,
    threads: int | str | None,
    kernels: str,
    save: str | None,
    plot: str | None,
    log: str | None,
    record: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> bool:
    """Train, report, write the files asked for; returns whether Ctrl-C ended it.

    table: options of `load`; options: the rest of Run's.
    """
    if save:
        check_writable(save, (".safetensors",))
    if plot:
        check_plot(plot)
    if record:
        check_writable(record)
    run = Run.from_options(batch_size=batch_size, seed=seed, **options)
    run.check_numerics(current_numerics())
    if patience and run.average is not None:
        raise OptionError(
            "--patience keeps the best epoch's weights and --average the mean over the steps: leave one of them away"
        )
    data = load(dataset, data_home, **table)
    for line in filter(None, (data.note, data.advice)):
        click.echo(f"xnn: {line}", err=True)
    run = run.resolved(data, epochs * -(-len(data.x_train) // batch_size))
    model, loss, rule = run.build(data)
    about = {"dataset": data.name, "seed": seed, "run": run.as_record()}
    about["model"] = [weights.full_text(layer) for layer in model.layers]
    callbacks: list[Callback] = [JsonLines(log, about)] if log else []
    if not (quiet or as_json):
        callbacks.append(EpochLines())
    recorder = Recorder(model, {**run.about(data), "table": table}) if record else None
    stopper = EarlyStopping(patience=patience) if patience else None
    callbacks += [callback for callback in (recorder, stopper) if callback]
    trainer = Trainer(model, loss, rule, callbacks=callbacks, threads=threads, kernels=kernels)
    notes: dict[str, Any] = {"dataset": data.name, "task": data.task, "features": data.x_train.shape[1]}
    notes["labels"], notes["columns"] = data.labels, None if data.columns is None else asdict(data.columns)
    failure: XnnError | None = None
    written: list[str] = []
    try:
        history = trainer.fit(
            (data.x_train, run.targets(data.y_train)),
            validation=(data.x_val, run.targets(data.y_val)),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            progress=not quiet,
        )
    except DivergenceError as error:
        if save and isinstance(error.history, History):  # the weights from before the step that failed
            with _averaged(rule):
                kept = _kept(error.history, stopper)
                weights.save(model, save, {**notes, "epochs": kept, "error": str(error)})
            which = (
                f"after epoch {best}, the best"
                if (best := stopper and stopper.best_epoch)
                else "before that step"
            )
            click.echo(f"xnn: {save} holds the model as it was {which}", err=True)
        if record and recorder:
            recorder.record.save(record)
        raise
    # Saved before anything else can fail; what was reached is worth printing even if it could not be.
    files: list[tuple[str | None, Callable[[str], None]]] = [
        (save, lambda path: weights.save(model, path, {**notes, "epochs": _kept(history, stopper)})),
        (record, lambda path: None if recorder is None else recorder.record.save(path)),
        (plot, history.plot),
    ]
    with _averaged(rule):
        for path, write in files:
            if path:
                try:
                    write(path)
                    written.append(path)
                except XnnError as error:
                    failure = failure or error
        tested = trainer.evaluate((data.x_test, run.targets(data.y_test)))
        result = _result(data, run, model, history, tested, stopper)
    if as_json:
        click.echo(to_json(result))
    elif not quiet:
        _summarize(result, history, save, tested)
        if save in written:
            click.echo(f"model: {save}")
        if plot in written:
            click.echo(f"learning curves: {plot}")
        if record in written and recorder:
            fast = (
                "; in fast numerics it verifies under the same plan only"
                if result["numerics"] == "fast"
                else ""
            )
            click.echo(f"record of {len(recorder.record.steps):,} steps: {record}{fast}")
    if failure is not None:
        raise failure
    return history.interrupted


def _averaged(rule: Optimizer) -> AbstractContextManager[None]:
    """With --average the model is the moving average of its weights, once there is one."""
    return rule.averaged() if rule.averages else nullcontext()


def _kept(history: History, stopper: EarlyStopping | None) -> int:
    """After how many epochs the model was as it is now."""
    return (stopper.best_epoch if stopper else 0) or len(history.epochs)


def _result(
    data: Dataset,
    run: Run,
    model: Sequential,
    history: History,
    tested: dict[str, float],
    stopper: EarlyStopping | None,
) -> dict[str, Any]:
    """What --json prints."""
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {
        "dataset": data.name,
        "task": data.task,
        "backend": history.plan["backend"],
        "numerics": history.plan["numerics"],
        "plan": history.plan,
        "seed": run.seed,
        "run": run.as_record(),
        "epochs": len(history.epochs),
        "kept_epoch": _kept(history, stopper),
        "interrupted": history.interrupted,
        "stopped": history.stopped,
        "steps": history.steps,
        "history": [{key: entry.get(key) for key in keys} for entry in history.epochs],
        "test_loss": tested["loss"],
        "test_accuracy": tested.get("accuracy"),
        "ms_per_step": round(history.ms_per_step, 4),
        "samples_per_second": round(history.samples_per_second, 1),
        "peak_rss_mb": round(peak_resident_bytes() / 2**20, 1),
        "weights_sha256": weights.weights_sha256(model),
        "losses_sha256": history.losses_sha256,
    }


def _summarize(result: dict[str, Any], history: History, save: str | None, tested: dict[str, float]) -> None:
    if history.interrupted:
        click.echo(
            f"interrupted after {history.steps:,} steps, {len(history.epochs)} whole epochs; "
            + (f"the model as it is goes to {save}" if save else "nothing is saved (--save FILE does)")
        )
    kept = result["kept_epoch"]
    if history.stopped:
        click.echo(f"stopped: {history.stopped}")
    if kept < len(history.epochs):
        click.echo(f"the model is as it was after epoch {kept}, the best of {len(history.epochs)}")
    if "average" in result["run"]:
        click.echo(
            "tested and saved: the moving average of the weights; the epochs' numbers are of the weights"
        )
    entry = history.epochs[kept - 1] if kept else {}
    shown = {f"validation {k[4:]}": v for k, v in entry.items() if k.startswith("val_")}
    shown |= {f"test {k}": v for k, v in tested.items()}
    click.echo(
        f"{result['dataset']} ({result['task']}) on {result['backend']}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in shown.items())
    )
    click.echo(
        f"{result['ms_per_step']:.3f} ms/step, {result['samples_per_second']:,.0f} samples/s, "
        f"{result['peak_rss_mb']:.0f} MB"
    )
    digits = None if result["numerics"] == "exact" else 16
    click.echo(
        f"{result['numerics']}: weights {result['weights_sha256'][:digits]}, "
        f"losses {result['losses_sha256'][:digits]}"
    )


def predict_command(model: str, data: str, data_home: str | None, output: str | None, as_json: bool) -> None:
    """Print a label or a number a line."""
    if output:
        check_writable(output, (".npy",))
    net = load_model(model)
    notes = weights.metadata(model)["notes"]
    task, labels = notes.get("task", "classification"), tuple(notes.get("labels", ()))
    columns = Columns(**notes["columns"]) if notes.get("columns") else None
    x, y = _samples(data, data_home, notes.get("features") or _width(net), columns)
    outputs = net.predict(x)
    classify = task == "classification" and outputs.ndim == 2
    predicted: Any = classes_of(outputs, net.threshold) if classify else outputs
    if output:
        import io

        content = io.BytesIO()
        np.save(content, outputs)
        write_atomically(output, content.getvalue())
    accuracy = None
    if classify and y is not None and y.ndim == 1:
        unknown = _unknown_classes(y, labels, outputs.shape[1])
        if unknown.any():
            few = list(dict.fromkeys(y[unknown].tolist()))
            named = ", ".join(map(str, few[:5])) + (", ..." if len(few) > 5 else "")
            click.echo(
                f"xnn: no accuracy: {int(unknown.sum())} of {len(y)} samples are of a class that the model does not "
                f"know ({named})",
                err=True,
            )
        else:
            accuracy = float(np.mean(predicted == label_numbers(y, labels)))
    printed = predicted.tolist()
    if classify and labels:
        printed = [labels[number] for number in printed]
    if as_json:
        click.echo(to_json({"predictions": printed, "accuracy": accuracy}))
        return
    for row in printed:
        click.echo(",".join(map(str, row)) if isinstance(row, list) else row)
    if accuracy is not None:
        click.echo(f"accuracy {accuracy:.4f} over {len(predicted)} samples", err=True)


def _unknown_classes(y: np.ndarray, labels: tuple[Any, ...], outputs: int) -> np.ndarray:
    """Which samples' classes a model of these labels and so many outputs cannot predict."""
    numbers = label_numbers(y, labels)
    if numbers.dtype.kind == "U":
        return np.ones(len(y), dtype=bool)
    return ~np.isin(numbers, np.arange(len(labels) or max(outputs, 2)))


def _width(net: Sequential) -> int:
    """How many features a model takes whose file does not say it; 0 if that cannot be told."""
    return next((layer.inputs for layer in net.layers if isinstance(layer, Dense)), 0)


def _samples(
    data: str, data_home: str | None, width: int, columns: Columns | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of so many features, and targets where the data hold them.

    columns: those of the table that the model was trained on.
    """
    path = Path(data)
    if data in dataset_names():
        named = load(data, data_home)
        return named.x_test, named.y_test
    if not path.is_file():
        raise DataNotFoundError(f"{data} is neither a file nor one of {', '.join(dataset_names())}")
    y: np.ndarray | None = None
    if path.suffix.lower() == ".csv":
        x, y = samples_from_csv(path, columns, width)
    elif path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        x_name = next((name for name in ("x", "x_test") if name in arrays), None)
        if x_name is None:
            raise OptionError(f"{data} holds {', '.join(arrays) or 'nothing'}; predict needs x (or x_test)")
        x, y = arrays[x_name], arrays.get(x_name.replace("x", "y"))
    elif path.suffix.lower() == ".npy":
        x = read_array(path)
    else:
        x = read_idx(path)
    if x.ndim < 2:
        raise ShapeError(f"{data} holds an array of shape {x.shape}; predict needs one row a sample")
    return (x.reshape(len(x), -1), None) if y is None else samples_and_targets(data, x, y)


def check_command(names: list[str], verbose: bool, table: bool = False) -> bool:
    """Print failures, a table of gradients' errors if asked, and a line a backend; returns whether all is well."""
    reasons = available_backends()
    if not names:
        backend_variable()  # all are checked, but a wrong one is not passed over
        names = [name for name, reason in reasons.items() if not reason]
        for reason in filter(None, reasons.values()):
            click.echo(f"not checked: {reason}", err=True)
    for name in names:
        if reasons.get(name):
            raise BackendUnavailableError(reasons[name])
    passed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    errors: dict[str, dict[str, float]] = {}
    for result in run_checks(names):
        (passed if result.ok else failed)[result.backend] += 1
        if result.error is not None:
            errors.setdefault(result.case, {})[result.backend] = result.error
        if verbose or not result.ok:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'} {result.backend}: {result.check}: {result.detail}")
        sys.stdout.flush()
    if table:
        width = max(map(len, errors), default=0)
        columns = [max(len(name), 7) for name in names]
        heads = "  ".join(f"{name:>{n}}" for name, n in zip(names, columns, strict=True))
        click.echo(f"{'gradient error of':<{width}}  {heads}")
        for case, found in errors.items():
            cells = (f"{found[name]:.1e}" if name in found else "failed" for name in names)
            row = "  ".join(f"{cell:>{n}}" for cell, n in zip(cells, columns, strict=True))
            click.echo(f"{case:<{width}}  {row}")
    for name in names:
        click.echo(f"{name}: {passed[name]} passed, {failed[name]} failed")
    return not failed
