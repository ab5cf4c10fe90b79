"""Tables and plots of the suite's results, and comparisons with older results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from xnn.benchmarks.contestants import on_gpu
from xnn.errors import OptionError
from xnn.files import save_figure

__all__ = ["bits_agree", "check_comparable", "compare", "exact_lines", "plot", "read", "table"]

_CONDITIONS = ("threads", "dataset", "numerics")
_UNSTABLE = 0.1  # a warning is printed if the quartiles differ by more than this share of the median


def table(entries: Sequence[dict[str, Any]], title: str) -> str:
    """One network and batch size as a table: times, rates, and times relative to the products alone."""
    limits = {
        e["contestant"]: e["median"] for e in entries if e["valid"] and e["contestant"].startswith("gemm")
    }
    wide = max(14, *(len(e["contestant"]) + 1 for e in entries))
    lines = [
        title,
        f"  {'':<{wide}}{'us/step':>9}{'quartiles':>17}{'samples/s':>11}{'GFLOP/s':>9}{'x GEMM':>8}{'of limit':>10}"
        f"{'peak MB':>9}{'first s':>9}  losses differ",
    ]
    for e in entries:
        if not e["valid"]:
            lines.append(f"  {e['contestant']:<{wide}}no figure: {e['reason']}")
            continue
        limit = limits.get(_limit_of(e["contestant"]))
        ratio = e["median"] / limit if limit else None
        shares = f"{ratio:>8.2f}{1 / ratio:>10.0%}" if ratio else f"{'-':>8}{'-':>10}"
        between = " - ".join(map(_us, e["quartiles"]))
        lines.append(
            f"  {e['contestant']:<{wide}}{_us(e['median']):>9}{between:>17}{e['samples_per_second']:>11,.0f}"
            f"{e['gflops']:>9.1f}{shares}{e['peak_bytes'] / 2**20:>9.0f}{e['first_step_seconds']:>9.2f}"
            f"  {e.get('loss_difference', 0.0):.0e}"
        )
        if e["spread"] > _UNSTABLE:
            lines[-1] += "  unstable: is something else running?"
        if ratio and round(1 / ratio, 2) > 1:
            lines[-1] += "  faster than its products alone: those were disturbed; repeat, or raise --repeat"
    return "\n".join([*lines, *_ratios(entries)])


def _us(time: float) -> str:
    """Microseconds as text, with a digit behind the point if they are few."""
    return f"{time:.1f}" if time < 100 else f"{time:.0f}"


def _limit_of(name: str) -> str:
    """The contestant that runs the products alone on the same device."""
    return "gemm-cupy" if on_gpu(name) else "gemm"


def _ratios(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines that compare xnn with the fastest other library on the same device, and the GPU with the CPU."""
    valid = {e["contestant"]: e for e in entries if e["valid"]}
    peers = [e for name, e in valid.items() if not name.startswith(("gemm", "xnn", "numpy"))]
    own = [valid[name] for name in ("xnn-fast", "xnn-numpy") if name in valid]
    for mine in (*own[:1], *([valid["xnn-cupy"]] if "xnn-cupy" in valid else [])):
        name = mine["contestant"]
        if rivals := [e for e in peers if on_gpu(e["contestant"]) == on_gpu(name)]:
            rival = min(rivals, key=lambda e: float(e["median"]))
            yield f"  {name} / best other library ({rival['contestant']}): {mine['median'] / rival['median']:.2f}"
    if "xnn-cupy" in valid:
        yield from _gpu(valid)
    if own and "xnn-cupy" in valid:
        gpu = valid["xnn-cupy"]
        yield (
            f"  xnn-cupy is {own[0]['median'] / gpu['median']:.2f} times as fast as {own[0]['contestant']}; from "
            f"the first contestant's run its losses differ by {gpu['loss_difference']:.0e}, its weights by "
            f"{gpu['weight_difference']:.0e}"
        )

    yield from _exact(valid)


def _gpu(valid: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines on the run on the GPU: the card's own rate, and the plan."""
    gpu = valid["xnn-cupy"]
    if limit := valid.get("gemm-cupy"):
        yield (
            f"  xnn-cupy runs at {limit['median'] / gpu['median']:.0%} of the card's own rate for its products "
            f"({limit['gflops'] / 1e3:.2f} TFLOP/s, alone in a CUDA graph)"
        )
    if "emulated" in str(gpu.get("plan")):
        yield "  the GPU is an emulated one, for tests: its times say nothing about a card"
    if plan := gpu.get("plan"):
        calls = plan["calls_per_step"]
        yield (
            f"  xnn-cupy: {plan['device']}, kernels {plan['kernels']}, "
            f"{'the persistent kernel' if plan.get('persistent') else f'{calls} calls a step'}, "
            f"{plan['steps_at_once']} step{'s'[: plan['steps_at_once'] > 1]} at once"
        )


def exact_lines(runs: Sequence[dict[str, Any]]) -> str:
    """What `suite.exact_digests` found, as lines of text."""
    lines = [f"  {e['contestant']}: no digest: {e['reason']}" for e in runs if not e["valid"]]
    return "\n".join([*lines, *_exact({e["contestant"]: e for e in runs if e["valid"]})])


def _exact(valid: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines on the cost of exact numerics, and on whether all exact runs have the same bits."""
    for name, entry in valid.items():
        plain = name.removesuffix(":exact")
        if plain != name and plain in valid:
            yield f"  {name} / {plain}: {entry['median'] / valid[plain]['median']:.2f}"
    exact = {name: e for name, e in valid.items() if "weights_sha256" in e and name.startswith("xnn")}
    for name, entry in exact.items():
        yield f"  {name}: weights {entry['weights_sha256'][:16]}, losses {entry['losses_sha256'][:16]}"
    if len(exact) == 1:
        yield "  one exact run, so no bits are compared"
    if len(exact) > 1:
        yield "  exact runs: " + (
            "all bits agree" if bits_agree(list(exact.values())) else "THEIR BITS DIFFER"
        )


def bits_agree(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether all exact runs of xnn among the entries have the same weights and losses, bit for bit."""
    own = [e for e in entries if e["valid"] and "weights_sha256" in e and e["contestant"].startswith("xnn")]
    return len({(e["weights_sha256"], e["losses_sha256"]) for e in own}) <= 1


def read(path: str) -> dict[str, Any]:
    """Read a file that `xnn bench --json` wrote. Raises OptionError if it is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        _figures(found)
        [found[key] for key in _CONDITIONS]
    except OSError as error:
        raise OptionError(
            f"cannot compare with {path}: {error.strerror}; xnn bench --json FILE makes one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(
            f"cannot compare with {path}: it is not a file of xnn bench --json; make one with this version"
        ) from None
    return found  # type: ignore[no-any-return]


def check_comparable(old: dict[str, Any], conditions: dict[str, Any]) -> None:
    """Raise OptionError if threads, data set or numerics differ from those of the older results."""
    for key in _CONDITIONS:
        if old[key] != conditions[key]:
            raise OptionError(f"cannot compare: {key} was {old[key]!r}, and is {conditions[key]!r} now")


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], int]:
    """Compare two results. Returns a line for each time that both have, and how many are slower than noise explains.

    If both have the times of the products alone on the same device, times are divided by those, so that a slower
    machine does not count as a regression. The noise of a ratio is the sum of the spreads of its times, and 5 %.
    """
    lines, slower, before, now = [], 0, _figures(old), _figures(new)
    for key in now:
        network, batch, name = key
        if key not in before or name.startswith("gemm"):
            continue
        used, what = [(now[key], before[key])], "the time before"
        limit = network, batch, _limit_of(name)
        if limit in now and limit in before:
            used.append((before[limit], now[limit]))
            what = "the time before, relative to the products alone"
        ratio = math.prod(above / below for (above, _), (below, _) in used)
        bound = 1.05 + sum(noise for pair in used for _, noise in pair)
        verdict = "slower" if ratio > bound else "faster" if ratio < 1 / bound else "within noise"
        slower += verdict == "slower"
        lines.append(
            f"{network}, batch {batch}, {name}: {ratio:.2f} x {what}, {verdict} (noise: up to {bound:.2f})"
        )
    if not lines:
        raise OptionError(
            "nothing to compare: the two files have no network, batch size and contestant in common"
        )
    return lines, slower


def _figures(written: dict[str, Any]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """{(network, batch size, contestant): (median time, spread)} of all valid results."""
    return {
        (task["network"], task["batch"], e["contestant"]): (float(e["median"]), float(e["spread"]))
        for task in written["results"]
        for e in task["entries"]
        if e["valid"] and e["median"] > 0
    }


def plot(written: dict[str, Any], path: str) -> None:
    """Save a plot: throughput by batch size, one panel for each network, and the first losses of all contestants."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(task["network"] for task in written["results"]))
    figure = Figure(figsize=(5.5 * (len(networks) + 1), 4.2), layout="constrained")
    for position, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks) + 1, position + 1)
        tasks = [task for task in written["results"] if task["network"] == network]
        for name in dict.fromkeys(e["contestant"] for task in tasks for e in task["entries"]):
            points = [
                (task["batch"], e["samples_per_second"])
                for task in tasks
                for e in task["entries"]
                if e["contestant"] == name and e["valid"]
            ]
            if points:
                axes.loglog(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name, base=2)
        axes.set(xlabel="batch size", ylabel="samples / s", title="-".join(map(str, tasks[0]["widths"])))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    axes, last = figure.add_subplot(1, len(networks) + 1, len(networks) + 1), written["results"][-1]
    for e in last["entries"]:
        if e["valid"] and not e["contestant"].startswith(("gemm", "sklearn")):
            axes.plot(e["losses"], label=e["contestant"], linewidth=1.2, alpha=0.8)
    axes.set(xlabel="step", ylabel="loss", title=f"{last['network']}, batch {last['batch']}: first losses")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    save_figure(figure, path)
