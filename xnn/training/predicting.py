"""Predicts by a Trainer: alone, or with the processes that train together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import chosen_numerics, current_numerics, numerics
from xnn.backends.host_arrays import as_host_array
from xnn.backends.ranks.group import Ranks
from xnn.backends.threads import limit_threads, threads_of_rank
from xnn.layers.files import weights_sha256
from xnn.training.evaluation import EVALUATION_BATCH
from xnn.training.together import Together, backend_fact, check_same, joined, known

__all__ = ["Predicting", "check_same_data", "check_same_model", "predicted"]


def check_same_model(ranks: Ranks | None, model: Any) -> None:
    """Raise RankError, on all ranks, if they have other models: layers with other options, or other weights."""
    if ranks is not None:
        check_same(ranks, _facts_of(model))


def _facts_of(model: Any) -> dict[str, str]:
    layers = json.dumps(model.config(), sort_keys=True, default=str)
    return {"model": layers, "weights": weights_sha256(model)}


def check_same_data(
    ranks: Ranks,
    model: Any,
    arrays: Sequence[Any],
    batch_size: int,
    numerics: str,
    parts: Any = None,
    known_model: bool = False,
) -> None:
    """Raise RankError, on all ranks, if they are about to compute other outputs, or in another way.

    arrays: samples, and perhaps their targets and weights. numerics: those that compute. parts: what `check_alike`
    compares of a Trainer; None for a prediction. known_model: whether `check_same_model` has compared the model.
    """
    facts = {
        **({} if known_model else _facts_of(model)),
        "data": known(arrays),
        "batch_size": batch_size,
        "numerics": numerics,
        "model, loss, optimizer, metrics or callbacks": json.dumps(parts, sort_keys=True, default=str),
    }
    check_same(ranks, facts | backend_fact(model.backend, numerics))


def predicted(
    ranks: Ranks | None, model: Any, x: Any, batch_size: int, known_model: bool = False
) -> np.ndarray:
    """The outputs of a model for samples, as `model.predict` gives them.

    ranks: the processes that share the batches; each gets the outputs for all samples. None: this one computes all.
    known_model: as for `check_same_data`.

    The batches are those of one process. So are the outputs, bit for bit: in exact numerics, and in fast numerics if
    a process has as many threads. Raises RankError, on all ranks, if samples, batch size or numerics differ.
    """
    if ranks is None:
        return np.asarray(model.predict(x, batch_size))
    x = as_host_array(x, "x", by_rows=True)
    mode = chosen_numerics() or model.numerics or current_numerics()
    check_same_data(ranks, model, [x], batch_size, mode, known_model=known_model)
    with limit_threads(threads_of_rank(ranks.on_this_machine)):
        return np.asarray(model._predict(x, batch_size, True, ranks))


class Predicting(Together):
    """What a Trainer predicts. model, numerics: the Trainer's."""

    model: Any
    numerics: str | None

    def predict(self, x: Any, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
        """The model's outputs for samples, as a NumPy array (n, ...), in the numerics of this trainer.

        x: samples (n, ...), as `model.predict` takes them. batch_size: samples that go through the model at a time;
            1024 by default.

        Processes that train together (`workers`) share the batches: each of them calls this method with the same
        samples, and gets the outputs for all. In exact numerics they have the bits of one process. `model.predict`
        computes in the process alone that calls it. Raises as `model.predict` does; RankError if a process has other
        samples, weights or options.

            >>> import numpy as np, xnn
            >>> from xnn import layers, losses, optimizers
            >>> model = xnn.Sequential(layers.Dense(4, 3), seed=1)
            >>> trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
            >>> trainer.predict(np.zeros((2, 4))).tolist()
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        """
        ranks = self.ranks
        with joined(ranks), numerics(self.numerics):
            return predicted(ranks, self.model, x, batch_size)
