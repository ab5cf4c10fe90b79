"""What ranks share besides training: predictions, the checks of `xnn check`, and the runs of `xnn verify`."""

from types import SimpleNamespace

import numpy as np
import pytest
from trainings import digits, mlp, on_each

import xnn
from xnn import layers, losses
from xnn.backends import get_backend
from xnn.backends.ranks.threads import in_threads
from xnn.cli import check
from xnn.cli.predict import predict_command
from xnn.errors import RankError
from xnn.runs.replay import lock_step
from xnn.runs.replay_ranks import RanksSide


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_predictions_are_those_of_one_process(numerics):
    x, _ = digits()

    def predict():
        trainer = mlp(numerics=numerics)
        return [trainer.predict(x, size).tobytes() for size in (32, 50, 1000)], trainer.predict(x[:0]).shape

    alone = predict()
    assert on_each(2, predict) == on_each(5, predict) == alone


def test_each_rank_predicts_its_batches_only(monkeypatch):
    x, _ = digits()

    def rows(ranks):
        seen = []
        trainer = mlp(layers.Dense(20, 8))
        run = trainer.model.run
        vars(trainer.model)["run"] = lambda part, **how: (seen.append(len(part)), run(part, **how))[1]
        monkeypatch.setattr("xnn.layers.parts.predicted", lambda *arguments: None)  # a faster way
        trainer.predict(x, 32)
        return seen

    assert in_threads(2, rows) == [[32, 32], [32, 32, 32]]


@pytest.mark.parametrize("work", ["predict", "evaluate"])
def test_what_differs_on_a_rank_is_named(work):
    x, y = digits()
    usual = {"seed": 1, "rows": len(x), "batch_size": 32, "numerics": "exact"}

    def compute(seed, rows, batch_size, numerics):
        trainer = mlp(seed=seed, numerics=numerics)
        trainer.predict(x[:rows], batch_size) if work == "predict" else trainer.evaluate(
            (x[:rows], y[:rows]), batch_size
        )

    for odd, said in (
        ({"rows": 9}, "data"),
        ({"seed": 2}, "(model|weights)"),
        ({"batch_size": len(x)}, "batch_size"),
        ({"numerics": "fast"}, "numerics"),
    ):
        with pytest.raises(RankError, match=f"rank 1 of 3 .* differs from rank 0 in: {said}"):
            in_threads(3, lambda ranks, odd=odd: compute(**usual | (odd if ranks.rank == 1 else {})))


@pytest.mark.parametrize(
    "odd", [{"loss": losses.SoftmaxCrossEntropy(label_smoothing=0.3)}, {"metrics": []}], ids=str
)
def test_a_loss_or_metrics_that_differ_are_named(odd):
    """The mean of two kinds of losses is neither."""
    data = digits()

    def evaluate(ranks):
        trainer = mlp()
        for name, part in odd.items() if ranks.rank else ():
            setattr(trainer, name, part)
        trainer.evaluate(data)

    with pytest.raises(RankError, match=r"rank 1 of 2 .* differs from rank 0 in: model, loss"):
        in_threads(2, evaluate)


@pytest.mark.parametrize("work", ["predict", "evaluate"])
def test_what_is_compared_goes_in_one_message(work):
    """A message of objects is two gatherings: their lengths, and themselves; the other is that of the results."""
    x, y = digits()

    def compute(ranks):
        trainer, before = mlp(), ranks.messages.copy()
        trainer.predict(x) if work == "predict" else trainer.evaluate((x, y))
        return ranks.messages - before

    results = {"predict": 3, "evaluate": 2}[work]
    assert in_threads(2, compute) == [{"gather": 2 + results}] * 2


def test_long_rows_are_gathered_in_pieces(monkeypatch):
    monkeypatch.setattr("xnn.backends.ranks.group._PIECE_BYTES", 64)
    parts = [np.arange(20.0).reshape(10, 2) + 100 * rank for rank in range(3)]
    found = in_threads(3, lambda ranks: ranks.gather_rows([parts[ranks.rank][: 3 * ranks.rank]]))
    assert all(np.array_equal(rows, np.concatenate([parts[1][:3], parts[2][:6]])) for rows in found)


def test_the_command_predicts_together_and_rank_0_prints(tmp_path, capsys):
    mlp().model.save(tmp_path / "model.safetensors")
    x, _ = digits(2500)
    np.save(tmp_path / "x.npy", x)
    given = str(tmp_path / "model.safetensors"), str(tmp_path / "x.npy"), None

    def predict(name):
        predict_command(*given, output=str(tmp_path / name), as_json=False)

    predict("alone.npy")
    alone = capsys.readouterr().out
    in_threads(3, lambda ranks: predict("together.npy"))
    assert capsys.readouterr().out == alone
    assert len(alone.splitlines()) == 2500
    assert (tmp_path / "together.npy").read_bytes() == (tmp_path / "alone.npy").read_bytes()


def test_checks_are_shared_and_a_training_is_added(monkeypatch):
    monkeypatch.setattr(check, "CASES", check.CASES[:5])
    lib = get_backend("numpy")
    alone = [*check.run_checks(["numpy"])]
    made = []
    gradient = check._gradient

    def wrong(lib, case):
        made.append(case.name)
        return (False, "planted") if case.name == check.CASES[2].name else gradient(lib, case)

    monkeypatch.setattr(check, "_gradient", wrong)
    first, second = in_threads(2, lambda ranks: [*check.shared_checks(lib)])
    assert first == second
    assert sorted(made) == sorted(case.name for case in check.CASES)
    assert [r.check for r in first[:-1]] == [r.check for r in alone]
    assert [r.detail for r in first if not r.ok] == ["planted"]
    assert first[-1].check == "2 ranks agree with one process on 20 training steps"


def test_runs_of_ranks_are_compared_with_one_process(tmp_path):
    x, y = digits()
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    run = {
        "hidden": [8],
        "activation": "relu",
        "optimizer": "sgd",
        "lr": 0.1,
        "batch_size": 32,
        "seed": 0,
        "dropout": 0.1,
    }
    task = {"run": run, "version": xnn.__version__, "dataset": str(tmp_path / "digits.npz"), "table": {}}
    task |= {"mode": "exact", "steps": 4, "resolved": False, "data_home": None}

    def side(ranks):
        found = RanksSide("workers=mpi,kernels=numpy", task, ranks)
        found.begin()
        return found

    alone = side(SimpleNamespace(size=1))
    one, other = in_threads(2, side)
    assert len(alone.record.steps) == 4
    assert one.record.steps == other.record.steps
    assert lock_step(alone, one, 4) is None
