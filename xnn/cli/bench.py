"""What `xnn bench` does; imported only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from xnn.backends import available_backends, backend_variable
from xnn.backends.numerics import current_numerics as check_numerics
from xnn.benchmarks import report, suite
from xnn.benchmarks import sweep as sizes
from xnn.benchmarks.contestants import Task
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.benchmarks.peers import PEERS
from xnn.errors import BackendUnavailableError, OptionError
from xnn.files import check_plot, check_writable, to_json, write_atomically

__all__ = ["bench_command"]


def bench_command(
    backends: tuple[str, ...],
    preset: str | None,
    batch_sizes: tuple[int, ...],
    peers: str,
    threads: int | None,
    numerics: str | None,
    repeat: int | None,
    json_file: str | None,
    plot: str | None,
    compare: str | None,
    sweep: bool,
    to_accuracy: float | None,
) -> bool:
    """Time, print, and write the files asked for. False if one of xnn's own has no figure, or is slower than before.

    Raises OptionError for a wrong option, BackendUnavailableError for a backend that was asked for and cannot run.
    """
    _check_combination({
        "--to-accuracy": to_accuracy, "--backend": backends, "--preset": preset, "--batch-sizes": batch_sizes,
        "--numerics": numerics, "--repeat": repeat, "--plot": plot, "--compare": compare, "--sweep": sweep,
    })  # fmt: skip
    if json_file:
        check_writable(json_file)
    if plot:
        check_plot(plot)
    before = report.read(compare) if compare else None
    asked = list(dict.fromkeys(name for name in peers.split(",") if name))
    unknown = [name for name in asked if name not in (*PEERS, "all")]
    if unknown:
        raise OptionError(f"no peer is called {unknown[0]!r}; choose {', '.join(PEERS)} or all")
    limit = threads or os.cpu_count() or 1
    say = _progress() if sys.stderr.isatty() else lambda line: None
    about: dict[str, Any] = {"environment": environment(), "threads": limit}
    if to_accuracy is not None:
        backend_variable()
        say = say if sys.stderr.isatty() else lambda line: click.echo(f"  {line}", err=True) if line else None
        return _to_accuracy(to_accuracy, asked, limit, say, json_file, about)
    mode = "both" if numerics == "both" else check_numerics(numerics)
    contestants = [*suite.own_contestants(_running(backends), mode), *(PEERS if "all" in asked else asked)]
    about |= {"repeat": repeat or 9, "dataset": dataset_here(), "numerics": mode}
    if before is not None:
        report.check_comparable(before, about)
    click.echo(environment_line(about["environment"]))
    results: list[dict[str, Any]] = []
    try:
        tasks = _sweep if sweep else _presets
        for result in tasks(contestants, preset or "article", batch_sizes, about, say):
            results.append(result)
    finally:  # what was measured is kept, whatever ends the rest
        say("")
        written = {**about, "results": results}
        if results and sweep:
            click.echo(sizes.text(results))
        if results and json_file:
            write_atomically(json_file, to_json(written).encode())
    if plot:
        report.plot(written, plot)
    fine = all(e["valid"] for task in results for e in task["entries"] if e["contestant"].startswith("xnn"))
    if any(not report.bits_agree(task["entries"]) for task in results):
        click.echo("xnn: exact runs differ in their bits; xnn verify finds where", err=True)
        fine = False
    elif not fine:
        click.echo("xnn: some of xnn's own runs have no figure, for the reasons above", err=True)
    if before is not None:
        lines, slower = report.compare(before, written)
        click.echo("\n".join(lines))
        fine = fine and not slower
    return fine


def _check_combination(given: dict[str, Any]) -> None:
    """Options that another one leaves without a meaning are refused, not ignored."""
    for mode, chosen, without in (
        ("--to-accuracy", given["--to-accuracy"], tuple(given)[1:]),
        ("--sweep", given["--sweep"], ("--preset",)),
        ("--preset targets", given["--preset"] == "targets", ("--batch-sizes",)),
    ):
        wrong = [name for name in without if given[name]]
        if chosen and wrong:
            raise OptionError(f"{mode} goes without {', '.join(wrong)}: leave one of them out")


def _plain(about: dict[str, Any]) -> str:
    """The numerics of contestants whose names say none."""
    return "fast" if about["numerics"] == "both" else str(about["numerics"])


def _sweep(
    contestants: list[str], _: str, batch_sizes: tuple[int, ...], about: dict[str, Any], say: Any
) -> Iterator[dict[str, Any]]:
    return sizes.sweep(
        contestants, about["dataset"], about["threads"], about["repeat"], _plain(about),
        batch_sizes or sizes.BATCHES, say=say,
    )  # fmt: skip


def _presets(
    contestants: list[str], preset: str, batch_sizes: tuple[int, ...], about: dict[str, Any], say: Any
) -> Iterator[dict[str, Any]]:
    """Each network and batch size, its table printed."""
    for network, batch in _pairs(preset, batch_sizes):
        widths = suite.NETWORKS[network]
        task = Task(widths, batch, max(8192, 8 * batch), about["dataset"])
        entries = suite.run_task(contestants, task, about["threads"], about["repeat"], say, _plain(about))
        say("")
        title = f"{'-'.join(map(str, widths))}, batch {batch}, {about['threads']} threads, {about['dataset']}"
        click.echo(report.table(entries, title))
        yield {"network": network, "widths": widths, "batch": batch, "entries": entries}


def _progress() -> Any:
    """One line on the terminal that is written over."""
    return lambda line: click.echo(f"\r\x1b[K{line}", err=True, nl=False)


def _running(backends: tuple[str, ...]) -> list[str]:
    """The backends asked for, which must run here, or all that do."""
    reasons = available_backends()
    for name in backends:
        if reasons.get(name):
            raise BackendUnavailableError(reasons[name])
    if backends:
        return list(dict.fromkeys(backends))
    running = [name for name in ("numpy", "cupy") if not reasons[name]]
    if chosen := backend_variable():
        click.echo(
            f"xnn: XNN_BACKEND={chosen} is not read here: timed is what runs here, {' and '.join(running)}; "
            f"--backend {chosen} times that one alone",
            err=True,
        )
    return running


def _pairs(preset: str, batch_sizes: tuple[int, ...]) -> list[tuple[str, int]]:
    if preset == "targets":
        return list(suite.TARGETS)
    if preset not in suite.NETWORKS:
        raise OptionError(f"no preset is called {preset!r}; choose {', '.join(suite.NETWORKS)} or targets")
    return [(preset, batch) for batch in batch_sizes or (32, 128, 512)]


def _to_accuracy(
    target: float, peers: list[str], threads: int, say: Any, json_file: str | None, about: dict[str, Any]
) -> bool:
    """Seconds to a given accuracy of each recipe, five seeds; xnn, and PyTorch if asked for."""
    from xnn.benchmarks import time_to_accuracy

    others = set(peers) - {"all", "torch"}
    if others:
        raise OptionError(f"--to-accuracy knows one peer, torch; got {', '.join(sorted(others))}")
    contestants = ["xnn", *(["torch"] if peers else [])]
    click.echo(environment_line(about["environment"]))
    results = time_to_accuracy.to_accuracy(target, contestants=contestants, threads=threads, say=say)
    say("")
    click.echo(time_to_accuracy.text(results, target))
    if json_file:
        write_atomically(json_file, to_json({**about, "target": target, "results": results}).encode())
    return all(e["reached"] for e in results if e["contestant"].startswith("xnn"))
