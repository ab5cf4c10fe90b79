"""EarlyStopping: ends a training that has stopped improving."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from xnn.callbacks.callback import Callback
from xnn.errors import OptionError
from xnn.history import History
from xnn.options import check_count, check_real, is_one_of, shown

__all__ = ["EarlyStopping"]


#: The direction in which a number improves, by the last word of its name; topK is "top" here.
_DIRECTIONS = {
    **dict.fromkeys(("loss", "error", "mae", "mse", "rmse"), "min"),
    **dict.fromkeys(("accuracy", "top", "precision", "recall", "f1", "r2"), "max"),
}


class EarlyStopping(Callback):
    """Ends training when a number of the epochs, such as the validation loss, has stopped improving.

    monitor: the name of a number in history.epochs, such as "val_loss", "loss" or "val_accuracy". Default "val_loss".
    patience: the run ends after this many epochs in a row without improvement. Default 5.
    min_delta: how much better than the best a value must be to be an improvement. Default 0.
    mode: "min" or "max", the direction in which `monitor` improves. Default "auto": by the name, which works for
        losses, errors and xnn's own metrics.
    restore_best: whether the model gets the weights of its best epoch back when training ends, however it ends. The
        optimizer's state stays the last one. They are kept in a temporary file (TMPDIR says where), and in memory
        only if it cannot be written. Default True.

    After each epoch `best_epoch` is the number of the best epoch (0 before there is one) and `best` its value. NaN
    does not count as an improvement. Each fit starts without a best epoch.

    Raises OptionError for other options, and after the first epoch if it has no number of this name.

        >>> from xnn import callbacks
        >>> callbacks.EarlyStopping("val_accuracy", patience=3)
        EarlyStopping(monitor='val_accuracy', patience=3, mode='max')

    Source: Prechelt, "Early stopping - but when?", 1998.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if not isinstance(monitor, str):
            raise OptionError(f"monitor must be a name such as 'val_loss', got {shown(monitor)}")
        if isinstance(mode, str) and mode == "auto":
            mode = _DIRECTIONS.get(re.sub("top[0-9]+", "top", monitor.rpartition("_")[2]), "")
            if not mode:
                raise OptionError(
                    f"mode='auto' cannot tell how {monitor!r} improves: give mode='min' or mode='max'"
                )
        if not is_one_of(mode, ("min", "max")):
            raise OptionError(f"mode must be 'auto', 'min' or 'max', got {shown(mode)}")
        self.monitor, self.mode, self.restore_best = monitor, mode, restore_best
        self.patience = check_count("patience", patience)
        self.min_delta = check_real("min_delta", min_delta, 0.0)
        self.best, self.best_epoch = math.nan, 0

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self.best, self.best_epoch = math.nan, 0
        self._waited, self._last = 0, math.nan
        self._kept: dict[str, Any] = {}

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        value = entry.get(self.monitor)
        if isinstance(value, bool) or not isinstance(value, Real):
            there = [name for name, number in entry.items() if isinstance(number, Real) and name != "epoch"]
            hint = "; val_ numbers need validation data" if self.monitor.startswith("val_") else ""
            found = f"which is {value!r}" if self.monitor in entry else "which the epochs do not have"
            raise OptionError(
                f"EarlyStopping got monitor={self.monitor!r}, {found}: choose {', '.join(there)}{hint}"
            )
        self._last = float(value)
        gain = self._last - self.best if self.mode == "max" else self.best - self._last
        if gain > self.min_delta or (not self.best_epoch and not math.isnan(self._last)):
            self.best, self.best_epoch, self._waited = self._last, entry["epoch"], 0
            if self.restore_best:
                names, arrays = zip(*((name, p.value) for name, p in self.model.named_state()), strict=True)
                host = self.model.backend.to_host_all(arrays)
                self._kept = _in_a_file(dict(zip(names, host, strict=True)))
            return
        self._waited += 1
        if self._waited >= self.patience:
            history.stopped = self._reason()

    def _reason(self) -> str:
        many = f"{self._waited} epoch{'' if self._waited == 1 else 's'}"
        now = " and is NaN" if math.isnan(self._last) else ""
        if not self.best_epoch:
            return f"{self.monitor} was NaN in all of {many}: no epoch was the best"
        return f"{self.monitor} has not improved on epoch {self.best_epoch}'s {self.best:.6g} in {many}{now}"

    def on_fit_end(self, history: History) -> None:
        parameters = dict(self.model.named_state())
        for name, array in self._kept.items():
            parameters[name].value = self.model.backend.to_device(np.array(array))
        self._kept = {}

    def restore(self, state: dict[str, Any]) -> None:
        found: dict[str, Any] = {"best": float(state["best"]), "best_epoch": int(state["best_epoch"])}
        if "_kept" in state:  # a fit had begun
            found |= {"_waited": int(state["_waited"]), "_last": float(state["_last"])}
            found["_kept"] = _in_a_file(state["_kept"])
        super().restore({**state, **found})  # also what a subclass has


def _in_a_file(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of arrays, in a temporary file without a name; in memory if it cannot be written."""
    if not arrays:
        return {}
    try:
        with tempfile.TemporaryFile(prefix="xnn-") as file:
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()  # or a full disk would be found out when the file is read
            whole = np.memmap(file, np.uint8, "r")  # one map for all: each map keeps a file open
    except OSError:
        return {name: array.copy() for name, array in arrays.items()}
    kept, place = dict[str, np.ndarray](), 0
    for name, array in arrays.items():
        kept[name] = whole[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        place += array.nbytes
    return kept
