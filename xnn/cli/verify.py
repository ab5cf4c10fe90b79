"""`xnn verify`: compare two runs step by step, and show the first bit in which they differ."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

import click
import numpy as np

from xnn import __version__
from xnn.backends import backend_wanted, current_numerics
from xnn.backends.ranks.group import current_ranks
from xnn.cli.options import given_options, run_options, with_table
from xnn.cli.surroundings import say
from xnn.errors import DataError, OptionError
from xnn.files import notice
from xnn.runs.digests import Record, TensorKind, read_record
from xnn.runs.replay import (
    NO_DISTANCE,
    Difference,
    LiveSide,
    RecordSide,
    Side,
    as_text,
    distance,
    lock_step,
)
from xnn.runs.replay_ranks import RanksSide, trains_together
from xnn.runs.schedule_text import recorded_schedule
from xnn.runs.spec import RunSpec

__all__ = ["command", "verify_command"]

_STEPS = 200


# Not a docstring: `python -OO` removes those.
_HELP = """\
Compare two runs step by step and bit by bit.

Shows the first step, layer and tensor that differ, or says that all bits agree. Exits with 1 if they differ.

A and B are each a file of `xnn train --record`, or settings of a run that is trained now, in a process of its
own. Settings are separated by commas: backend=NAME (such as cupy:1, the second GPU), threads=N, kernels=NAME,
blas=CORE (kernels of OpenBLAS, such as Haswell). If A or B is a record, its options are those of the run;
otherwise they are given here, and a schedule is as long as --steps. Under mpiexec or srun, workers=mpi is a run that
all processes train together; the other side runs once.

\b
xnn verify threads=1 threads=2
xnn verify backend=numpy,blas=Haswell backend=cupy
xnn verify run.jsonl backend=numpy              does this machine get the recorded bits?
mpiexec -n 4 xnn verify threads=1 workers=mpi   do four processes get the bits of one?
"""


@click.command("verify", help=_HELP)
@click.argument("a")
@click.argument("b")
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="How many steps to compare. Default: 200, or all steps of a record.",
)
@click.option(
    "--numerics",
    metavar="NAME",
    default="exact",
    show_default=True,
    help="exact or fast. XNN_NUMERICS has no effect here.",
)
@run_options
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """The command `xnn verify`; its help is _HELP."""
    if not verify_command(given=given_options(context), **with_table(options)):
        sys.exit(1)


def verify_command(
    a: str,
    b: str,
    steps: int | None,
    numerics: str,
    dataset: str | None,
    data_home: str | None,
    table: dict[str, Any],
    given: set[str],
    **run: Any,
) -> bool:
    """Compare two runs and print the result. Returns whether all bits agree.

    given: the names of the options that the user gave. Those of the run are refused beside a record.

    Raises OptionError for wrong options and for two different runs, DataError for different data or a wrong file, and
    XnnError if the process of a live run ended.
    """
    ranks = current_ranks()
    current_numerics()  # raises for a wrong XNN_NUMERICS, although it has no effect here
    current_numerics(numerics)
    records = {text: _read(text) for text in (a, b) if os.path.isfile(text)}
    for text in (a, b):
        if text not in records:
            if trains_together(text) and ranks is None:
                raise OptionError(
                    f"{text!r} got one process: start several, as in mpiexec -n 4 xnn verify A {text}"
                )
        elif not records[text].steps:
            raise DataError(f"{text} holds no step: the run ended before its first")
    if records:
        _refuse_surplus(given & (run.keys() | table.keys() | {"numerics"}))
        task = _recorded_task(list(records.values()), steps, live=len(records) < len({a, b}))
        task["dataset"] = dataset or task["dataset"]
    else:
        spec = RunSpec.from_options(**run)
        spec.check_numerics(numerics)
        task = {"run": spec.as_json(), "version": __version__, "dataset": dataset, "table": table}
        task |= {"mode": numerics, "steps": steps or _STEPS, "resolved": False}
    if len(records) == len({a, b}):
        backend_wanted()  # must run here, although two records need no backend
    task["data_home"] = data_home
    sides: list[Side] = []
    try:
        for text in (a, b):
            if text in records:
                sides.append(RecordSide(text, records[text]))
            elif ranks is not None and trains_together(text):
                sides.append(RanksSide(text, task, ranks))
            elif ranks is None or ranks.rank == 0:
                sides.append(LiveSide(text, task))
        for side in sides:
            side.begin()
        if ranks is not None and ranks.rank:  # rank 0 compares
            return True
        _print_sides(sides)
        difference = lock_step(sides[0], sides[1], task["steps"])
        if difference is None:
            _print_agreement(sides, task["steps"], live=not records)
        else:
            _print_lines(_explain(sides, difference))
    finally:
        for side in sides:
            side.close()
    return difference is None


def _read(path: str) -> Record:
    """The record in a file. The text of its schedule has all arguments, also if version 0.1 wrote it."""
    record = read_record(path)
    run = record.about.get("run", {})
    if isinstance(run, dict) and isinstance(run.get("schedule"), str):
        with suppress(OptionError):  # a schedule of a later version: training it says so
            run["schedule"] = recorded_schedule(run["schedule"])
    return record


def _recorded_task(records: list[Record], steps: int | None, live: bool) -> dict[str, Any]:
    """What a live run must train, as the first record describes it. `lock_step` raises if another record differs.

    live: whether one of the two runs is live.
    """
    about = records[0].about
    run = dict(about.get("run", {}))
    if not run and live:
        raise OptionError(
            "the record was made in Python and does not say what was run: compare it with another record, or use one "
            "made by `xnn train --record`"
        )
    recorded = min(len(record.steps) for record in records)
    return {
        "dataset": run.pop("dataset", None),
        "run": run,
        "version": about.get("xnn", "?"),
        "table": about.get("table", {}),
        "mode": about["plan"]["numerics"],
        "steps": min(steps or recorded, recorded),
        "resolved": True,
    }


def _refuse_surplus(given: set[str]) -> None:
    for name in sorted(given):
        raise OptionError(
            f"--{name.replace('_', '-')} is set by the record: omit it (--steps, --dataset and --data-home are "
            "allowed)"
        )


# What is printed.


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


def _print_sides(sides: list[Side]) -> None:
    """Print what is run, and how each of the two runs is executed."""
    about = sides[0].record.about
    for note in dict.fromkeys(side.note for side in sides if side.note):
        notice(f"xnn: {note}")
    run = (f"{key} {as_text(value)}" for key, value in about.get("run", {}).items())
    say(f"{about['plan']['numerics']} numerics: {', '.join(run)}")
    for letter, side in zip("AB", sides, strict=True):
        plan = side.record.about["plan"]
        threads = "" if plan["threads"] is None else f", {_counted(plan['threads'], 'thread')}"
        by = f"recorded by xnn {side.record.about.get('xnn', '?')}, " if isinstance(side, RecordSide) else ""
        say(
            f"{letter}  {side.name}: {by}{plan['backend']} ({plan['library']}, {plan['device']}), {plan['blas']}"
            f"{threads}, kernels {plan['kernels']}"
        )


def _print_agreement(sides: list[Side], steps: int, live: bool) -> None:
    """Print how much was compared. Two live runs that were executed alike prove nothing, so warn about that."""
    if live and sides[0].record.about["plan"] == sides[1].record.about["plan"]:
        notice("xnn: both sides were executed in the same way (lines A and B)")
    count = len(sides[0].record.tensors)
    say(
        f"{_counted(steps, 'step')}, loss, {_counted(count, 'gradient')}, {_counted(count, 'weight')} each: "
        "all bits agree"
    )


def _explain(sides: list[Side], difference: Difference) -> Iterator[str]:
    """Lines that say what differs first, what else differs after that step, and what follows from it."""
    record, name = sides[0].record, difference.name
    epoch, batch = divmod(max(0, difference.step - 1), record.about["steps_per_epoch"])
    when = f"step {difference.step} (epoch {epoch + 1}, batch {batch + 1})"
    when = when if difference.step else "before the first step"
    if difference.kind == "loss":
        yield f"{when}: the loss differs first, {_by_how_much(*map(_loss, (difference.a, difference.b)))}"
    else:
        layer = f"layer {name.rpartition('.')[0]} {record.tensors[name]}"
        yield f"{when}: the {difference.kind} of {layer}, {name}, differs first"
        kind = cast(TensorKind, difference.kind)
        one, other = (side.tensor(kind, name) for side in sides)
        if one is None or other is None:
            holds = (
                "a record" if any(isinstance(side, RecordSide) for side in sides) else "a run of all ranks"
            )
            yield f"  {holds} holds digests: only two live runs show by how many ulps"
        else:
            yield f"  {_by_how_much(one, other)}"
    kinds = [kind for kind, _ in difference.others]
    also = [_counted(kinds.count(kind), kind) for kind in ("gradient", "weight") if kind in kinds]
    after = f", except {' and '.join(also)} after it" if also else ""
    yield f"  everything else up to this step agrees{after}"
    if record.about["plan"]["numerics"] == "fast":
        yield "fast numerics give the same bits only if everything above is the same; exact numerics always do"
    else:
        yield "exact numerics must agree: one of the sides, or xnn, has a fault (see xnn info --probe, xnn check)"


def _loss(digits: str) -> np.ndarray:
    """The loss from its digits in a record, in the byte order of this machine."""
    width = len(digits) // 2
    return np.frombuffer(bytes.fromhex(digits), f">f{width}").astype(f"=f{width}")


def _by_how_much(x: np.ndarray, y: np.ndarray) -> str:
    """The number of elements that differ, the largest distance, and the first pair of values."""
    if x.shape != y.shape:
        return f"shapes {x.shape} in A, {y.shape} in B"
    places, ulps = distance(x, y)
    near = ulps[ulps < NO_DISTANCE]
    first = np.unravel_index(int(places[0]), x.shape)
    at = f" of {x.size:,} elements, first at [{', '.join(map(str, first))}]" if x.size > 1 else ""
    texts = []
    if near.size:
        texts.append(
            f"by at most {_counted(int(near.max()), 'ulp')}" if at else _counted(int(near[0]), "ulp")
        )
    if near.size < ulps.size:
        texts.append(f"{ulps.size - near.size:,} of them NaN on one side" if at else "NaN on one side")
    many = f"{len(places):,}{at}, " if at else ""
    return f"{many}{', '.join(texts)}: {x[first]!s} in A, {y[first]!s} in B"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
