"""The side of `xnn verify` that all processes of a launcher train together: `workers=mpi`."""

from __future__ import annotations

import json
from typing import Any

from xnn.backends.ranks.group import Ranks
from xnn.history import History
from xnn.layers import Sequential
from xnn.runs.digests import Digests, Record, Recorder
from xnn.runs.replay import DigestSide, parse_settings
from xnn.runs.replay_process import train_live

__all__ = ["RanksSide", "trains_together"]


def trains_together(settings: str) -> bool:
    """Whether a live run with these settings is trained by all processes of a launcher.

    >>> trains_together("workers=mpi,threads=1"), trains_together("threads=1")
    (True, False)
    """
    return "workers" in parse_settings(settings)


class RanksSide(DigestSide):
    """A live run of several processes as one side of a comparison. Each calls `begin`, which trains all of it.

    settings: how it is executed, with workers=mpi. task: what is run, as for `LiveSide`. ranks: the processes.
    """

    def __init__(self, settings: str, task: dict[str, Any], ranks: Ranks) -> None:
        super().__init__(settings, Record({}, {}, Digests("", "", ""), []))
        chosen = parse_settings(settings)
        del chosen["workers"]  # those that are in force here
        threads = int(chosen.pop("threads")) if "threads" in chosen else None
        self._task, self._ranks = {**task, **chosen, "threads": threads}, ranks

    def begin(self) -> None:
        """Train together with the other processes. Raises what prevents this."""
        steps = self._task["steps"]

        def until(model: Sequential, about: dict[str, Any], note: str) -> Recorder:
            self.note = note
            recorder = _Until(model, about, steps)
            self.record = recorder.record
            return recorder

        try:
            train_live(until, **self._task)
        except StopIteration:
            about = json.loads(json.dumps(self.record.about))  # with lists, as the other side has them
            about["plan"]["backend"] += f" by {self._ranks.size} ranks"
            self.record.about = about


class _Until(Recorder):
    """A recorder on every rank that ends the training after so many steps."""

    first_rank_only = False

    def __init__(self, model: Sequential, about: dict[str, Any], steps: int) -> None:
        super().__init__(model, about)
        self._most = steps

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        super().on_step(history, epoch, step, loss)
        if self.steps == self._most:
            raise StopIteration  # it has all steps that are compared
