"""The summary of a run on a machine with a GPU: the device, each target with its figure, and how the parts ended."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["TARGETS", "collect", "summary"]

_PACKAGES = ("xnn-engine", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "jax", "numba")
_PEERS = ("torch-gpu", "torch-gpu-graph", "torch-gpu-compile", "jax-gpu", "jax-gpu-scan")
_WIDE = 100  # the most characters of a part's last line

#: A measured figure as text, and whether it meets the target. A LookupError says why there is none.
Figure = tuple[str, bool]


def collect(parts: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the parts left in a folder, as one JSON value: `machine`, `parts` with their last lines, and `results`."""
    results, about = {}, []
    for part in parts:
        file, log = (folder / f"{part['name']}.{kind}" for kind in ("json", "txt"))
        with contextlib.suppress(OSError, ValueError):  # a part that failed leaves no file, or half of one
            results[part["name"]] = json.loads(file.read_text(encoding="utf-8"))
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        about.append({**part, "last": last[:_WIDE]})
    return {"machine": _machine(results), "parts": about, "results": results}


def _machine(results: dict[str, Any]) -> dict[str, Any]:
    """The device as CuPy and nvidia-smi name it, Python, and versions of packages."""
    plans = (e["plan"] for about in results.values() for e in _entries(about) if e.get("plan"))
    plan: dict[str, Any] = next((plan for plan in plans if plan["backend"].startswith("cupy")), {})
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": plan.get("device", "unknown"),
        "cuda": plan.get("cuda", "unknown"),
        "nvidia-smi": _nvidia_smi(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "not installed"
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True, timeout=20.0, check=False)
    return done.stdout.strip() or f"exit code {done.returncode}"


def _entries(about: Any) -> Iterator[dict[str, Any]]:
    """The contestants in the results of `xnn bench`; none in other results."""
    if isinstance(about, dict):
        for task in about.get("results", []):
            yield from task.get("entries", [])


def _contestants(results: dict[str, Any], part: str, network: str, batch: int) -> dict[str, dict[str, Any]]:
    """The contestants of a part with one network and batch size, by name. Raises LookupError without any."""
    for task in results["results"].get(part, {}).get("results", []):
        if (task.get("network"), task.get("batch")) == (network, batch):
            return {e["contestant"]: e for e in task["entries"]}
    raise LookupError(_why(results, part))


def _why(results: dict[str, Any], part: str) -> str:
    """Why a part has no result."""
    about = next(
        (known for known in results["parts"] if known["name"] == part), {"left_out": "it did not run"}
    )
    if about["left_out"]:
        return str(about["left_out"])
    if about["late"]:
        return f"{part} was stopped after {about['seconds']:.0f} s"
    return f"{part} ended with exit code {about['exit']}: {about['last']}"


def _median(found: dict[str, dict[str, Any]], name: str) -> float:
    """The median time of a contestant in microseconds. Raises LookupError if it has no figure."""
    if name not in found:
        raise LookupError(f"{name} did not run")
    if not found[name]["valid"]:
        raise LookupError(f"{name}: {found[name]['reason']}")
    return float(found[name]["median"])


def _captured(results: dict[str, Any]) -> Figure:
    us = _median(_contestants(results, "small", "article", 32), "xnn-cupy")
    return f"{us:.1f} us a step", us <= 30.0


def _persistent(results: dict[str, Any]) -> Figure:
    races = results["results"].get("persistent", {}).get("races", [])
    chosen = [race for race in races if (race["optimizer"], race["batch"]) == ("SGD", 32)]
    if not chosen:
        raise LookupError(_why(results, "persistent"))
    (race,) = chosen
    if "same" not in race:
        raise LookupError(race["plan"]["persistent_because"])
    if not race["same"]:
        raise LookupError("its losses differ from those of the graph")
    us, ratio = race["persistent_us"], race["graph_us"] / race["persistent_us"]
    return f"{us:.1f} us a step, the graph's time / its own {ratio:.2f}", us <= 15.0 and ratio > 1.0


def _ahead(results: dict[str, Any]) -> Figure:
    texts, ahead = [], True
    for name in _PEERS:
        part = "compiled-peer" if name == "torch-gpu-compile" else "small"  # each beside a run of xnn
        try:
            found = _contestants(results, part, "article", 32)
            ratio = _median(found, name) / _median(found, "xnn-cupy")
            texts.append(f"{name} {ratio:.2f}")
            ahead = ahead and ratio > 1.0
        except LookupError as reason:
            texts.append(f"{name} not measured ({reason})")
            ahead = False
    return f"their time / xnn's: {', '.join(texts)}", ahead


def _large_batch(results: dict[str, Any]) -> Figure:
    rate = 4096.0 / _median(_contestants(results, "large-batch", "article", 4096), "xnn-cupy")
    return f"{rate:.2f} M samples/s", rate >= 3.0


def _accuracy(results: dict[str, Any]) -> Figure:
    for_gpu = [
        e for e in results["results"].get("accuracy", {}).get("results", []) if e["contestant"] == "xnn-cupy"
    ]
    reached = [e for e in for_gpu if e["reached"]]
    if not for_gpu:
        raise LookupError(_why(results, "accuracy"))
    if not reached:
        raise LookupError("; ".join(f"{e['recipe']}: {e['reason'] or 'not reached'}" for e in for_gpu))
    best = min(reached, key=lambda e: float(e["median_seconds"]))
    return f"{best['median_seconds']:.2f} s by {best['recipe']}", best["median_seconds"] <= 0.3


def _share(results: dict[str, Any]) -> Figure:
    found = _contestants(results, "ciresan", "ciresan", 1024)
    share = _median(found, "gemm-cupy") / _median(found, "xnn-cupy")
    return f"{share:.0%} of the rate of its products alone", share >= 0.85


def _exact(part: str, network: str, batch: int) -> Callable[[dict[str, Any]], Figure]:
    def figure(results: dict[str, Any]) -> Figure:
        found = _contestants(results, part, network, batch)
        ratio = _median(found, "xnn-cupy:exact") / _median(found, "xnn-cupy")
        return f"{ratio:.2f} x fast", ratio <= 3.0

    return figure


#: The targets, on an NVIDIA H200, and where their figures come from.
TARGETS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "784-100-200-10, batch 32: at most 30 us a step, captured": _captured,
    "784-100-200-10, batch 32: at most 15 us a step, persistent": _persistent,
    "784-100-200-10, batch 32: ahead of PyTorch and JAX in every form": _ahead,
    "784-100-200-10, batch 4096: at least 3 M samples/s": _large_batch,
    "98 % of MNIST's test images in at most 0.3 s of training": _accuracy,
    "784-2500-2000-1500-1000-500-10, batch 1024: at least 85 % of its products alone": _share,
    "the same, exact: at most 3 x fast": _exact("exact-ciresan", "ciresan", 1024),
    "784-100-200-10, batch 32, exact: at most 3 x fast": _exact("exact", "article", 32),
}


def _target(results: dict[str, Any], figure: Callable[[dict[str, Any]], Figure]) -> str:
    """A target's figure as text, or why there is none."""
    if "emulated" in results["machine"]["device"]:
        return "not measured: the GPU is an emulated one"
    try:
        text, met = figure(results)
    except LookupError as reason:
        return f"not measured: {reason}"
    return f"{text}: {'met' if met else 'NOT MET'}"


def summary(results: dict[str, Any]) -> str:
    """One page of text on what `collect` has found."""
    machine = results["machine"]
    lines = [
        "xnn on a GPU" + (", a dry run" if results.get("short") else ""),
        f"device: {machine['device']}; CUDA {machine['cuda']}; nvidia-smi: {machine['nvidia-smi']}",
        f"Python {machine['python']}, " + ", ".join(f"{k} {v}" for k, v in machine["packages"].items()),
        "",
        "Targets on an H200, TF32 off, data on the card, whole epochs with reading the losses",
    ]
    for name, figure in TARGETS.items():
        lines += [f"  {name}", f"      {_target(results, figure)}"]
    lines += ["", f"{'Parts':<22}{'exit':>5}{'s':>7}"]
    for part in results["parts"]:
        if part["left_out"]:
            lines.append(f"  {part['name']:<20}left out: {part['left_out']}")
            continue
        end = "late" if part["late"] else str(part["exit"])
        lines.append(f"  {part['name']:<20}{end:>5}{part['seconds']:>7.1f}  {part['last']}")
    chunks = results["results"].get("chunks", {}).get("times", [])
    if chunks:
        lines += ["", "Steps handed over at once: us a step in CUDA graphs, and launch by launch"]
        lines += [f"  {t['chunk']:>4}{t['graph_us']:>10.1f}{t['eager_us']:>10.1f}" for t in chunks]
    return "\n".join(lines) + "\n"
