"""The self-check of exact numerics: correct backends pass, and each fault of a backend is found and named."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faulty_backends import CONTROLS, PRODUCTS, SOUND, Faulty, Replaced, in_float32, is_float, some_a_bit_off

import xnn
from xnn import layers, losses
from xnn.backends import exact, get_backend, numerics, use_numerics
from xnn.backends.base import Backend
from xnn.backends.communicator import with_communicator
from xnn.backends.exact import ExactNamespace, functions, selfcheck
from xnn.backends.exact.reference import ARGUMENTS, KNOWN, float32_bits, pairs, root, rounded
from xnn.backends.exact.selfcheck import check, failures
from xnn.backends.numpy_backend import NumpyBackend
from xnn.errors import NumericsError

f4, f8 = np.float32, np.float64


# Faults that are found.


def found(lib: Backend) -> list[str]:
    return failures(ExactNamespace(lib))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", CONTROLS)
def test_a_fault_is_found_and_named(name):
    if name == "extended precision" and np.finfo(np.longdouble).nmant != 63:
        pytest.skip("no extended format here")
    lib, message = CONTROLS[name][0](), CONTROLS[name][1]
    lines = found(lib)
    assert [line for line in lines if message in line], lines
    assert not [line for line in lines if "\n" in line]
    with pytest.raises(NumericsError, match=r"cannot be kept on numpy \(numpy 2.*numerics='fast'") as caught:
        check(ExactNamespace(lib))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [f"product: {name}" for name in PRODUCTS if "float32 for" in name])
def test_a_faulty_product_is_the_only_report(kept):
    """Only products are reported, so each kind of product is tried at least once."""
    assert {line.split(" of ")[0] for line in found(CONTROLS[kept][0]())} == {"product"}


def test_bits_that_lose_the_sign_are_found():
    class Unsigned(NumpyBackend):
        def bits(self, x, dtype):
            return np.abs(np.asarray(x)).view(dtype) if is_float(x) else super().bits(x, dtype)

    assert any(line.startswith("bits of float64") for line in found(Unsigned()))


def test_a_function_with_a_wrong_last_bit_is_found(monkeypatch):
    log = functions.log
    monkeypatch.setattr(functions, "log", lambda lib, x: np.nextafter(log(lib, x), 9.0))
    assert {line.split(":")[0] for line in found(NumpyBackend())} == {"log", "pow"}


# Backends that pass.


@pytest.mark.parametrize("name", SOUND)
def test_a_backend_that_computes_in_another_correct_way_passes(name):
    assert found(SOUND[name]()) == []


def test_every_backend_passes(lib):
    assert found(lib) == []


def test_torch_passes_except_for_operations_that_it_does_not_round_correctly():
    """These may be its float64 square root (MKL's) and a number divided by a tensor (by multiplication)."""
    torch = pytest.importorskip("torch")
    xp = pytest.importorskip("array_api_compat.torch")

    class Namespace(Replaced):
        def __getattr__(self, name: str) -> Any:
            if name == "scatter_add":  # torch has another function of this name
                raise AttributeError(name)
            return getattr(xp, name)

    class Torch(Backend):
        name = "torch"

        def __init__(self) -> None:
            self.xp = Namespace()

        def to_device(self, x, dtype=None):
            return torch.from_numpy(np.array(x, dtype=dtype))

        def to_host(self, x):
            return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x)

        def describe(self):
            return {"library": f"torch {torch.__version__}"}

    numbers = pairs(2000)
    x, y = (torch.tensor([abs(float(pair[k])) for pair in numbers], dtype=torch.float64) for k in (0, 1))
    wrong = set()
    if torch.sqrt(torch.cat((x, y))).tolist() != [
        root(abs(n)) for n in (*column(numbers, 0), *column(numbers, 1))
    ]:
        wrong.add("sqrt")
    if (49.0 / y[:99]).tolist() != [rounded("/", 49, abs(m)) for m in column(numbers, 1)[:99]]:
        wrong.add("49.0 / y, a Python number")
    assert {line.split(":")[0].split(" of ")[0] for line in found(Torch())} == wrong
    if "sqrt" in wrong:
        with pytest.raises(NumericsError, match=r"cannot be kept on torch \(torch .*sqrt: \d+ of "):
            Torch().exact  # noqa: B018


def column(numbers: list[tuple[int, int]], k: int) -> list[int]:
    return [pair[k] for pair in numbers]


def numbers_of(integers: list[int]) -> np.ndarray:
    return np.array([float(n) for n in integers])


# The right answers of reference.py.


def test_the_reference_agrees_with_fractions_and_has_hard_cases():
    numbers = pairs(50)
    assert all(int(float(n)) == n and m and int(float(m)) == m for n, m in numbers)
    for n, m in numbers:
        for sign, right in (("+", n + m), ("-", n - m), ("*", n * m), ("/", Fraction(n, m))):
            y = Fraction(rounded(sign, n, m))
            near = [Fraction(math.nextafter(float(y), end)) for end in (-math.inf, math.inf)]
            assert all(abs(y - right) <= abs(z - right) for z in near)
        y = Fraction(root(abs(n)))
        low, high = (y + Fraction(math.nextafter(float(y), end)) for end in (0.0, math.inf))
        assert low * low < 4 * abs(n) < high * high  # the root lies between the midpoints to y's neighbours
    # Rounding first to 64 bits and then to 53 gives a wrong result for some pairs of each operation: they are within
    # 2^-64 of a tie.
    if np.finfo(np.longdouble).nmant == 63:
        a, b = (numbers_of([pair[k] for pair in pairs(0)]).astype(np.longdouble) for k in (0, 1))
        for sign, twice in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b)):
            assert (twice.astype(f8) != [rounded(sign, n, m) for n, m in pairs(0)]).any(), sign
        assert (np.sqrt(np.abs(a)).astype(f8) != [root(abs(n)) for n, _ in pairs(0)]).any()


def test_float32_bits_agree_with_numpy():
    rng = np.random.default_rng(5)
    for n, power in zip(rng.integers(2**52, 2**53, 500).tolist(), rng.integers(-150, 70, 500), strict=True):
        right = np.float32(math.ldexp(n, int(power))).view(np.int32)
        assert float32_bits(n, int(power)) == right
        assert float32_bits(-n, int(power)) == int(right) - 2**31
    assert float32_bits(2**53 - 1, 76) == 0x7F800000


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_values_are_right(name):
    reference = {
        "log": lambda x: math.log(abs(x)),
        "log1p": lambda x: math.log1p(abs(x)),
        "pow": lambda x: math.pow(abs(x), x / 2),
    }.get(name) or getattr(math, name)
    known = [float.fromhex(word) for word in KNOWN[name].split()]
    np.testing.assert_allclose(known, [reference(x) for x in ARGUMENTS], rtol=2e-14)


def test_the_functions_have_the_bits_of_the_known_values():
    assert selfcheck.known_values(ExactNamespace(NumpyBackend())) == KNOWN


# When the check runs.


@pytest.fixture
def counted(monkeypatch):
    """The names of the backends that were checked, one for each run of the check."""
    calls: list[str] = []

    def counting(namespace: ExactNamespace) -> None:
        calls.append(namespace.lib.name)
        check(namespace)

    monkeypatch.setattr(exact, "check", counting)
    return calls


def small_run(**options: Any) -> Any:
    model = xnn.Sequential(layers.Dense(3, 4), layers.ReLU(), layers.Dense(4, 2), seed=1)
    x, y = np.arange(24, dtype=f4).reshape(8, 3) / 24, np.arange(8) % 2
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), xnn.optimizers.SGD(0.1), **options)
    return model, lambda: trainer.fit((x, y), epochs=2, batch_size=4, progress=False)


def test_the_check_runs_once_for_each_backend_at_the_first_use(counted):
    lib = NumpyBackend()
    assert counted == []
    with numerics("fast"):
        assert lib.math is lib.xp
    assert counted == []
    use_numerics("exact")
    assert counted == []
    first = lib.math
    for _ in range(3):
        assert lib.math is lib.exact is first
    assert counted == ["numpy"]
    assert NumpyBackend().math is not first
    assert counted == ["numpy", "numpy"]


def test_a_training_run_checks_once(counted, monkeypatch):
    monkeypatch.delitem(vars(get_backend("numpy")), "exact", raising=False)
    _, fit = small_run(numerics="exact")
    fit()
    fit()
    assert counted == ["numpy"]


def test_a_failure_is_raised_at_every_use(counted):
    lib = Faulty(matmul=in_float32)
    for uses in (1, 2):
        with pytest.raises(NumericsError, match=r"product of 1 terms.*for example .* in place of "):
            lib.exact  # noqa: B018
        with numerics("exact"), pytest.raises(NumericsError, match="product of 1 terms"):
            lib.math  # noqa: B018
        assert len(counted) == 2 * uses
    assert lib.math is lib.xp
    assert "exact" not in vars(lib)


@pytest.mark.parametrize("kernels", ["ops", "auto"])
def test_a_machine_that_fails_the_check_trains_nothing(monkeypatch, kernels):
    lib = get_backend("numpy")
    monkeypatch.delitem(vars(lib), "exact", raising=False)
    monkeypatch.setattr(lib, "xp", Replaced(sqrt=some_a_bit_off))
    model, fit = small_run(numerics="exact", kernels=kernels)
    before = [p.value.copy() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(NumericsError, match=r"cannot be kept on numpy.*sqrt"):
            fit()
    assert all(np.array_equal(p.value, old) for p, old in zip(model.parameters(), before, strict=True))


def test_the_error_says_what_failed_of_each_kind_and_how_many_more():
    with pytest.raises(NumericsError) as caught:
        check(ExactNamespace(Faulty(matmul=in_float32, sqrt=some_a_bit_off)))
    text = str(caught.value)
    assert ": sqrt: " in text
    assert "; product of 1 terms of 26 and 27 bits: " in text
    assert " more. Try another version or build of the array library or its BLAS" in text


def test_the_check_does_not_use_the_communicator():
    class Alone(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the check asked for {name}")

    with with_communicator(Alone()):
        check(ExactNamespace(NumpyBackend()))


def test_running_out_of_memory_is_not_reported_as_a_fault():
    def full(*_: Any) -> Any:
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        failures(ExactNamespace(Faulty(matmul=full)))
