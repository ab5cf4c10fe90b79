"""xnn: a neural-network engine in plain Python whose array library is swappable.

model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(784, 100), layers.ReLU(), layers.Dense(100, 10))
trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(learning_rate=0.1))
trainer.fit((x, y), epochs=3)
"""

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# Ctrl-C while `xnn` or `python -m xnn`, whose name is -m so far, imports modules ends it without a traceback.
_command = os.path.basename(getattr(sys, "argv", [""])[0]) in ("xnn", "xnn.exe", "-m")
_before = signal.getsignal(signal.SIGINT)
if _command and _before is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

try:
    from xnn.backends import backend, numerics, use_backend, use_numerics
    from xnn.backends.threads import limit_threads as threads
    from xnn.backends.threads import use_threads
    from xnn.graph import autograd as autograd  # says how a called op is applied
    from xnn.graph.autograd import grad, value_and_grad
    from xnn.graph.habits import module_habits
    from xnn.ops import Op
finally:
    if _command:
        signal.signal(signal.SIGINT, _before)

if TYPE_CHECKING:
    from xnn import (
        backends,
        callbacks,
        data,
        errors,
        exchange,
        graph,
        initializers,
        layers,
        losses,
        metrics,
        ops,
        optimizers,
        schedules,
    )
    from xnn.graph.check import gradient_check
    from xnn.layers import Sequential
    from xnn.layers.from_torch import from_torch
    from xnn.layers.sequential import load
    from xnn.training import Trainer

__version__ = "0.2.0.dev0"

__all__ = [
    "Op",
    "Sequential",
    "Trainer",
    "backend",
    "backends",
    "callbacks",
    "data",
    "errors",
    "exchange",
    "from_torch",
    "grad",
    "gradient_check",
    "graph",
    "initializers",
    "layers",
    "load",
    "losses",
    "metrics",
    "numerics",
    "ops",
    "optimizers",
    "schedules",
    "threads",
    "use_backend",
    "use_numerics",
    "use_threads",
    "value_and_grad",
]

# Loaded when first asked for, so that `import xnn` costs little more than `import numpy`.
_LAZY = {
    "Sequential": "xnn.layers",
    "Trainer": "xnn.training",
    "from_torch": "xnn.layers.from_torch",
    "gradient_check": "xnn.graph.check",
    "load": "xnn.layers.sequential",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in __all__ or name == "sklearn":  # that needs an extra, and so `from xnn import *` omits it
        return importlib.import_module(f"xnn.{name}")
    return module_habits("xnn")(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
