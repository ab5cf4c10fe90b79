"""Random networks in other formats: ONNX there and back, C and PyTorch compute what predict computes, in float64."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess

import numpy as np
import pytest
from random_networks import close, random_network, random_samples

from xnn import exchange
from xnn.errors import OptionError

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
TOLERANCE = 1e-7
ONNX_TOLERANCE = (
    1e-5  # it keeps options such as epsilon in float32, and a normalization may magnify their rounding
)
# PyTorch warns that it copies the image.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def drawn(rng):
    """A network and samples, in float64: in float32 a normalization may magnify roundings to anything."""
    x = random_samples(rng, int(rng.integers(2, 6)), "float64")
    model = random_network(rng, x, 3, "float64")
    for buffer in model.buffers():
        buffer.value = rng.uniform(0.5, 2.0, buffer.shape)
    return model, x


@pytest.mark.sampled(3)
@pytest.mark.fuzz(40)
def test_onnx_there_and_back(rng, tmp_path):
    from onnx.reference import ReferenceEvaluator

    model, x = drawn(rng)
    exchange.to_onnx(model, tmp_path / "net.onnx", x.shape[1:])
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
    (found,) = ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"x": x})
    close(found, model.predict(x), ONNX_TOLERANCE, f"outputs of {model}")
    back = exchange.from_onnx(tmp_path / "net.onnx")
    close(back.predict(x), model.predict(x), ONNX_TOLERANCE, f"{back} instead of {model}")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc")
@pytest.mark.fuzz(20)
def test_c_computes_the_same(rng, tmp_path):
    model, x = drawn(rng)
    try:
        exchange.to_c(model, tmp_path / "net.c", input_shape=x.shape[1:])
    except OptionError:  # of a layer of images or words, or one that joins outputs
        return
    flags = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC")
    library = str(tmp_path / "net.so")
    subprocess.run(["cc", *flags, str(tmp_path / "net.c"), "-o", library, "-lm"], check=True, timeout=60)
    function, right = ctypes.CDLL(library).net_predict, model.predict(x)
    found = np.full_like(right, np.nan)
    for sample, output in zip(x, found, strict=True):
        function(ctypes.c_void_p(sample.ctypes.data), ctypes.c_void_p(output.ctypes.data))
    close(found, right, TOLERANCE, f"outputs of {model}")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.fuzz(20)
def test_pytorch_computes_the_same(rng, tmp_path):
    import torch

    model, x = drawn(rng)
    exchange.to_torch(model, tmp_path / "net.py", x.shape[1:])
    spec = importlib.util.spec_from_file_location("exported_network", tmp_path / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        found = module.load()(torch.from_numpy(x))
    close(found, model.predict(x), TOLERANCE, f"outputs of {model}")
