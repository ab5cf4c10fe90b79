"""Where a run comes from, for its log and checkpoints: the command, the data, and the files that it writes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from xnn.backends import current_backend, current_numerics

__all__ = ["command_text", "origin"]


def command_text(context: click.Context) -> str:
    """The command line, with the options that were given and the values that they have.

    `origin` adds what variables of the environment chose.
    """
    words = ["xnn", str(context.command.name)]
    source = click.core.ParameterSource.COMMANDLINE
    for option in context.command.params:
        if option.name is None or context.get_parameter_source(option.name) is not source:
            continue
        value: Any = context.params.get(option.name, context.meta.get("number of the device"))
        on, off = option.opts[-1], option.secondary_opts
        if isinstance(value, bool):
            words.append(on if value else off[-1] if off else on)
        elif getattr(option, "multiple", False):
            words += [word for one in value for word in (on, str(one))]
        else:
            words += [on, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def origin(
    command: str, dataset: str, table: Mapping[str, Any], files: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a log and checkpoints hold for `xnn report`.

    "command": the command line, if known, with the data set, numerics and backend that were chosen elsewhere.
    "source": the data set as it was named, and how a table is read.
    "files": what the run writes, by the option without dashes.
    """
    found: dict[str, Any] = {}
    if command:
        backend = current_backend().address
        chosen = {"--dataset": dataset, "--numerics": current_numerics(), "--backend": backend}
        words = [
            w
            for option, value in chosen.items()
            if option not in shlex.split(command)
            for w in (option, value)
        ]
        found["command"] = f"{command} {shlex.join(words)}".strip()
    found["source"] = {
        "dataset": dataset,
        "table": {key: list(v) if isinstance(v, tuple) else v for key, v in table.items()},
    }
    found["files"] = {key: path for key, path in files.items() if path}
    return found
