"""Checks that exact numerics give the same bits on many engines: the digest matrix.

    python -m xnn.benchmarks.digests [options]

Trains the same networks again and again, each time in a new process on another engine. Engines differ in the kernels
of BLAS, the number of threads, SIMD instructions, the order of every sum, the array library, or the number of
workers. The table has a row for each process, with digests of weights and losses. In exact numerics all digests must
be equal. In fast numerics some must differ: otherwise the engines would not differ in anything. The exit code is 1 if
one of the two does not hold. All rows take about five minutes on two cores; standard error shows the row that runs.

    --only NAME,...   only rows whose names contain one of these, and the first row
    --steps N         steps of the longest training; default: 500. Slow rows stop after 100, 20 or 5 steps
    --quick           20 steps and one row of each kind: half a minute
    --json FILE       write all results, with whole digests, to FILE

Equal digests do not prove that no product was rounded. The self-check and the tests of single operations do that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.backends import available_backends, backend_wanted
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.benchmarks.exactness.digest_run import BATCH
from xnn.benchmarks.exactness.networks import SMALL
from xnn.data import load
from xnn.errors import BackendUnavailableError, OptionError, XnnError
from xnn.files import check_writable, notice, write_atomically
from xnn.options import check_count
from xnn.runs.process import Process

__all__ = ["Row", "main", "rows", "run_row", "table", "verdict"]

_CORES = ("SkylakeX", "Haswell", "Zen", "Prescott", "Sandybridge")
_MARKS = (5, 20, 100)  # digests are taken after these numbers of steps, and after the last step
# The seconds that a row may take to the next mark, in each numerics. The first row gets more time, because all others
# are compared with it.
_PATIENCE = {"exact": 6.0, "fast": 1.0}
_PATIENCE_FIRST = 60.0
_ILLEGAL = f"exit code {-int(getattr(signal, 'SIGILL', 4))}:"
_SHOWN = 10  # how many digits of a digest the table shows


@dataclass(frozen=True)
class Row:
    """One row of the table: how a process computes.

    name: in the table. engine: a backend, or one of engines.ENGINES. kernels: a table of kernels. threads: of BLAS.
    workers: 0 for a Trainer. environment: variables to set. quick: whether `--quick` runs the row.
    """

    name: str
    engine: str = "numpy"
    kernels: str = "ops"
    threads: int = 2
    workers: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    quick: bool = False


def rows() -> list[Row]:
    """List the rows of the table. The first one is the reference for the others."""
    found = [
        Row("1 thread", threads=1, quick=True),
        Row("2 threads", quick=True),
        *(Row(core, environment={"OPENBLAS_CORETYPE": core}, quick=core == "Prescott") for core in _CORES),
        Row("Prescott on 1 thread", threads=1, environment={"OPENBLAS_CORETYPE": "Prescott"}),
        *(
            Row(f"NumPy without {names[0]}", environment={"NPY_DISABLE_CPU_FEATURES": " ".join(names)})
            for names in _simd()
        ),
    ]
    for kernels in ("numpy", "compiled"):
        found += [
            Row(f"{kernels} kernels", kernels=kernels, quick=True),
            Row(f"{kernels} kernels on 1 thread", kernels=kernels, threads=1),
            Row(
                f"{kernels} kernels on Prescott",
                kernels=kernels,
                environment={"OPENBLAS_CORETYPE": "Prescott"},
            ),
            Row(f"{kernels} kernels with subnormals flushed", "flushed", kernels),
        ]
    found += [
        Row("subnormals flushed", "flushed", quick=True),
        Row("sums in random order", "shuffled", quick=True),
        Row("sums by rank-1 updates", "outer", threads=1),
        Row("sums in int64", "int64", threads=1, quick=True),
        Row("array-api-strict", "array-api-strict"),
        Row("torch", "torch", quick=True),
        Row(
            "torch on 1 thread without AVX",
            "torch",
            threads=1,
            environment={"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        ),
        Row("torch with MKL compatible", "torch", environment={"MKL_CBWR": "COMPATIBLE"}),
        *(
            Row(
                f"{count} worker{'s'[: count > 1]}",
                threads=1,
                workers=count,
                quick=count in (3, 32),
            )
            for count in (1, 2, 3, 7, 32)
        ),
        Row("3 workers with sums in random order", "shuffled", threads=1, workers=3),
        Row("3 workers of torch", "torch", threads=1, workers=3),
    ]
    if not available_backends()["cupy"]:
        found += [
            Row("cupy", "cupy", quick=True),
            Row("cupy with its best kernels", "cupy", "auto"),
            Row("3 workers of cupy", "cupy", workers=3),
        ]
    return found


def _simd() -> list[list[str]]:
    """The SIMD extensions that NumPy uses on this machine: the whole list, then without the first, and so on."""
    unit = np._core._multiarray_umath  # type: ignore[attr-defined]
    here = [name for name in unit.__cpu_dispatch__ if unit.__cpu_features__.get(name)]
    return [here[start:] for start in range(len(here))]


def run_row(row: Row, data: str, marks: Sequence[int], first: bool = False) -> dict[str, Any]:
    """Run a row in a new process.

    Returns a dictionary: `row`, its name; `ran`, the library that computed; `exact` and `fast`, the results of
    digest_run.Server.run; `absent`, why the row cannot run on this machine; `error`, why it failed.
    """
    process = Process(row.name, "xnn.benchmarks.exactness.digest_run", row.threads, row.environment)
    try:
        process.ask(data=data, engine=row.engine, kernels=row.kernels, workers=row.workers, seed=row.workers)
        about = process.ask(do="about")
        found = {"row": row.name, "ran": about.get("ran", ""), "absent": about.get("absent", "")}
        if about and not about["absent"]:
            for mode, patience in _PATIENCE.items():
                found[mode] = process.ask(
                    do="run", mode=mode, marks=list(marks), patience=_PATIENCE_FIRST if first else patience
                )
        found["error"] = process.error
        if _ILLEGAL in process.error and "OPENBLAS_CORETYPE" in row.environment:
            found.update(absent="this processor lacks its instructions (illegal instruction)", error="")
        return found
    finally:
        process.close()


def _common(entries: Sequence[dict[str, Any]], mode: str) -> str:
    """The largest number of steps that all rows have reached."""
    return str(max(set.intersection(*(set(e[mode]["marks"]) for e in entries)), key=int))


def _digests(entry: dict[str, Any], mode: str, mark: str) -> list[str]:
    """The digests of weights and losses after `mark` steps, and one digest of all small networks."""
    small = json.dumps(entry[mode]["small"], sort_keys=True)
    return [*entry[mode]["marks"][mark], hashlib.sha256(small.encode()).hexdigest()]


def _done(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have results."""
    return [e for e in entries if not e["absent"] and not e["error"]]


def difference(entry: dict[str, Any], first: dict[str, Any]) -> str:
    """Where a row's exact digests first differ from the first row's, in words; "" if they are equal."""
    one, other = entry["exact"], first["exact"]
    for mark in sorted(set(one["marks"]) & set(other["marks"]), key=int):
        for what, a, b in zip(("weights", "losses"), one["marks"][mark], other["marks"][mark], strict=True):
            if a != b:
                return f"{what} after {mark} steps"
    for name, digests in one["small"].items():
        for what, a, b in zip(
            ("weights", "predictions or metrics", "losses"), digests, other["small"][name], strict=True
        ):
            if a != b:
                return f"{what} of the small network {name!r}"
    return ""


def table(entries: Sequence[dict[str, Any]]) -> str:
    """A table of digests in exact and fast numerics, after the largest number of steps that all rows reached."""
    done = _done(entries)
    if not done:
        return ""
    marks = {mode: _common(done, mode) for mode in ("exact", "fast")}
    name, ran = (max(len(e[key]) for e in entries) + 2 for key in ("row", "ran"))
    wide = _SHOWN + 2
    titles = [f"{mode}, after {mark} steps" for mode, mark in marks.items()]
    heads = "".join(f"{head:<{wide}}" for head in ("weights", "losses", "small"))
    lines = [
        f"{'':<{name + ran}}{titles[0]:<{3 * wide}}{'same':>5}   {titles[1]:<{3 * wide}}{'ms a step':>15}",
        f"{'':<{name}}{'computed by':<{ran}}{heads}{'until':>5}   {heads}{'exact':>8}{'fast':>7}",
    ]
    for e in entries:
        if e["absent"] or e["error"]:
            reason = f"not here: {e['absent']}" if e["absent"] else "failed, see below"
            lines.append(f"{e['row']:<{name}}{reason}")
            continue
        exact, fast = (
            "".join(f"{digest[:_SHOWN]:<{wide}}" for digest in _digests(e, mode, mark))
            for mode, mark in marks.items()
        )
        until = "no" if difference(e, done[0]) else max(e["exact"]["marks"], key=int)
        times = f"{e['exact']['ms']:>8.2f}{e['fast']['ms']:>7.2f}"
        lines.append(f"{e['row']:<{name}}{e['ran']:<{ran}}{exact}{until:>5}   {fast}{times}")
    return "\n".join(lines)


def verdict(entries: Sequence[dict[str, Any]]) -> tuple[list[str], bool]:
    """Lines that state the result, and whether exact digests are all equal and fast ones are not."""
    done = _done(entries)
    lines = [f"{e['row']} failed: {e['error']}" for e in entries if e["error"]]
    if len(done) < 2:
        return [*lines, "nothing to compare: fewer than two rows have results"], False
    found = {e["row"]: difference(e, done[0]) for e in done[1:]}
    differing = {name: where for name, where in found.items() if where}
    lines += [f"{name} differs from {done[0]['row']}: {where}" for name, where in differing.items()]
    mark = _common(done, "fast")
    fast = len({tuple(_digests(e, "fast", mark)) for e in done})
    ways = len({e["ran"] for e in done})
    said = f"{len(differing)} DIFFER" if differing else "the same bits"
    lines.append(f"exact: {said} in {len(done)} rows, with {ways} kinds of kernels and threads")
    vacuous = "" if fast > 1 else ": the engines do not differ, so equal exact digests mean nothing"
    lines.append(f"fast: {fast} different results in {len(done)} rows{vacuous}")
    return lines, not differing and fast > 1 and not any(e["error"] for e in entries)


def compare(
    chosen: Sequence[Row], steps: int, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Run all rows one after another. Returns what `run_row` returns, with the `seconds` of each."""
    marks = [*(mark for mark in _MARKS if mark < steps), steps]
    with tempfile.TemporaryDirectory() as scratch:
        data = os.path.join(scratch, "data.npz")
        dataset = load(dataset_here())
        count = min(len(dataset.x_train), steps * BATCH)
        np.savez(data, x=dataset.x_train[:count], y=dataset.y_train[:count])
        entries: list[dict[str, Any]] = []
        for row in chosen:
            say(row.name)
            start = time.perf_counter()
            entries.append(run_row(row, data, marks, first=not entries))
            entries[-1]["seconds"] = time.perf_counter() - start
    return entries


def _choose(only: str, quick: bool) -> list[Row]:
    """The chosen rows and the first row. Raises OptionError for a name that is in no row's name."""
    every = rows()
    parts = [part.strip() for part in only.split(",") if part.strip()]
    for part in parts:
        if not any(part.lower() in row.name.lower() for row in every):
            raise OptionError(
                f"no row is called {part!r}; choose among {'; '.join(row.name for row in every)}"
            )
    return [
        row
        for n, row in enumerate(every)
        if n == 0
        or ((row.quick or not quick) and (not parts or any(p.lower() in row.name.lower() for p in parts)))
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the table and the result. Returns 0 if all is well, 1 if not, 2 for wrong options.

    The backend that XNN_BACKEND names must run here.
    """
    parser = argparse.ArgumentParser(
        prog="python -m xnn.benchmarks.digests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        steps = check_count(
            "--steps", options.steps if options.steps is not None else 20 if options.quick else 500
        )
        backend_wanted()  # must run here, although the rows name their backends
        path = check_writable(options.json, (".json",)) if options.json else None
        chosen = _choose(options.only, options.quick)
        about = environment()
        print(environment_line(about), flush=True)
        entries = compare(chosen, steps, lambda line: notice(f"  {line}"))
    except XnnError as error:
        notice(str(error))
        return 1 if isinstance(error, BackendUnavailableError) else 2
    lines, well = verdict(entries)
    if path is not None:  # written first: printing may fail
        written = {"environment": about, "steps": steps, "rows": entries, "well": well}
        write_atomically(path, json.dumps(written, indent=1).encode())
    print(f"784-100-200-10 on {dataset_here()}, batch {BATCH}; and {len(SMALL)} small networks")
    print(table(entries))
    print("\n".join(lines))
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        notice("interrupted")
        sys.exit(130)
