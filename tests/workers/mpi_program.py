"""Trains by several processes and prints a line of JSON on rank 0; the first argument says what goes wrong.

mpiexec -n 3 python mpi_program.py raise
"""

import errno
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends.ranks.launch import launched
from xnn.layers.files import weights_sha256
from xnn.training import together

SCENARIO, NUMERICS, WORKERS = sys.argv[1:4]
LAUNCH = launched()
RANK = 0 if LAUNCH is None else LAUNCH.rank


def full(file):
    """Stands for a disk that has become full."""
    raise OSError(errno.ENOSPC, "No space left on device")


class Fault(callbacks.Callback):
    """At a step in the middle of the training, something happens on rank 1, or rank 0's disk is full."""

    def on_step(self, history, epoch, step, loss):
        if SCENARIO == "slow" and RANK == 1:
            time.sleep(0.1)

    def on_epoch_end(self, history, entry):
        if SCENARIO == "raise" and RANK == 1:
            raise ZeroDivisionError("a bad row")
        if SCENARIO == "freeze" and RANK == 1:
            self.layer.weight.frozen = True
        if SCENARIO == "kill" and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if SCENARIO == "disk" and RANK == 0:
            os.fsync = full
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
        layers.Dense(20, 700, bias=False),  # so many weights that gradients lie in shared memory
        layers.BatchNorm(700),
        layers.ReLU(),
        layers.Dense(700, 4),
        seed=1,
    )
    if SCENARIO == "weights" and RANK == 1:
        model.parameters()[0].value = model.parameters()[0].value + 1.0
    if SCENARIO == "version" and RANK == 1:
        together.__version__ = "0.1"
    folder = sys.argv[4] if len(sys.argv) > 4 else None
    fault = Fault()
    fault.layer = model[1]
    watchers = [fault, *([callbacks.Checkpoint(folder, every="2steps")] if folder else [])]
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(),
        optimizers.Adam(1e30 if SCENARIO == "nan" else 0.01), callbacks=watchers, numerics=NUMERICS,
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
