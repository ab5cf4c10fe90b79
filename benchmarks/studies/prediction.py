"""Times predictions of xnn beside those of PyTorch: one image, and 1,000 images.

    python -m xnn.benchmarks.studies.prediction [--preset lenet,vgg,resnet,norms] [--threads 1] [--repeat 9]

Both have the same weights, and the outputs are compared. xnn gets bytes, which the model rescales, and its time is
that of a whole call of `predict`. PyTorch gets tensors of float32 in `inference_mode`; it is the faster one of eager
mode and channels last. The two take turns. A line shows the median of each in milliseconds, and the median of the
ratios of paired turns with its quartiles. Where Numba is installed, lines of NumPy's kernels follow, for which it is
hidden.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xnn.backends.threads import limit_threads
from xnn.benchmarks import networks
from xnn.benchmarks.peers import set_threads
from xnn.benchmarks.studies.scikit_learn import paired
from xnn.benchmarks.suite import quartiles

__all__ = ["main"]

_TURN = 0.02  # seconds that a turn takes at least: a call of one image is short
_CLOSE = 1e-4  # how far outputs may be apart, relative to the largest


def _predictions(name: str, rows: int) -> tuple[Callable[[], Any], list[Callable[[], Any]]]:
    """Functions that predict: of xnn, and of PyTorch in both memory formats. They agree."""
    given = networks.weights(name, 0)
    images = np.random.default_rng(0).integers(0, 256, (rows, 784), np.uint8)
    model = networks.in_xnn(name)
    for parameter, value in zip(model.parameters(), given, strict=True):
        parameter.value = value
    wanted = model.predict(images)
    theirs: list[Callable[[], Any]] = []
    for form in ("torch", "torch-channels-last"):
        peer = networks.TorchNetwork(name, form, given, [], images, np.zeros(rows, np.int64), rows, 0.1)
        net, x, torch = peer.net.eval(), peer.x, peer.torch

        predict = partial(_in_torch, torch, net, x)
        far = np.abs(predict().numpy() - wanted).max() / np.abs(wanted).max()
        if not far < _CLOSE:
            raise AssertionError(f"the outputs of {name} in xnn and in {form} differ by {far:g}")
        theirs.append(predict)
    return lambda: model.predict(images), theirs


def _in_torch(torch: Any, net: Any, x: Any) -> Any:
    with torch.inference_mode():
        return net(x)


def _seconds(call: Callable[[], Any]) -> float:
    """The least seconds of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _compare(name: str, kernels: str, rows: int, repeat: int) -> None:
    """Print a line."""
    ours, theirs = _predictions(name, rows)
    peer = min(theirs, key=_seconds)
    times = max(1, int(_TURN / _seconds(ours)))
    mine, other, ratios = paired(
        lambda: [ours() for _ in range(times)], lambda: [peer() for _ in range(times)], repeat
    )
    low, middle, high = quartiles(ratios)
    line = f"{name}, {rows:,} image{'s' * (rows > 1)}, {kernels}"
    print(
        f"{line:34}{1e3 * mine / times:10.3f}{1e3 * other / times:10.3f}{middle:8.2f}  {low:.2f} .. {high:.2f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table. arguments: those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="lenet,vgg,resnet,norms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=9)
    given = parser.parse_args(arguments)
    set_threads("torch", given.threads)
    print(f"{'ms':34}{'xnn':>10}{'PyTorch':>10}{'ratio':>8}  quartiles")
    numba, hidden = sys.modules.get("numba"), importlib.util.find_spec("numba") is None
    try:
        for kernels in ("numpy",) if hidden else ("compiled", "numpy"):
            if kernels == "numpy":
                sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed
            with limit_threads(given.threads):
                for name in given.preset.split(","):
                    for rows in (1, 1000):
                        _compare(name, kernels, rows, given.repeat)
    finally:
        sys.modules.pop("numba", None)
        if numba is not None:
            sys.modules["numba"] = numba


if __name__ == "__main__":
    main()
