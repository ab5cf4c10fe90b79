"""What `xnn verify` does: two runs step by step, to the first bit in which they differ."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from xnn import __version__
from xnn.backends import current_numerics
from xnn.errors import DataError, OptionError
from xnn.runs.digests import Digests, Record, read_record
from xnn.runs.replay import Live, Recorded, parse_settings
from xnn.runs.spec import Run

__all__ = ["Difference", "compare", "distance", "lock_step", "verify_command"]

_STEPS = 200
_NO_DISTANCE = np.iinfo(np.uint64).max  # to NaN


@dataclass(frozen=True)
class Difference:
    """Where two runs part: the step from 1 (0: before the first), "loss", "gradient" or "weight", whose it is.

    a, b: the two losses. others: what else differs after that step.
    """

    step: int
    kind: str
    name: str
    others: tuple[tuple[str, str], ...]
    a: str = ""
    b: str = ""


def compare(step: int, a: Digests, b: Digests, names: list[str]) -> Difference | None:
    """The first difference in the order of computation: loss, gradients from the last layer back, weights.

    So the first is where the fault came in, and the others may be its consequences.
    """
    found = [("loss", "")] if a.loss != b.loss else []
    kinds = (("gradient", a.gradients, b.gradients, -1), ("weight", a.weights, b.weights, 1))
    for kind, one, other, direction in kinds:
        width = len(one) // max(1, len(names))
        pieces = [(n, slice(i * width, (i + 1) * width)) for i, n in enumerate(names)]
        found += [(kind, name) for name, piece in pieces[::direction] if one[piece] != other[piece]]
    if not found:
        return None
    return Difference(step, *found[0], tuple(found[1:]), a.loss, b.loss)


def lock_step(a: Live | Recorded, b: Live | Recorded, steps: int) -> Difference | None:
    """Take so many steps on both sides, or until they differ.

    Raises OptionError if they are two different runs, DataError if they have different data.
    """
    _check_same_run(a, b)
    names = list(a.record.tensors)
    difference, step = compare(0, a.record.initial, b.record.initial, names), 0
    while difference is None and step < steps:
        step += 1
        difference = compare(step, a.step(), b.step(), names)
    return difference


def _check_same_run(a: Live | Recorded, b: Live | Recorded) -> None:
    one, other = _what_was_run(a.record), _what_was_run(b.record)
    for key in one | other:
        if one.get(key) != other.get(key):
            what = f"{key} is {one.get(key)} in {a.name}, {other.get(key)} in {b.name}"
            raise OptionError(f"these are two different runs: {what}")
    digests = [side.record.about.get("data_sha256", "") for side in (a, b)]
    if digests[0] != digests[1]:
        found = (f"{d[:16] or 'unknown'} of {s.name}" for s, d in zip((a, b), digests, strict=True))
        raise DataError(
            f"the training data differ before the first step: SHA-256 {' and '.join(found)}; --dataset and "
            "--data-home say where they are"
        )


def _what_was_run(record: Record) -> dict[str, Any]:
    """What must be equal, but for the data, which may lie under another name."""
    run = {key: _shown(value) for key, value in record.about.get("run", {}).items() if key != "dataset"}
    layers = [f"{name} of {kind}" for name, kind in record.tensors.items()]
    return {**run, "numerics": record.about["plan"]["numerics"], "tensors": _shown(layers)}


def _shown(value: Any) -> str:
    """Without what JSON puts around it; a layer's table as Python would have it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    if isinstance(value, dict):
        inside = (f"{key}={_shown(value[key])}" for key in sorted(value) if key != "type")
        return f"{value.get('type')}({', '.join(inside)})"
    return str(value)


def distance(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the bits of two float arrays differ (flat positions), and by how many ulps: floats between, plus one.

    0 for -0 and +0; the largest number of all for NaN and anything else.
    """
    bits = [np.ascontiguousarray(v).reshape(-1).view(f"u{v.itemsize}") for v in (x, y)]
    places = np.flatnonzero(bits[0] != bits[1])
    sign = 1 << (8 * x.itemsize - 1)
    ordered = []
    for part in bits:
        magnitude = (part[places] & part.dtype.type(sign - 1)).astype(np.int64)
        ordered.append(np.where(part[places] >= part.dtype.type(sign), -magnitude, magnitude))
    one, other = np.maximum(*ordered), np.minimum(*ordered)
    ulps = one.astype(np.uint64) - other.astype(np.uint64)  # modulo 2^64, so that no difference overflows
    ulps[np.isnan(x.reshape(-1)[places]) | np.isnan(y.reshape(-1)[places])] = _NO_DISTANCE
    return places, ulps


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
    """Compare, print; whether all bits agree. `given`: which options the user gave; a record has its own.

    Raises OptionError for wrong options and for two different runs, DataError for other data or a wrong file, and
    XnnError for a side that ended.
    """
    current_numerics()  # a wrong XNN_NUMERICS is heard of, though it is not asked
    current_numerics(numerics)
    version = __version__
    records = {text: read_record(text) for text in (a, b) if os.path.isfile(text)}
    for text in (a, b):
        if text not in records:
            parse_settings(text)
        elif not records[text].steps:
            raise DataError(f"{text} holds no step: the run ended before its first")
    if records:
        _refuse_surplus(given & (run.keys() | table.keys() | {"numerics"}))
        about = next(iter(records.values())).about
        table = about.get("table", {})
        run, numerics, version = dict(about.get("run", {})), about["plan"]["numerics"], about.get("xnn", "?")
        if not run and len(records) < len({a, b}):
            raise OptionError(
                "the record does not say what was run, as those of `xnn train --record` do: one made in "
                "Python can be compared with another record alone"
            )
        name = run.pop("dataset", None)
        dataset = dataset or name
        recorded = min(len(record.steps) for record in records.values())
        steps = min(steps or recorded, recorded)
    else:
        chosen = Run.from_options(**run)
        chosen.check_numerics(numerics)
        run = chosen.as_record()
    steps = steps or _STEPS
    task: dict[str, Any] = {"run": run, "version": version, "dataset": dataset, "data_home": data_home}
    task["table"] = table
    task |= {"mode": numerics, "steps": steps}
    sides: list[Live | Recorded] = []
    try:
        for text in (a, b):
            sides.append(Recorded(text, records[text]) if text in records else Live(text, task))
        for side in sides:
            side.begin()
        _print_sides(sides)
        difference = lock_step(sides[0], sides[1], steps)
        for line in _explain(sides, difference) if difference else ():
            click.echo(line)
    finally:
        for side in sides:
            side.close()
    if difference is None:
        same = not records and sides[0].record.about["plan"] == sides[1].record.about["plan"]
        if same:
            click.echo("xnn: both sides were the same engine: see lines A and B", err=True)
        count = len(sides[0].record.tensors)
        click.echo(
            f"{_counted(steps, 'step')}, loss, {_counted(count, 'gradient')}, {_counted(count, 'weight')} each: "
            "all bits agree"
        )
    return difference is None


def _refuse_surplus(given: set[str]) -> None:
    for name in sorted(given):
        raise OptionError(
            f"--{name.replace('_', '-')} is what the record says: leave it away (--steps, --dataset and --data-home "
            "may stay)"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_sides(sides: list[Live | Recorded]) -> None:
    """What is run, and how each side runs it."""
    about = sides[0].record.about
    for note in dict.fromkeys(side.note for side in sides if side.note):
        click.echo(f"xnn: {note}", err=True)
    run = (f"{key} {_shown(value)}" for key, value in about.get("run", {}).items())
    click.echo(f"{about['plan']['numerics']} numerics: {', '.join(run)}")
    for letter, side in zip("AB", sides, strict=True):
        plan = side.record.about["plan"]
        threads = "" if plan["threads"] is None else f", {_counted(plan['threads'], 'thread')}"
        by = f"recorded by xnn {side.record.about.get('xnn', '?')}, " if isinstance(side, Recorded) else ""
        click.echo(
            f"{letter}  {side.name}: {by}{plan['backend']} ({plan['library']}, {plan['device']}), {plan['blas']}"
            f"{threads}, kernels {plan['kernels']}"
        )


def _explain(sides: list[Live | Recorded], difference: Difference) -> Iterator[str]:
    """The first difference in full, what follows from it, and what to make of it."""
    record, name = sides[0].record, difference.name
    per_epoch = record.about["steps_per_epoch"]
    epoch, batch = divmod(max(0, difference.step - 1), per_epoch)
    where = f"step {difference.step} (epoch {epoch + 1}, batch {batch + 1})"
    when = where if difference.step else "before the first step"
    if difference.kind == "loss":
        losses = [
            np.frombuffer(bytes.fromhex(digits), f">f{len(digits) // 2}").astype(f"=f{len(digits) // 2}")
            for digits in (difference.a, difference.b)
        ]
        yield f"{when}: the loss differs first, {_by_how_much(*losses)}"
    else:
        layer = f"layer {name.rpartition('.')[0]} {record.tensors[name]}"
        yield f"{when}: the {difference.kind} of {layer}, {name}, differs first"
        one, other = (side.tensor(difference.kind, name) for side in sides)
        if one is None or other is None:
            yield "  by how many ulps only two live runs tell: a record holds digests"
        else:
            yield f"  {_by_how_much(one, other)}"
    kinds = [kind for kind, _ in difference.others]
    also = [_counted(kinds.count(kind), kind) for kind in ("gradient", "weight") if kind in kinds]
    yield f"  all else up to this step agrees{', but for ' + ' and '.join(also) + ' after it' if also else ''}"
    if record.about["plan"]["numerics"] == "fast":
        yield "fast numerics keeps its bits only where everything above is the same: exact numerics does everywhere"
    else:
        yield "exact numerics should agree: one of the two sides, or xnn, has a fault (xnn info --probe, xnn check)"


def _by_how_much(x: np.ndarray, y: np.ndarray) -> str:
    """How many elements, the largest distance, and the first two."""
    if x.shape != y.shape:
        return f"shapes {x.shape} in A, {y.shape} in B"
    places, ulps = distance(x, y)
    near = ulps[ulps < _NO_DISTANCE]
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
