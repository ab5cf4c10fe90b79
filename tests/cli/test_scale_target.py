"""`xnn train --scale-target`: regressions of prices are learned in unit size and predicted in prices."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import one_json, refused, run

import xnn
from xnn.data import load

TRAIN = ("--epochs", 20, "--hidden", "8", "--lr", 0.1, "--threads", 1, "--scale-target")


@pytest.fixture
def prices(tmp_path):
    """Prices of some 400,000 that depend on two columns, without noise."""
    rng = np.random.default_rng(0)
    area, year = rng.uniform(40, 200, 200).round(2), rng.integers(1950, 2020, 200)
    price = (3000 * area + 500 * (year - 1950)).round()
    path = tmp_path / "prices.csv"
    rows = zip(area.tolist(), year.tolist(), price.tolist(), strict=True)
    path.write_text("area,year,price\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    return path


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_metrics_and_predictions_are_in_the_units_of_the_target(tmp_path, prices, numerics):
    save = tmp_path / "m.safetensors"
    report = one_json(
        run("train", "--dataset", prices, *TRAIN, "--numerics", numerics, "--save", save, "--json")
    )
    data = load(prices)
    found = xnn.load(save).predict(data.x_test)
    error = found - data.y_test
    assert report["test_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert report["test_rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert report["test_rmse"] < 0.2 * data.y_test.std()
    assert report["test_loss"] == pytest.approx((error**2).mean() / data.y_train.std() ** 2, rel=1e-4)
    assert report["history"][-1]["val_mae"] > 100
    printed = [float(line) for line in run("predict", save, prices).stdout.split()]
    assert (
        printed
        == xnn.load(save).predict(np.loadtxt(prices, delimiter=",", skiprows=1)[:, :2]).ravel().tolist()
    )


def test_several_targets_have_their_own_units(tmp_path, prices):
    save = tmp_path / "m.safetensors"
    words = ("--target", "price", "--target", "year", *TRAIN, "--save", save, "--json")
    report = one_json(run("train", "--dataset", prices, *words))
    data = load(prices, target=["price", "year"])
    error = xnn.load(save).predict(data.x_test) - data.y_test
    assert report["test_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert abs(error[:, 1]).max() < 200  # years, beside prices


def test_the_note_names_the_option_and_the_option_silences_it(prices):
    without = run("train", "--dataset", prices, "--epochs", 1, "--lr", 1e-9, "--quiet")
    assert "the targets are far from unit size (typically " in without.stderr
    assert "--scale-target" in without.stderr
    assert without.stderr.count("far from unit size") == 1
    assert run("train", "--dataset", prices, *TRAIN, "--quiet").stderr == ""


def test_a_record_is_verified(tmp_path, prices):
    record = tmp_path / "run.jsonl"
    words = ("--batch-size", 50, "--numerics", "exact", "--kernels", "ops", "--record", record, "--quiet")
    assert (
        run("train", "--dataset", prices, "--epochs", 1, "--hidden", "4", "--scale-target", *words).exit_code
        == 0
    )
    about = json.loads(record.read_text().splitlines()[0])
    assert about["run"]["scale_target"] is True
    result = run("verify", record, "kernels=numpy", "--dataset", prices)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("all bits agree\n")
    plain = tmp_path / "plain.jsonl"
    words = (
        "--batch-size",
        50,
        "--numerics",
        "exact",
        "--kernels",
        "ops",
        "--record",
        plain,
        "--quiet",
        "--lr",
        1e-9,
    )
    assert run("train", "--dataset", prices, "--epochs", 1, "--hidden", "4", *words).exit_code == 0
    assert run("verify", record, plain).exit_code == 2


@pytest.mark.parametrize("words", [(), ("--patience", 2), ("--average", 0.9), ("--loss", "huber")], ids=str)
def test_together_with_other_options(tmp_path, prices, words):
    save = tmp_path / "m.safetensors"
    report = one_json(run("train", "--dataset", prices, *TRAIN, *words, "--save", save, "--json"))
    data = load(prices)
    error = xnn.load(save).predict(data.x_test) - data.y_test
    assert report["test_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)


def test_it_is_for_regressions(folder):
    refused(
        run("train", "--dataset", folder / "two.csv", "--scale-target"),
        2,
        "--scale-target is for a regression",
    )
