"""`xnn check`: check the gradients of all ops, and whether layers, graphs, autograd and all backends agree.

The ops and the inputs to try them on stand in the table `xnn/ops/cases.py`, which the tests read too.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import click
import numpy as np

from xnn import layers, losses, optimizers
from xnn.backends import (
    Backend,
    Purpose,
    Stream,
    available_backends,
    backend,
    backend_wanted,
    current_numerics,
    get_backend,
)
from xnn.backends.ranks.group import current_ranks, use_ranks
from xnn.cli.options import device_option, workers_option
from xnn.cli.surroundings import progress, say
from xnn.data import synthetic_digits
from xnn.errors import BackendUnavailableError
from xnn.files import notice
from xnn.graph import Input, Node, forward_pass, topological_sort
from xnn.graph.autograd import Value, gradients_of
from xnn.graph.backward import backpropagate
from xnn.graph.check import gradient_check
from xnn.layers import Layer
from xnn.layers.files import weights_sha256
from xnn.ops.cases import CASES, Case
from xnn.runs.mlp import mlp
from xnn.training import Trainer
from xnn.training.together import check_same

__all__ = ["Result", "check_command", "command", "compute_three_ways", "draw", "run_checks"]

# Allowed relative differences between two backends in float32: of one op, and of a run of 20 steps.
_OP_TOLERANCE, _RUN_TOLERANCE = 1e-5, 1e-3


# Not a docstring: `python -OO` removes those.
_HELP = """\
Check the gradients of all ops, and whether the backends agree.

Each op is tried as a layer, in a graph and under autograd, which must give the same bits; its gradient is
compared with finite differences. Exits with 1 if a check fails.

\b
xnn check
xnn check --table
xnn check --backend cupy --verbose
"""


@click.command("check", help=_HELP)
@device_option
@workers_option
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Check this backend; may be given several times. Default: all that run here.",
)
@click.option("--verbose", is_flag=True, help="Show every check, not only those that fail.")
@click.option("--table", is_flag=True, help="Show the error of each op's gradient on each backend.")
def command(backends: tuple[str, ...], verbose: bool, table: bool) -> None:
    """The command `xnn check`; its help is _HELP."""
    if not check_command(list(backends), verbose, table):
        sys.exit(1)


def check_command(names: list[str], verbose: bool, table: bool = False) -> bool:
    """Run all checks and print those that fail, and a line for each backend. Returns whether all passed.

    names: the backends; an empty list means all that run here.
    verbose: whether to print passed checks too.
    table: whether to print the error of each gradient; default False.
    """
    progressing = progress(everywhere=False)
    chosen = list(dict.fromkeys(get_backend(name) for name in _chosen_backends(names)))
    names = [lib.name for lib in chosen]
    if (ranks := current_ranks()) is not None:
        check_same(ranks, {"list of backends": [name.partition(":")[0] for name in names]})
    passed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    errors: dict[str, dict[str, float]] = {}
    for lib in chosen:
        count, what = _count(lib)
        notice(f"xnn: {lib.name}: {count} checks: {what}")
        for number, result in enumerate(shared_checks(lib), 1):
            (passed if result.ok else failed)[lib.name] += 1  # another rank may have another GPU
            if result.error is not None:
                errors.setdefault(result.case, {})[lib.name] = result.error
            if verbose or not result.ok:
                progressing("")
                say(f"{'ok  ' if result.ok else 'FAIL'} {result.backend}: {result.check}: {result.detail}")
            sys.stdout.flush()
            progressing(f"{lib.name}: {number} of {count}")
        progressing("")
    if table:
        _print_table(names, errors)
    for name in names:
        say(f"{name}: {passed[name]} passed, {failed[name]} failed")
    return not failed


def _count(lib: Backend) -> tuple[int, str]:
    """How many checks `run_checks` makes on a backend, and of what, in words."""
    each = f"for each of {len(CASES)} uses of the ops, the gradient"
    ranks, agree = current_ranks(), "whether layer, graph and autograd agree"
    together = "" if ranks is None else f", shared by {ranks.size} ranks; and a training by all"
    if lib.name == "numpy":
        return 2 * len(CASES) + bool(together), f"{each}, and {agree}{together}"
    more = f"{agree}, and whether numpy does; and a training on both{together}"
    return 3 * len(CASES) + 1 + bool(together), f"{each}, {more}"


def _chosen_backends(names: list[str]) -> list[str]:
    """The backends to check. Raises BackendUnavailableError for a chosen one that does not run here."""
    reasons = available_backends()
    if not names:
        backend_wanted()  # must run here, although all backends that do are checked
        names = [name for name, reason in reasons.items() if not reason]
        for reason in filter(None, reasons.values()):
            notice(f"not checked: {reason}")
    for name in names:
        if reasons.get(name):
            raise BackendUnavailableError(reasons[name])
    return names


def _print_table(names: list[str], errors: dict[str, dict[str, float]]) -> None:
    """Print a row for each case and a column for each backend."""
    width = max(map(len, errors), default=0)
    columns = [max(len(name), 7) for name in names]
    heads = "  ".join(f"{name:>{n}}" for name, n in zip(names, columns, strict=True))
    say(f"{'gradient error of':<{width}}  {heads}")
    for case, found in errors.items():
        cells = (f"{found[name]:.1e}" if name in found else "failed" for name in names)
        row = "  ".join(f"{cell:>{n}}" for cell, n in zip(cells, columns, strict=True))
        say(f"{case:<{width}}  {row}")


# The checks.


def draw(case: Case, dtype: str) -> list[Any]:
    """The case's inputs as NumPy arrays; floating-point ones are of `dtype`."""
    return [_draw(spec, dtype, n) for n, spec in enumerate(case.inputs)]


def _draw(spec: Any, dtype: str, number: int) -> Any:
    if isinstance(spec, float):
        return spec
    stream = Stream(7, Purpose.DIRECTIONS, 100, number)
    kind, shape = (spec[0], spec[1]) if spec and isinstance(spec[0], str) else ("any", spec)
    unit = np.asarray(stream.uniform(shape))
    if kind == "bool":
        return np.asarray(unit < 0.5)
    if kind == "int":
        return (unit * spec[2]).astype(np.int64)
    if kind == "unit":
        return unit.astype(dtype)
    signed = 2.0 * unit - 1.0
    away = np.sign(signed) * (0.1 + 1.9 * np.abs(signed))
    return np.asarray(np.abs(away) if kind == "positive" else away, dtype=dtype)


@dataclass(frozen=True)
class Result:
    """The result of one check.

    backend, check: which backend, and what was checked.
    ok: whether it passed.
    detail: a text for the user.
    error: of a gradient, relative to the largest derivative; None for other checks.
    case: the name of the case; "" for a check of a whole training.
    """

    backend: str
    check: str
    ok: bool
    detail: str
    error: float | None = None
    case: str = ""


def run_checks(names: list[str]) -> Iterator[Result]:
    """Run every check on these backends, one result at a time.

    Raises UnknownBackendError or BackendUnavailableError for a backend that cannot be used.
    """
    for name in names:
        lib = get_backend(name)
        with backend(name):
            for title, check, case in _checks(lib):
                yield _safely(lib, title, check, case)


def shared_checks(lib: Backend) -> Iterator[Result]:
    """The results of `run_checks` on a backend. Several ranks each make a part of the checks, and get all results.

    They also train a network together, and compare it with the training of one process.
    """
    ranks = current_ranks()
    if ranks is None:
        yield from run_checks([lib.address])
        return
    with backend(lib.address):
        with use_ranks(None):
            own = [_safely(lib, *check) for check in islice(_checks(lib), ranks.rank, None, ranks.size)]
        for turn in zip_longest(*ranks.gather_objects(own)):
            yield from filter(None, turn)
        title = f"{ranks.size} ranks agree with one process on 20 training steps"
        yield _safely(lib, title, _together, None)


def _checks(lib: Backend) -> Iterator[tuple[str, Callable[..., Any], Case | None]]:
    """The checks on a backend: what is checked, the function that does it, and what it is given."""
    for case in CASES:
        yield f"gradient of {case.name}", _gradient, case
        yield f"layer, graph and autograd agree on {case.name}", _same_bits, case
        if lib.name != "numpy":
            yield f"numpy agrees on {case.name}", _agreement, case
    if lib.name != "numpy":
        yield "numpy agrees on 20 training steps", _training, None


def _safely(lib: Backend, title: str, check: Callable[..., Any], case: Case | None) -> Result:
    name = case.name if case else ""
    try:
        ok, detail, *error = check(lib, case)
    except Exception as fault:  # the check has failed; the others still run
        return Result(lib.name, title, False, f"{type(fault).__name__}: {fault}", case=name)
    return Result(lib.name, title, ok, detail, error[0] if error else None, name)


def _device(lib: Backend, inputs: list[Any]) -> list[Any]:
    return [lib.to_device(x) if isinstance(x, np.ndarray) else x for x in inputs]


def _gradient(lib: Backend, case: Case) -> tuple[bool, str, float]:
    inputs = _device(lib, [x for x in draw(case, "float64") if isinstance(x, np.ndarray)])
    fixed = [x for x in draw(case, "float64") if isinstance(x, float)]
    report = gradient_check(lambda *xs: case.op(*xs, *fixed, **case.options), *inputs)
    return bool(report) and report.checked > 0, str(report), report.error


class _Bound(Layer):
    """A layer that applies an op to its input and to the other inputs of a case, which are fixed."""

    def __init__(self, case: Case, rest: list[Any]) -> None:
        super().__init__()
        self.op, self.rest, self.fixed = case.op, tuple(rest), case.options

    def compute(self, x: Any) -> Any:
        return self.op(x, *self.rest, **self.fixed)


def compute_three_ways(lib: Backend, case: Case, dtype: str) -> dict[str, list[np.ndarray | None]]:
    """The output and gradients of a case, computed as a layer, in a graph and under autograd.

    lib: the backend.
    dtype: of the floating-point inputs.

    The keys are "layer", "graph" and "autograd". Each list has the output, then the gradient of each input, None for
    integers and masks. The list of the layer has only the gradient of the first input.
    """
    inputs = _device(lib, draw(case, dtype))
    layer = _Bound(case, inputs[1:])
    y = layer.forward(inputs[0])
    seed = lib.to_device(Stream(7, Purpose.DIRECTIONS, 101).uniform(tuple(y.shape), -1.0, 1.0).astype(dtype))

    nodes = [Input(x) if hasattr(x, "shape") else x for x in inputs]
    output: Node = case.op(*nodes, **case.options)
    order = topological_sort({node: None for node in nodes if isinstance(node, Input)})

    floating = [hasattr(x, "shape") and lib.xp.isdtype(x.dtype, "real floating") for x in inputs]
    values = [Value(x) if wanted else x for x, wanted in zip(inputs, floating, strict=True)]
    result = case.op(*values, **case.options)
    gradients = iter(gradients_of(result, seed, [v for v in values if isinstance(v, Value)]))

    found = {
        "layer": [y, layer.backward(seed)],
        "graph": [forward_pass(order), *backpropagate(order, {output: seed})[output]],
        "autograd": [result.value, *(next(gradients) if wanted else None for wanted in floating)],
    }
    return {way: [None if a is None else lib.to_host(a) for a in arrays] for way, arrays in found.items()}


def _same_bits(lib: Backend, case: Case) -> tuple[bool, str]:
    found = compute_three_ways(lib, case, "float32")
    for way in ("layer", "graph"):
        for a, b in zip(found[way], found["autograd"], strict=False):  # a layer has only one gradient
            if (a is None) != (b is None) or (a is not None and b is not None and a.tobytes() != b.tobytes()):
                return False, f"{way} and autograd give different bits"
    return True, "layer, graph and autograd: same bits"


def _agreement(lib: Backend, case: Case) -> tuple[bool, str]:
    worst = 0.0
    here, there = (
        compute_three_ways(library, case, "float32")["graph"] for library in (get_backend("numpy"), lib)
    )
    for a, b in zip(here, there, strict=True):
        if (a is None) != (b is None):
            return False, "only one of the backends gives a gradient"
        if a is not None and b is not None:
            if a.shape != b.shape or a.dtype != b.dtype:
                return False, f"numpy gives {a.dtype}{a.shape}, {lib.name} {b.dtype}{b.shape}"
            worst = max(worst, _difference(a, b))
    return worst <= _allowed(_OP_TOLERANCE), f"largest relative difference {worst:.1e}"


def _allowed(tolerance: float) -> float:
    """The tolerance between two backends, which is 0 in exact numerics."""
    return 0.0 if current_numerics() == "exact" else tolerance


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| in units of the largest |a|."""
    gap = np.max(np.abs(a.astype(float) - b.astype(float)), initial=0.0)
    return float(gap / max(float(np.max(np.abs(a), initial=0.0)), 1e-30))


def _training(lib: Backend, _: Case | None) -> tuple[bool, str]:
    """Train a small network with dropout on NumPy and on `lib`.

    Initial weights and masks must have the same bits; losses and final weights may differ by rounding.
    """
    x, y = synthetic_digits(640)
    runs = []
    for name in ("numpy", lib.address):
        with backend(name):
            model = mlp(784, (32,), 10, dropout=0.2, rescale=(1 / 255, 0.0), seed=3)
            start = [model.backend.to_host(p.value) for p in model.parameters()]
            optimizer = optimizers.SGD(learning_rate=0.1, momentum=0.9)
            history = Trainer(model, losses.SoftmaxCrossEntropy(), optimizer).fit(
                (x, y), seed=3, progress=False
            )
            mask = layers.Dropout(0.5, seed=1).forward(
                model.backend.to_device(np.ones((8, 5), np.float32)), training=True
            )
            end = np.concatenate([model.backend.to_host(p.value).ravel() for p in model.parameters()])
            runs.append((start, model.backend.to_host(mask), history["loss"][0], end))
    (start, mask, loss, end), (start2, mask2, loss2, end2) = runs
    same = all(a.tobytes() == b.tobytes() for a, b in zip(start, start2, strict=True)) and np.array_equal(
        mask, mask2
    )
    drift = max(abs(loss - loss2) / loss, _difference(end, end2))
    detail = f"same start and masks: {same}; losses and weights drift by {drift:.1e}"
    return same and drift <= _allowed(_RUN_TOLERANCE), detail


def _together(lib: Backend, _: Case | None) -> tuple[bool, str]:
    """Train in exact numerics together with the other ranks and alone: the bits must be the same."""
    x, y = synthetic_digits(640)
    found = []
    for workers in (None, "none"):
        model = mlp(784, (32,), 10, dropout=0.2, rescale=(1 / 255, 0.0), seed=3)
        how: dict[str, Any] = {"numerics": "exact", "workers": workers}
        trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1, momentum=0.9), **how)
        found.append((trainer.fit((x, y), seed=3, progress=False).losses_sha256, weights_sha256(model)))
    return found[0] == found[
        1
    ], f"losses and weights {'have' if found[0] == found[1] else 'do not have'} one digest"
