"""The study of predictions beside PyTorch's, in a small run."""

import sys

import pytest

from xnn.benchmarks.studies import prediction, scikit_learn


def test_predictions_beside_pytorch(capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(scikit_learn, "_SETTLE", 0.0)
    monkeypatch.setattr(prediction, "_TURN", 0.0)
    before = sys.modules.get("numba")
    prediction.main(["--preset", "lenet", "--repeat", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("lenet, 1 image, numpy")
    assert lines[-1].startswith("lenet, 1,000 images, numpy")
    assert sys.modules.get("numba") is before or before is None
