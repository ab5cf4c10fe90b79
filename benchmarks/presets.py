"""The presets of `xnn bench`: which networks are timed, and with which batch sizes."""

from __future__ import annotations

from collections.abc import Sequence

from xnn.benchmarks import networks, suite
from xnn.benchmarks.contestants import Task
from xnn.errors import OptionError

__all__ = ["are_layered", "read", "tasks", "title"]

_BATCHES, _BATCHES_OF_IMAGES = (32, 128, 512), (32, 64, 128)


def read(text: str | None) -> list[str]:
    """The names in the option --preset; None stands for the article's network.

    Raises OptionError for another name, and for presets of both kinds: those of `networks.NETWORKS` have other
    contestants than networks of dense layers.
    """
    names = list(dict.fromkeys(("article" if text is None else text).split(",")))
    known = (*suite.NETWORKS, "targets", *networks.NETWORKS)
    for name in names:
        if name not in known:
            raise OptionError(f"there is no preset {name!r}: choose {', '.join(known)}")
    if len({name in networks.NETWORKS for name in names}) > 1:
        raise OptionError(
            f"--preset {text} mixes dense networks with {', '.join(networks.NETWORKS)}: time them apart"
        )
    if "targets" in names and len(names) > 1:
        raise OptionError("--preset targets is five networks already: omit the other names")
    return names


def are_layered(names: Sequence[str]) -> bool:
    """Whether the presets are those of `networks.NETWORKS`."""
    return names[0] in networks.NETWORKS


def tasks(names: Sequence[str], batch_sizes: Sequence[int], dataset: str) -> list[tuple[str, int, Task]]:
    """The networks by name, each with a batch size and the task."""
    if names[0] == "targets":
        pairs = list(suite.TARGETS)
    else:
        sizes = batch_sizes or (_BATCHES_OF_IMAGES if are_layered(names) else _BATCHES)
        pairs = [(name, batch) for name in names for batch in sizes]
    found = []
    for name, batch in pairs:
        rows = max(8192, 8 * batch)
        if name in networks.NETWORKS:
            rate = 0.001 if networks.has_adamw(name) else 0.02
            task = Task((784, 10), batch, min(rows, 32 * batch), dataset, learning_rate=rate, network=name)
        else:
            task = Task(suite.NETWORKS[name], batch, rows, dataset)
        found.append((name, batch, task))
    return found


def title(task: Task) -> str:
    """The network, for the title of its table."""
    return task.network or "-".join(map(str, task.widths))
