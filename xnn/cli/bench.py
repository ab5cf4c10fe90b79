"""`xnn bench`: time a training step of xnn, beside its matrix products alone and beside other libraries."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import click

from xnn.backends import available_backends, backend_wanted, current_numerics
from xnn.benchmarks import presets, report, suite, time_to_accuracy
from xnn.benchmarks import sweep as sizes
from xnn.benchmarks.contestants import Task
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.benchmarks.gpu_peers import GPU_FORMS, GPU_PEERS
from xnn.benchmarks.networks import NETWORK_PEERS
from xnn.benchmarks.peers import PEERS
from xnn.cli.options import FILE, check_device, device_option, widths
from xnn.cli.outputs import check_apart
from xnn.cli.surroundings import progress
from xnn.cli.surroundings import say as print_line
from xnn.errors import BackendUnavailableError, OptionError
from xnn.files import check_plot, check_writable, notice, to_json, write_atomically
from xnn.options import check_real
from xnn.runs.names import MOST_THREADS

__all__ = ["bench_command", "command"]

#: Shows a line of progress.
Say: TypeAlias = Callable[[str], None]

_FILE_BEGINS = '{"environment"'  # of --json


# Not a docstring: `python -OO` removes those.
_HELP = """\
Time a training step of xnn and of other libraries.

The matrix products of the step alone are timed too. Contestants (each table of kernels, each library) take turns,
each in a process of its own. A contestant gets a figure only if its run learned and its losses agree with those
of the others. Each contestant may use all cores, or --threads; xnn train may use fewer (see xnn info).

Exits with 1 if a contestant of xnn gets no figure, is slower than before (--compare), or does not reach the
accuracy (--to-accuracy).

\b
xnn bench
xnn bench --preset targets --peers all --json results.json
xnn bench --compare results.json --preset targets
xnn bench --preset lenet,vgg,resnet,norms --peers all
xnn bench --to-accuracy 0.98 --peers torch
"""


@click.command("bench", help=_HELP)
@device_option
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Time this backend; may be given several times. Default: all that run here.",
)
@click.option(
    "--preset",
    metavar="NAME,...",
    help="The network: article (default), medium, large, ciresan; or targets: five pairs of network and batch size; "
    "or of lenet, lenet-adamw, vgg, resnet, norms one or several: LeNet-5 with SGD or AdamW, a small VGG, a small "
    "ResNet, dense layers with normalization.",
)
@click.option(
    "--batch-sizes",
    default="",
    callback=widths,
    metavar="N,N,...",
    help="Batch sizes to time. Default: 32,128,512, of lenet and so on 32,64,128; with --sweep 32 to 2048.",
)
@click.option(
    "--peers",
    default="",
    metavar="NAME,...",
    help="Other libraries to time: torch, jax, sklearn and so on, or all. They must be installed. Where a GPU is "
    "timed, torch and jax stand for their forms on it.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="Threads of every contestant. Default: the number of cores.",
)
@click.option("--numerics", metavar="NAME", help="fast, exact or both. Default: XNN_NUMERICS, else fast.")
@click.option("--repeat", type=click.IntRange(1), metavar="N", help="Turns of each contestant. Default: 9.")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write figures and environment to FILE.")
@click.option(
    "--plot",
    type=FILE,
    metavar="FILE",
    help="Draw throughput against batch size, and losses, into a .png or .svg file.",
)
@click.option(
    "--compare",
    type=FILE,
    metavar="FILE",
    help="Compare with an older --json file; exits with 1 if xnn is slower by more than the noise.",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Time many widths and batch sizes, to see from which size on a GPU is faster.",
)
@click.option(
    "--to-accuracy",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="A",
    help="Instead, measure the seconds until a fixed recipe reaches accuracy A on MNIST's test set. Takes half a "
    "minute on two cores, a minute with torch.",
)
def command(**options: Any) -> None:
    """The command `xnn bench`; its help is _HELP."""
    if not bench_command(**options):
        sys.exit(1)


def bench_command(
    *,
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
    """Time, print, and write files. Returns whether all contestants of xnn have a figure and none became slower.

    Raises OptionError for a wrong option, and BackendUnavailableError for a chosen backend that does not run here.
    """
    _check_combination({
        "--to-accuracy": to_accuracy, "--backend": backends, "--preset": preset, "--batch-sizes": batch_sizes,
        "--numerics": numerics, "--repeat": repeat, "--plot": plot, "--compare": compare, "--sweep": sweep,
    })  # fmt: skip
    if to_accuracy is not None:
        check_real("--to-accuracy", to_accuracy)  # NaN is in every range of click's
    chosen_presets = presets.read(preset)
    if json_file:
        check_writable(json_file, begins=_FILE_BEGINS)
    if plot:
        check_plot(plot)
    check_apart({"--json": json_file, "--plot": plot}, {"--compare": compare})
    before = report.read(compare) if compare else None
    asked = _read_peers(peers)
    conditions: dict[str, Any] = {
        "environment": environment(),
        "threads": threads or os.cpu_count() or 1,
    }
    if to_accuracy is not None:
        backend_wanted()  # must run here, although all backends that do are timed
        return _time_to_accuracy(to_accuracy, asked, json_file, conditions)
    chosen = "both" if numerics == "both" else current_numerics(numerics)
    running = _chosen_backends(backends)
    layered = presets.are_layered(chosen_presets)
    others = _network_peers(asked) if layered else _others(asked, running)
    contestants = [*suite.own_contestants(running, chosen, products=not layered), *others]
    check_device(running)
    conditions |= {"repeat": repeat or 9, "dataset": dataset_here(), "numerics": chosen}
    if before is not None:
        report.check_comparable(before, conditions)
    _print(environment_line(conditions["environment"]))
    timing = _Timing(contestants, conditions, chosen_presets, batch_sizes, sweep, progress())
    written = timing.run(json_file)
    if plot:
        report.plot(written, plot)
    fine = _print_failures(written["results"])
    return fine if before is None else _print_comparison(before, written) and fine


def _check_combination(given: dict[str, Any]) -> None:
    """Raise OptionError for options that have no effect together with another one."""
    for mode, chosen, without in (
        ("--to-accuracy", given["--to-accuracy"], tuple(given)[1:]),
        ("--sweep", given["--sweep"], ("--preset",)),
        ("--preset targets", given["--preset"] == "targets", ("--batch-sizes",)),
    ):
        wrong = [name for name in without if given[name]]
        if chosen and wrong:
            raise OptionError(f"{', '.join(wrong)} cannot be combined with {mode}: omit one of them")


def _read_peers(text: str) -> list[str]:
    """The names given with --peers. One of them may be "all"."""
    asked = list(dict.fromkeys(name for name in text.split(",") if name))
    known = dict.fromkeys((*PEERS, *GPU_PEERS, *NETWORK_PEERS))
    unknown = [name for name in asked if name not in (*known, "all")]
    if unknown:
        raise OptionError(f"there is no peer {unknown[0]!r}: choose {', '.join(known)} or all")
    return asked


def _network_peers(asked: Sequence[str]) -> list[str]:
    """The peers to time on networks of other layers than dense ones. Raises OptionError for one that has none."""
    for name in asked:
        if name not in (*NETWORK_PEERS, "all"):
            raise OptionError(
                f"{name} does not train these networks: choose {', '.join(NETWORK_PEERS)} or all"
            )
    return list(NETWORK_PEERS if "all" in asked else asked)


def _others(asked: Sequence[str], backends: Sequence[str]) -> list[str]:
    """The peers to time: on the CPU, on the GPU or on both, as the backends are."""
    host, gpu = "numpy" in backends, "cupy" in backends
    if "all" in asked:
        return [*(PEERS if host else ()), *(GPU_PEERS if gpu else ())]
    found: list[str] = []
    for name in asked:
        forms = GPU_FORMS.get(name, ()) if gpu else ()
        found += [*([name] if host or not forms else []), *forms]
    return list(dict.fromkeys(found))


def _chosen_backends(backends: tuple[str, ...]) -> list[str]:
    """The backends named by --backend, which must run here; without --backend, all that do."""
    reasons = available_backends()
    for name in backends:
        if reasons.get(name):
            raise BackendUnavailableError(reasons[name])
    if backends:
        return list(dict.fromkeys(backends))
    running = [name for name in ("numpy", "cupy") if not reasons[name]]
    if chosen := backend_wanted():
        kind, _, number = chosen.partition(":")
        alone = f"--backend {kind} --device {number}" if number else f"--backend {kind}"
        notice(
            f"xnn: XNN_BACKEND={chosen} has no effect on xnn bench, which times {' and '.join(running)} here; "
            f"{alone} times that one alone"
        )
    return running


def _print(text: str) -> None:
    """Print lines; messages of other libraries, and names in a file of --compare, may hold control characters."""
    for line in text.split("\n"):
        print_line(line)


@dataclass(frozen=True)
class _Timing:
    """The contestants to time, and the conditions, networks and batch sizes to time them with."""

    contestants: list[str]
    conditions: dict[str, Any]
    presets: Sequence[str]
    batch_sizes: tuple[int, ...]
    sweep: bool
    say: Say

    def run(self, json_file: str | None) -> dict[str, Any]:
        """Time everything and write the file. Results so far are kept if an error or Ctrl-C ends the timing."""
        results: list[dict[str, Any]] = []
        written = {**self.conditions, "results": results}
        notice(f"xnn: this takes {self._length()}")
        try:
            for result in self._sweep() if self.sweep else self._presets():
                results.append(result)
        finally:
            self.say("")
            if results and json_file:
                write_atomically(json_file, to_json(written).encode())
            if results and self.sweep:
                _print(sizes.text(results))
        return written

    @property
    def _numerics(self) -> str:
        """The numerics of contestants whose names do not include any."""
        chosen: str = self.conditions["numerics"]
        return "fast" if chosen == "both" else chosen

    def _length(self) -> str:
        """About how long the timing takes, as text."""
        tasks = sizes.tasks(self._sweep_batches) if self.sweep else [task for *_, task in self._tasks()]
        repeat = self.conditions["repeat"]
        seconds = sum(suite.expected_seconds(len(self.contestants), task, repeat) for task in tasks)
        about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{10 * math.ceil(seconds / 10)} seconds"
        others = (
            ", longer with libraries that compile" if set(self.contestants) & {*PEERS, *GPU_PEERS} else ""
        )
        return (
            f"about {about}{others}: contestants {len(self.contestants)}, turns of each {repeat}, "
            f"pairs of network and batch size {len(tasks)}"
        )

    @property
    def _backends(self) -> list[str]:
        """The backends that are timed."""
        return [name for name in ("numpy", "cupy") if f"xnn-{name}" in self.contestants]

    @property
    def _compares_bits(self) -> bool:
        """Whether exact runs of a few steps are added, to compare the backends' bits."""
        return len(self._backends) > 1 and self.conditions["numerics"] == "fast"

    @property
    def _sweep_batches(self) -> Sequence[int]:
        return self.batch_sizes or sizes.BATCHES

    def _sweep(self) -> Iterator[dict[str, Any]]:
        about = self.conditions
        return sizes.sweep(
            self.contestants, about["dataset"], about["threads"], about["repeat"], self._numerics,
            self._sweep_batches, say=self.say,
        )  # fmt: skip

    def _presets(self) -> Iterator[dict[str, Any]]:
        """Time each network and batch size, and print its table."""
        threads, dataset = self.conditions["threads"], self.conditions["dataset"]
        for network, batch, task in self._tasks():
            entries = suite.run_task(
                self.contestants, task, threads, self.conditions["repeat"], self.say, self._numerics
            )
            exact = (
                suite.exact_digests(self._backends, task, threads, self.say) if self._compares_bits else []
            )
            self.say("")
            on_gpu = all("cupy" in name or name in GPU_PEERS for name in self.contestants)
            where = "on the GPU" if on_gpu else f"{threads} threads"
            title = f"{presets.title(task)}, batch {batch}, {where}, {dataset}"
            _print(report.table(entries, title))
            if exact:
                _print(report.exact_lines(exact))
            about = {"network": network, "widths": task.widths, "batch": batch}
            yield {**about, "entries": entries, "exact": exact}

    def _tasks(self) -> list[tuple[str, int, Task]]:
        """The networks by name, each with a batch size and the task."""
        return presets.tasks(self.presets, self.batch_sizes, self.conditions["dataset"])


def _print_failures(results: list[dict[str, Any]]) -> bool:
    """Print what went wrong with the contestants of xnn. Returns True if nothing did."""
    exact = [e for task in results for e in task.get("exact", [])]
    if any(
        not report.bits_agree(task[key]) for task in results for key in ("entries", "exact") if key in task
    ):
        notice("xnn: exact runs differ in their bits; xnn verify shows where")
        return False
    own = [e for task in results for e in task["entries"] if e["contestant"].startswith("xnn")]
    if not all(e["valid"] for e in (*own, *exact)):
        notice("xnn: some runs of xnn have no figure, for the reasons above")
        return False
    return True


def _print_comparison(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Print the ratios to an older file. Returns whether nothing became slower."""
    lines, slower = report.compare(before, now)
    _print("\n".join(lines))
    return not slower


def _time_to_accuracy(
    target: float, peers: list[str], json_file: str | None, conditions: dict[str, Any]
) -> bool:
    """Print the seconds until each recipe reaches an accuracy. Returns whether all recipes of xnn reach it."""
    if others := set(peers) - {"torch", "all"}:
        raise OptionError(
            f"--to-accuracy got {', '.join(sorted(others))}, and takes one peer: use --peers torch"
        )
    gpu = [] if available_backends()["cupy"] else ["xnn-cupy"]
    check_device(["cupy" if gpu else "numpy"])
    contestants = ["xnn", *gpu, *(["torch"] if peers else [])]
    say = progress()
    _print(environment_line(conditions["environment"]))
    results = time_to_accuracy.to_accuracy(
        target, contestants=contestants, threads=conditions["threads"], say=say
    )
    say("")
    if json_file:
        write_atomically(json_file, to_json({**conditions, "target": target, "results": results}).encode())
    _print(time_to_accuracy.text(results, target))
    return all(e["reached"] for e in results if e["contestant"].startswith("xnn"))
