"""Microseconds per training step, beside the matrix products alone, the article's code and PyTorch.

    python benchmarks/step_time.py [--rounds 5] [--threads 2] [--json FILE]

Every contestant runs in a process of its own (two BLAS libraries in one process slow each other down), in
turn, `rounds` times; figures are medians with the spread, ratios are of medians. Same float32 data in memory
(float64 for the article's code), shuffled batches drawn inside the timed loop, plain SGD, loss at each step.
`xnn bench` will take this over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time

NETWORKS = [
    ((784, 100, 200, 10), 32),
    ((784, 100, 200, 10), 128),
    ((784, 512, 256, 10), 128),
    ((784, 1000, 500, 10), 256),
    ((784, 1000, 500, 10), 1024),
]
ROWS = 8192


def steps_for(sizes, batch):
    """About half a second's worth."""
    flops = 6 * batch * sum(a * b for a, b in itertools.pairwise(sizes))
    return max(20, min(2000, int(3e10 / flops)))


def images():
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (ROWS, 784)).astype(np.uint8), rng.integers(0, 10, ROWS)


def batches(batch):
    import numpy as np

    rng = np.random.default_rng(1)
    while True:
        order = rng.permutation(ROWS)
        yield from (order[i : i + batch] for i in range(0, ROWS - batch + 1, batch))


def gemm_only(sizes, batch):
    """The products of a step and nothing else, into buffers: the limit of a NumPy program."""
    import numpy as np

    rng = np.random.default_rng(0)
    w = [rng.normal(size=s).astype("f4") for s in itertools.pairwise(sizes)]
    a = [rng.normal(size=(batch, n)).astype("f4") for n in sizes]
    gw, ga = [np.empty_like(x) for x in w], [np.empty_like(x) for x in a]

    def step():
        for i in range(len(w)):
            np.matmul(a[i], w[i], out=ga[i + 1])
        for i in reversed(range(len(w))):
            np.matmul(a[i].T, a[i + 1], out=gw[i])
            if i:
                np.matmul(a[i + 1], w[i].T, out=ga[i])

    return step


def article(sizes, batch):
    """The MNIST article's Dense and ReLU classes: float64, a fresh array for everything."""
    import numpy as np

    x, y = images()
    x, rng = x / 255.0, np.random.default_rng(0)
    w = [rng.normal(scale=np.sqrt(2 / sum(s)), size=s) for s in itertools.pairwise(sizes)]
    b = [np.zeros(n) for n in sizes[1:]]
    draw = batches(batch)

    def step():
        rows = next(draw)
        acts = [x[rows]]
        for i in range(len(w)):
            z = acts[-1] @ w[i] + b[i]
            acts.append(np.maximum(0, z) if i < len(w) - 1 else z)
        t = np.zeros_like(acts[-1])
        t[np.arange(batch), y[rows]] = 1
        z = acts[-1]
        loss = np.mean(-z[np.arange(batch), y[rows]] + np.log(np.sum(np.exp(z), axis=-1)))
        g = (np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) - t) / batch
        for i in reversed(range(len(w))):
            back = g @ w[i].T
            w[i] = w[i] - 0.1 * (acts[i].T @ g)
            b[i] = b[i] - 0.1 * g.sum(axis=0)
            g = back * (acts[i] > 0)
        return float(loss)

    return step


def xnn_train(sizes, batch):
    """Trainer.fit as `xnn train` runs it, metrics included."""
    from xnn import losses, optimizers
    from xnn.models import mlp
    from xnn.training import Trainer

    model = mlp(sizes[0], sizes[1:-1], sizes[-1], rescale=(1 / 255, 0.0))
    return Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)), images()


def torch_eager(sizes, batch):
    import torch

    torch.manual_seed(0)
    stack = []
    for a, b in itertools.pairwise(sizes):
        stack += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    net = torch.nn.Sequential(*stack[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = images()
    x, y = torch.tensor(x / 255.0, dtype=torch.float32), torch.tensor(y)
    draw = batches(batch)

    def step():
        rows = torch.from_numpy(next(draw))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CONTESTANTS = {"gemm": gemm_only, "article": article, "xnn": xnn_train, "torch": torch_eager}


def child(name, number, threads):
    """Time one contestant; microseconds per step on standard output."""
    sizes, batch = NETWORKS[number]
    if name == "torch":
        import torch

        torch.set_num_threads(threads)
    made = CONTESTANTS[name](sizes, batch)
    if name == "xnn":
        trainer, data = made
        epochs = max(1, steps_for(sizes, batch) * batch // ROWS)
        trainer.fit(data, batch_size=batch, progress=False)
        print(1000 * trainer.fit(data, epochs=epochs, batch_size=batch, progress=False).ms_per_step)
        return
    for _ in range(10):
        made()
    count = steps_for(sizes, batch)
    start = time.perf_counter()
    for _ in range(count):
        made()
    print(1e6 * (time.perf_counter() - start) / count)


def measure(name, number, threads):
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--child", name, str(number), "--threads", str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), options.threads)
        return
    import numpy

    results = []
    print(
        f"{'network, batch':<28}"
        + "".join(f"{name:>16}" for name in CONTESTANTS)
        + f"{'xnn/gemm':>10}{'xnn/torch':>10}"
    )
    for number, (sizes, batch) in enumerate(NETWORKS):
        times = {name: [] for name in CONTESTANTS}
        for _ in range(options.rounds):
            for name in CONTESTANTS:
                taken = measure(name, number, options.threads)
                if taken is not None:
                    times[name].append(taken)
        medians = {name: statistics.median(t) for name, t in times.items() if t}
        label = f"{'-'.join(map(str, sizes))}, {batch}"
        shown = "".join(
            f"{medians[n]:>9.0f} +-{100 * (max(t) - min(t)) / 2 / medians[n]:>3.0f}%" if t else f"{'-':>16}"
            for n, t in times.items()
        )
        ratios = [
            f"{medians['xnn'] / medians[n]:>10.2f}" if n in medians else f"{'-':>10}"
            for n in ("gemm", "torch")
        ]
        print(f"{label:<28}{shown}{''.join(ratios)}", flush=True)
        results.append({"network": list(sizes), "batch": batch, "us_per_step": medians, "all": times})
    if options.json:
        about = {"platform": platform.platform(), "cores": os.cpu_count(), "numpy": numpy.__version__}
        with open(options.json, "w") as file:
            json.dump(
                {**about, "threads": options.threads, "rounds": options.rounds, "results": results},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
