"""Reporting: the method `report` of a Trainer."""

from __future__ import annotations

import os
from typing import Any

from xnn.files import check_writable

__all__ = ["Reporting"]


class Reporting:
    """What a Trainer tells of its last fit in one HTML file."""

    def report(self, path: str | os.PathLike[str], data: Any = None, name: str = "run") -> None:
        """Write an HTML file about the last fit: curves, weights, mistakes, calibration, layers, plan and digests.

        path: the .html file; an older report is replaced, whole or not at all. It has less than 2 MB and needs no
            network.
        data: a pair (x, y) of samples and targets, or a `data.Dataset`, of which the test set is taken. Default None:
            the report has no predictions, gradients or outputs of layers.
        name: the title. Default "run".

        With a `callbacks.Checkpoint` the report shows the weights of all its checkpoints, and of the model; without
        one those of the model. Raises OptionError for a place that cannot be written and for other data, ShapeError
        for x and y of two lengths, DTypeError for targets that are no numbers, DiskError when the disk is full.

            >>> import pathlib, tempfile
            >>> import numpy as np, xnn
            >>> from xnn import layers, losses, optimizers
            >>> x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(-1, 1)
            >>> model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 2), seed=0)
            >>> y = (x[:, 0] > 0.2).astype(int)
            >>> trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.03))
            >>> history = trainer.fit((x, y), epochs=5, progress=False)
            >>> path = pathlib.Path(tempfile.mkdtemp(), "report.html")
            >>> trainer.report(path, data=(x, y))
            >>> path.read_text().startswith("<!doctype html>")
            True
        """
        from xnn.report.of_trainer import run_of_trainer
        from xnn.report.page import BEGINS, write

        check_writable(path, (".html",), begins=BEGINS)
        if getattr(self, "rank", 0) == 0:
            write([run_of_trainer(self, data, name)], path)
