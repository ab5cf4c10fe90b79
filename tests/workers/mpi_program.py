"""Trains by several processes and prints a line of JSON on rank 0; the first argument says what goes wrong.

mpiexec -n 3 python mpi_program.py raise
"""

import json
import os
import pathlib
import signal
import sys
import tempfile

import numpy as np

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends.ranks.launch import launched
from xnn.layers.files import weights_sha256

SCENARIO, NUMERICS, WORKERS = sys.argv[1:4]
LAUNCH = launched()
RANK = 0 if LAUNCH is None else LAUNCH.rank


class Fault(callbacks.Callback):
    """At a step in the middle of the training, something happens on rank 1."""

    def on_epoch_end(self, history, entry):
        if SCENARIO == "raise" and RANK == 1:
            raise ZeroDivisionError("a bad row")
        if SCENARIO == "kill" and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if SCENARIO == "interrupt" and RANK == 1 and entry["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)


def main():
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (96, 20), dtype=np.uint8), rng.integers(0, 4, 96)
    if SCENARIO == "data" and RANK == 1:
        data[0][5] += 1
    if SCENARIO == "shard":  # each rank reads it from a file of its own, and checks its rows
        path = pathlib.Path(tempfile.mkdtemp(), "x.npy")
        x = (data[0] / 255).astype(np.float32)
        x[90, 3] = np.nan
        np.save(path, x)
        data = np.load(path, mmap_mode="r"), data[1]
    model = xnn.Sequential(
        layers.Rescale(1 / 255),
        layers.Dense(20, 8, bias=False),
        layers.BatchNorm(8),
        layers.ReLU(),
        layers.Dense(8, 4),
        seed=1,
    )
    folder = sys.argv[4] if len(sys.argv) > 4 else None
    watchers = [Fault(), *([callbacks.Checkpoint(folder, every="2steps")] if folder else [])]
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), callbacks=watchers, numerics=NUMERICS,
        kernels="numpy" if model.backend.is_host else "auto", workers=WORKERS,
    )  # fmt: skip
    if folder:
        trainer.resume(folder)
    epochs = 400 if SCENARIO == "interrupt" else 2 if SCENARIO == "half" else 4
    history = trainer.fit(data, validation=data, epochs=epochs, batch_size=32, progress=False)
    if SCENARIO == "exit" and RANK == 1:
        sys.exit(3)
    tested = trainer.evaluate(data)
    if SCENARIO == "after" and RANK == 1:
        raise RuntimeError("after the training")
    if trainer.rank == 0:
        found = {"weights": weights_sha256(model), "losses": history.losses_sha256, "epochs": history.epochs}
        print(
            json.dumps(
                {
                    **found,
                    "tested": tested,
                    "interrupted": history.interrupted,
                    "ranks": history.plan.get("ranks", 1),
                    "backend": history.plan["backend"],
                }
            )
        )


main()
