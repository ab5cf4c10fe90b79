"""How well a model predicts: confusion matrix with examples, worst mistakes, scores of classes, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import losses, metrics
from xnn.backends import numerics
from xnn.errors import XnnError
from xnn.layers import Sequential
from xnn.layers.probabilities import class_probabilities
from xnn.report.run import Examples, Run, rounded
from xnn.report.samples import Gallery

__all__ = ["classes_of_run"]

_IN_CELL, _WRONG, _POINTS = 12, 24, 400
_CLASSES = 40  # in the confusion matrix
_BINS = 10


def classes_of_run(run: Run, budget: int) -> dict[str, Any] | str:
    """What the model's predictions show, or why there is nothing. budget: bytes for examples.

    "kind" is "classes" or "numbers".
    """
    examples, model = run.examples, run.model
    if model is None or examples is None or not run.trained:
        return run.missing.get("classes", "Predictions need a model and samples with their targets.")
    if not len(examples.x):
        return f"{examples.name} holds no samples."
    try:
        outputs = model.predict(examples.x)
    except XnnError as error:
        return f"The model does not take the samples of {examples.name}: {error}"
    if not np.isfinite(outputs).all():
        return "The model's outputs are NaN or infinite, so there is nothing to judge."
    with numerics("fast"):  # exact numerics have no float64, in which probabilities and errors are computed
        return _of_outputs(run, model, examples, outputs, Gallery(examples, budget))


def _of_outputs(
    run: Run, model: Sequential, examples: Examples, outputs: np.ndarray, gallery: Gallery
) -> dict[str, Any] | str:
    if run.task == "regression" or outputs.ndim != 2:
        return _numbers(run, outputs, gallery)
    labels = np.asarray(examples.y).reshape(len(outputs))
    several = (
        outputs if outputs.shape[1] > 1 else np.hstack([np.full_like(outputs, model.threshold), outputs])
    )
    if labels.min() < 0 or labels.max() >= several.shape[1]:
        return (
            f"{examples.name} has classes up to {labels.max()}, and the model knows {several.shape[1]}: name other "
            "data (--data)."
        )
    probabilities = (
        None if isinstance(run.loss, losses.Hinge) else class_probabilities(model.last_op, outputs)
    )
    return _judged(run, several, probabilities, labels.astype(np.int64), gallery)


def _judged(
    run: Run, several: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray, gallery: Gallery
) -> dict[str, Any]:
    """The parts of a classification.

    several: outputs (n, classes), of which the largest is predicted. probabilities: of the classes, None if the
    outputs stand for none.
    """
    classes, said = several.shape[1], several.argmax(axis=1)
    sure = several.max(axis=1) if probabilities is None else probabilities[np.arange(len(said)), said]
    matrix = np.asarray(metrics.ConfusionMatrix()(several, labels))
    names = [str(label) for label in run.labels] if run.labels else [str(n) for n in range(classes)]
    names += [str(n) for n in range(len(names), classes)]
    order = np.argsort(-sure, kind="stable")
    wrong = [int(row) for row in order if said[row] != labels[row]]

    def shown(row: int) -> dict[str, Any] | None:
        place = gallery.add(row)
        if place is None:
            return None
        about: dict[str, Any] = {"item": place, "true": int(labels[row]), "said": int(said[row])}
        return about | ({} if probabilities is None else {"sure": rounded(float(sure[row]))})

    worst = [item for row in wrong[:_WRONG] if (item := shown(row))]
    kept = _kept_classes(matrix)
    cells: dict[str, list[dict[str, Any]]] = {}
    rows: dict[tuple[int, int], list[int]] = {}
    for row in order:
        rows.setdefault((int(labels[row]), int(said[row])), []).append(int(row))
    inside = [cell for cell in rows if cell[0] in kept and cell[1] in kept]
    inside.sort(key=lambda cell: cell[0] == cell[1])  # mistakes first, while there is room
    for place in range(_IN_CELL):
        for cell in inside:
            if place < len(rows[cell]) and (item := shown(rows[cell][place])):
                cells.setdefault(f"{cell[0]},{cell[1]}", []).append(item)
    scores = [kind(average=None)(several, labels) for kind in (metrics.Precision, metrics.Recall, metrics.F1)]
    support = matrix.sum(axis=1)
    return {
        "kind": "classes",
        "data": _words_of(run, len(labels)),
        "names": names,
        "accuracy": rounded(metrics.Accuracy()(several, labels), 6),
        "matrix": matrix.tolist(),
        "kept": kept,
        "cells": cells,
        "wrong": worst,
        "mistakes": len(wrong),
        "scores": [
            [n, *(rounded(score[n]) for score in scores), int(support[n])] for n in range(classes)
        ],
        "calibration": _calibration(probabilities, labels),
        "gallery": gallery.items,
    }  # fmt: skip


def _kept_classes(matrix: np.ndarray) -> list[int]:
    """The classes that the confusion matrix shows: of many those with the most mistakes."""
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return sorted(np.argsort(-mistakes, kind="stable")[:_CLASSES].tolist())


def _calibration(probabilities: np.ndarray | None, labels: np.ndarray) -> dict[str, Any] | str:
    if probabilities is None:
        return "The outputs are not probabilities, and this loss gives none, so there is no calibration."
    options: dict[str, Any] = {"bins": _BINS, "probabilities": True}
    count, confidence, right = metrics.Reliability(**options)(probabilities, labels)
    error = metrics.CalibrationError(**options)(probabilities, labels)
    bins = zip(count, confidence, right, strict=True)
    return {"error": rounded(error), "bins": [[n, rounded(c), rounded(r)] for n, c, r in bins]}


def _words_of(run: Run, count: int) -> str:
    assert run.examples is not None
    return f"{count:,} samples of {run.examples.name}"


def _numbers(run: Run, outputs: np.ndarray, gallery: Gallery) -> dict[str, Any] | str:
    """The parts of a regression: scores, targets against outputs, and the largest errors."""
    assert run.examples is not None
    if run.scaling is not None:
        outputs = run.scaling.inverse().on_host(outputs)
    y = np.asarray(run.examples.y, dtype=np.float64).reshape(len(outputs), -1)
    out = outputs.astype(np.float64).reshape(len(outputs), -1)
    if y.shape != out.shape:
        return f"The model has {out.shape[1]} outputs for a sample, and the data {y.shape[1]} targets."
    kinds = {"MAE": metrics.MAE, "RMSE": metrics.RMSE, "R2": metrics.R2}
    distance = np.abs(out - y).max(axis=1)
    worst = [
        {
            "item": place,
            "true": [rounded(v) for v in y[row]],
            "said": [rounded(v) for v in out[row]],
        }
        for row in np.argsort(-distance, kind="stable")[:_WRONG]
        if (place := gallery.add(int(row))) is not None
    ]
    points = np.linspace(0, len(y) - 1, min(len(y), _POINTS)).astype(int)
    return {
        "kind": "numbers",
        "data": _words_of(run, len(y)),
        "scores": {name: rounded(kind()(out, y), 6) for name, kind in kinds.items()},
        "points": [[rounded(y[row, 0]), rounded(out[row, 0])] for row in points],
        "wrong": worst,
        "gallery": gallery.items,
    }
