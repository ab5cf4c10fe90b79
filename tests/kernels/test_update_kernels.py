"""The compiled kernels of update rules, clipping, averages and running statistics compared with the ops."""

import inspect
from itertools import chain

import numpy as np
import pytest
from test_kernels import DTYPES, LIB, Both, close, numbers

from xnn.backends.kernels.calls import Call
from xnn.ops import updates
from xnn.ops.normalization import running_moments

pytest.importorskip("numba")

ADAM = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "beta1_power": 0.81, "beta2_power": 0.9801,
        "epsilon": 1e-8}  # fmt: skip
NADAM = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "mu": 0.8, "next_mu": 0.85, "mu_product": 0.7,
         "beta2_power": 0.98, "epsilon": 1e-8}  # fmt: skip
RMSPROP = {"learning_rate": 0.1, "alpha": 0.9, "epsilon": 1e-8}
#: The rule, the number of arrays in its state, and options.
RULES = [
    (updates.sgd, 0, {"learning_rate": 0.1}),
    (updates.sgd, 1, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    (updates.adagrad, 1, {"learning_rate": 0.1, "epsilon": 1e-10}),
    (updates.adadelta, 2, {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6}),
    (updates.adam, 2, ADAM),
    (updates.adam, 3, ADAM),
    (updates.adamw, 2, ADAM),
    (updates.adamw, 3, ADAM),
    (updates.nadam, 2, NADAM),
    (updates.lion, 1, {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99}),
    (updates.rmsprop, 1, RMSPROP),
    (updates.rmsprop, 2, {**RMSPROP, "momentum": 0.9}),
    (updates.rmsprop, 2, {**RMSPROP, "centered": True}),
    (updates.rmsprop, 3, {**RMSPROP, "momentum": 0.9, "centered": True}),
]


class Group:
    """Parameters whose arrays lie apart."""

    in_place, steady, is_shared = True, False, False

    def __init__(self, rule, arrays, options):
        self.width, self.options = 2 + arrays, options
        named = inspect.signature(rule).parameters.values()
        default = {p.name: p.default for p in named if p.kind is p.KEYWORD_ONLY}
        self.numbers = np.array([*{**default, **options}.values()], float)

    def stretches(self, call):
        return [tuple(slot.array.reshape(-1) for slot in column) for column in call.columns()]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("shapes", [[(1,)], [(0, 3), (7, 11)], [(300,), (2, 2)]], ids=str)
@pytest.mark.parametrize(("rule", "arrays", "options"), RULES, ids=lambda x: getattr(x, "__name__", None))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rules(dtype, rule, arrays, options, shapes, decay, special):
    both, options = Both(LIB.kernels("compiled")), {**options, "weight_decay": decay}
    kinds = ["w", "g", *(f"state{n}" for n in range(arrays))]
    for n, shape in enumerate(shapes):
        both.slot(f"w{n}", numbers(shape, dtype, n))
        both.slot(f"g{n}", numbers(shape, dtype, 10 + n, special))
        for kind in kinds[2:]:
            both.slot(f"{kind}{n}", np.abs(numbers(shape, dtype, 20 + n)))
    group = Group(rule, arrays, options)

    def make(s):
        slots = [[s[f"{kind}{n}"] for n in range(len(shapes))] for kind in kinds]
        writes = slots[:1] + slots[2:]
        return [Call("update", rule, tuple(chain(*slots)), tuple(chain(*writes)), rule=group)]

    found = both.run(make)
    for name, (kernel, plain) in found.items():
        close(kernel, plain, 40, special)
        assert name[0] != "g" or kernel.tobytes() == plain.tobytes()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
@pytest.mark.parametrize("shapes", [[(1,)], [(0, 3), (7, 11)], [(300,), (2, 2)]], ids=str)
@pytest.mark.parametrize("rule", [updates.clip_by_norm, updates.clip_by_value], ids=lambda r: r.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping(dtype, rule, shapes, limit, special):
    both = Both(LIB.kernels("compiled"))
    for n, shape in enumerate(shapes):
        both.slot(f"g{n}", numbers(shape, dtype, n, special))

    def make(s):
        gradients = tuple(s[f"g{n}"] for n in range(len(shapes)))
        return [Call("clip", rule, gradients, gradients, {"limit": limit})] * 2  # the second changes little

    for kernel, plain in both.run(make).values():
        close(kernel, plain, 8, special)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1,), (0, 3), (7, 11)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_weights_have_the_ops_bits(dtype, shape, special):
    both = Both(LIB.kernels("compiled"))
    both.slot("a", numbers(shape, dtype, 1))
    both.slot("w", numbers(shape, dtype, 2, special))
    rule = updates.moving_average
    found = both.run(lambda s: [Call("keep", rule, (s["a"], s["w"]), (s["a"],), {"decay": 0.9})] * 3)
    np.testing.assert_array_equal(*found["a"])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics(dtype, rows, special, scaled):
    both = Both(LIB.kernels("compiled"))
    for number, name in enumerate(("mean", "variance")):
        both.slot(name, numbers((6,), dtype, number))
    moments = numbers((3 if scaled else 2, 1, 6), dtype, 3, special)
    both.slot("moments", moments)
    options = {"momentum": 0.1, "axis": (0,), "shape": (rows, 6)}

    def make(s):
        reads = s["mean"], s["variance"], s["moments"]
        return [Call("keep", running_moments, reads, reads[:2], options)] * 2

    for kernel, plain in both.run(make).values():
        close(kernel, plain, 4, special)
