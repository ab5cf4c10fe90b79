"""The benchmarks of xnn. The folder is imported as `xnn.benchmarks`; benchmarks/README.md lists the commands.

`xnn bench` (xnn/cli/bench.py) uses
    contestants.py        xnn as contestants, and the task that all contestants get
    peers.py              other libraries as contestants
    networks.py           LeNet-5, a small VGG and the like, in xnn and in PyTorch
    jax_networks.py       the same networks in JAX
    keras_networks.py     the same networks in Keras on JAX
    presets.py            which networks and batch sizes are timed
    worker.py             one contestant in a process of its own (xnn/runs/process.py)
    suite.py              runs contestants in turns, and checks and collects their times
    report.py             tables, plots, and comparisons with older results
    sweep.py              many widths and batch sizes: where a GPU is faster
    time_to_accuracy.py   seconds until a given accuracy is reached
    environment.py        processor, BLAS and versions, which every result states

Commands of their own, `python -m xnn.benchmarks.NAME`:
    digests                exact runs on many engines, compared bit for bit
    exactness.rounding     rounding errors of exact numerics
    studies.scaling        how cost grows with the size of data and networks
    studies.step_profile   the time of each part of a training step
    studies.by_hand        the time of a step without the Trainer, beside another checkout
"""

__all__ = []

if __name__ != "xnn.benchmarks":  # importing it under two names would create each class twice
    raise ImportError(f"import xnn.benchmarks, not {__name__!r}: the folder is one package under one name")
