"""Checkpoint: writes checkpoints into a folder while a training goes on, and finds the newest one that is whole."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from xnn.callbacks.callback import Callback
from xnn.callbacks.durations import seconds_of
from xnn.errors import CorruptFileError, DataError, OptionError
from xnn.files import as_path, check_folder, flush_folder, lock_file, notice, replace_file
from xnn.history import History
from xnn.layers.safetensors_file import check_signature
from xnn.options import check_count, is_one_of, shown

__all__ = ["Checkpoint", "checkpoints_in"]

_NAME, _BEST, _LOCK = re.compile(r"step-(\d{9,18})\.safetensors"), "best.safetensors", "lock"
_SHARE = 0.03  # of the time may go into writing best epochs besides the checkpoints that `every` asks for
_OLD = ".old"  # follows the names of checkpoints that are not used any more
_EVERY = re.compile(r"(\d{1,9})\s*(epoch|step)s?")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first, and last the best one. A folder that is missing has none."""
    try:
        names = sorted(
            (path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step_of, reverse=True
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror}; choose another --checkpoint"
        ) from error
    return [*names, *(path for path in [folder / _BEST] if path.is_file())]


def _step_of(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


class Checkpoint(Callback):
    """Writes checkpoints into a folder, from which `Trainer.resume` goes on as if the training had never stopped.

    folder: is made when training starts, if it is missing. It is for one training at a time.
    every: how often: a number of epochs or steps, such as "1epoch" or "500steps", or a duration such as "30s",
        "10min", "2h" or "3h50m". Default "1epoch".
    keep: how many of the last checkpoints are kept, besides the one of the best epoch by the validation loss, or by
        the loss where there is no validation. Default 3.
    on_nan: what happens when a number becomes NaN or infinite. Default "stop": DivergenceError is raised. With
        "lower-lr" training goes back to the last checkpoint and on with half the learning rate
        (`optimizer.rate_factor`), at most three times in a fit; `history.lowered` says when. If it diverges again
        before another checkpoint, that one was too late: it is renamed to `.old`, and the one before it is taken. A
        checkpoint is then written at the beginning, too.
    about: JSON values to keep in each file, such as the name of the data set. Default none.

    A checkpoint is also written when Ctrl-C or a callback ends the training, at the end of the last epoch, and when
    the signal SIGUSR1 comes. Each is a file of its own, `step-000001563.safetensors`, which is written under another
    name, checked, flushed to the disk and renamed: a process that is killed leaves whole files. `best.safetensors` is
    the one of the best epoch, whatever `every` says. Only where writing it after each epoch would take more than 3 %
    of the time, as with epochs of milliseconds, may it be that of an earlier epoch. If a file cannot be written, as
    on a full disk, a message says so, training goes on, and the last checkpoint stays.

    `trainer.resume(folder)` goes on from the newest checkpoint that is whole; in an empty folder it begins afresh, so
    that one program serves a job that is started again and again.

    Raises OptionError for other options, for a folder that cannot be written or that another training uses, and when
    the training starts in a folder with later checkpoints than its own step.

        >>> import tempfile
        >>> import numpy as np, xnn
        >>> from xnn import callbacks, layers, losses, optimizers
        >>> folder = tempfile.mkdtemp()
        >>> x = np.linspace(-1.0, 1.0, 64).reshape(-1, 1)
        >>> model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=0)
        >>> watchers = [callbacks.Checkpoint(folder, every="2epochs", keep=1)]
        >>> trainer = xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.03), callbacks=watchers)
        >>> trainer.resume(folder)  # None: there is no checkpoint yet
        >>> history = trainer.fit((x, x * x), epochs=10, progress=False)
        >>> sorted(path.name for path in watchers[0].folder.iterdir())
        ['best.safetensors', 'lock', 'step-000000020.safetensors']
    """

    #: It changes nothing in the training, so that a checkpoint does not name it.
    bystander = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: str = "1epoch",
        keep: int = 3,
        about: dict[str, Any] | None = None,
        on_nan: str = "stop",
    ) -> None:
        found = _EVERY.fullmatch(every) if isinstance(every, str) else None
        many = int(found[1]) if found else seconds_of(every)
        if not many:
            raise OptionError(f"every must be such as '1epoch', '500steps' or '10min', got {shown(every)}")
        if not is_one_of(on_nan, ("stop", "lower-lr")):
            raise OptionError(f"on_nan must be 'stop' or 'lower-lr', got {shown(on_nan)}")
        self.on_nan = on_nan
        self.folder, self.every, self.keep = as_path(folder), every, check_count("keep", keep)
        self.about = about
        self._many, self._unit = many, found[2] if found else "s"
        self.slowest = 0.0  # the longest time that a file took to write, in seconds
        self._lock: IO[str] | None = None
        self._asked = False
        self._writer: threading.Thread | None = None
        self._before: Any = None
        check_folder(self.folder, "checkpoints")

    def open(self, step: int, resumed: bool, writes: bool = True) -> None:
        """Lock the folder, and remove what a killed process has left. `fit` calls it before the first step.

        writes: whether this process writes; of several that train together rank 0 does, and others only count steps.
        """
        self._epochs, self._step, self._when, self._written = 0, step, time.monotonic(), 0
        self._best_when = self._when
        if not writes:
            return
        check_folder(self.folder, "checkpoints")
        self.folder = self.folder.absolute()  # the same one after os.chdir
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / _LOCK, "a", encoding="utf-8")  # noqa: SIM115 - `close` closes it
            lock_file(self._lock)
        except BlockingIOError:
            self.close()
            raise OptionError(
                f"another training writes checkpoints into {self.folder}: wait for its end, or choose another folder"
            ) from None
        except OSError as error:
            raise OptionError(
                f"cannot write into {self.folder}: {error.strerror}; choose another folder"
            ) from error
        later = [path for path in checkpoints_in(self.folder) if _step_of(path) > step]
        if later and not resumed:
            self.close()
            raise OptionError(
                f"{self.folder} holds {later[0].name}, later than this training's step {step:,}: resume from the "
                "folder (--resume), or choose an empty one"
            )
        for path in later:  # damaged, or of a training from which resume went back
            _give_up(path)
        with contextlib.suppress(OSError):
            for path in self.folder.glob(".xnn-*"):
                path.unlink()
        self._listen()

    def _listen(self) -> None:
        """Let SIGUSR1 ask for a checkpoint, where it would end the process otherwise."""
        number = getattr(signal, "SIGUSR1", None)
        if number is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(number) is signal.SIG_DFL:
            self._before = signal.signal(number, lambda *_: setattr(self, "_asked", True))

    def close(self) -> None:
        """Wait for the last checkpoint, and unlock the folder. `fit` calls it at the end."""
        self.wait()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        self._epochs += 1

    def falls_on(self, step: int) -> bool:
        """Whether this step, counted over all fits, ends with a checkpoint."""
        return self._unit == "step" and step // self._many > self._step // self._many

    def is_due(self, step: int, ends_epoch: bool) -> bool:
        """Whether to write a checkpoint now, after this step."""
        if self._asked:
            return True
        if self._unit == "step":
            return self.falls_on(step)
        if self._unit == "epoch":
            return ends_epoch and self._epochs >= self._many
        return time.monotonic() - self._when >= self._many

    def is_new(self, step: int) -> bool:
        """Whether the last checkpoint is of another step, or was not written."""
        self.wait()
        return self._step != step or not (self.folder / self._name(step)).exists()

    @staticmethod
    def writes(name: str) -> bool:
        """Whether a file of this name may be one of those that are written into the folder."""
        name = name.removesuffix(_OLD)
        return name in (_BEST, _LOCK) or _NAME.fullmatch(name) is not None

    def _name(self, step: int) -> str:
        return f"step-{step:09d}.safetensors"

    def has_time(self) -> bool:
        """Whether the best epoch may be written although no checkpoint is due: at most 3 % of the time goes there."""
        return time.monotonic() - self._best_when >= self.slowest / _SHARE

    def skip(self, step: int) -> None:
        """Count from a step at which rank 0 writes a checkpoint, and this process does not."""
        self._epochs, self._step, self._when = 0, step, time.monotonic()

    def write(self, step: int, content: bytes, best: bool, last: bool = True) -> None:
        """Write a checkpoint, in a thread of its own while training goes on: disks take long to flush a file.

        best: whether this is the end of the best epoch so far. last: whether it is one of those that `every` asks
        for, or else only the best one.
        """
        self.wait()
        if last:
            self._epochs, self._step, self._when, self._asked = 0, step, time.monotonic(), False
        if best:
            self._best_when = time.monotonic()
        arguments = step, content, best, last
        self._writer = threading.Thread(target=self._write, args=arguments, name="xnn checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def set_aside(self, step: int) -> None:
        """Rename the checkpoint of this step if it is the newest one and there is another."""
        newest, *others = checkpoints_in(self.folder) or [self.folder]
        if others and newest.name == self._name(step):
            _give_up(newest)

    @property
    def best(self) -> Path:
        """The file of the best epoch."""
        return self.folder / _BEST

    def give_up_best(self) -> None:
        """Rename the file of the best epoch: that epoch is not one of the training any more."""
        _give_up(self.best)

    def went_back(self, step: int) -> None:
        """Count from this step again, to which the training went back."""
        self._epochs, self._step, self._when = 0, step, time.monotonic()

    def _write(self, step: int, content: bytes, best: bool, last: bool) -> None:
        """Write a checkpoint now. A file that cannot be written is reported, and training goes on."""
        path, start = self.folder / self._name(step) if last else self.best, time.monotonic()
        try:
            replace_file(path, content, check_signature)
            if best and last:
                self._link(path)
            self._written += last
            given_up = self.folder.glob(f"*.safetensors{_OLD}") if self._written >= self.keep else ()
            for old in [
                *[p for p in checkpoints_in(self.folder) if _step_of(p) >= 0][self.keep :],
                *given_up,
            ]:
                old.unlink(missing_ok=True)
        except (OSError, CorruptFileError, DataError) as error:
            there = next((p.name for p in _silently(checkpoints_in, self.folder)), "")
            stays = f"the last one, {there}, stays" if there else "there is no other one"
            why = getattr(error, "strerror", None) or str(error)
            notice(
                f"xnn: no checkpoint of step {step:,} in {self.folder} ({why}): make room, or make the folder "
                f"writable again; training goes on, {stays}"
            )
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _link(self, path: Path) -> None:
        """Give a checkpoint the second name best.safetensors."""
        best, temporary = self.best, self.folder / f".xnn-{path.stem}"
        try:
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
            os.replace(temporary, best)
        except OSError:  # this file system has no links
            replace_file(best, path.read_bytes())
        flush_folder(self.folder)

    def state(self) -> None:
        return None


def _give_up(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.replace(path.with_name(f"{path.name}{_OLD}"))


def _silently(function: Callable[[Path], list[Path]], folder: Path) -> Iterator[Path]:
    with contextlib.suppress(Exception):
        yield from function(folder)
