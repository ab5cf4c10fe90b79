"""Of data in files each rank reads its own rows only: in training, validation, evaluation and predictions."""

import numpy as np
import pytest
from trainings import digits, mlp, outcome

from xnn import callbacks, data
from xnn.backends.ranks.threads import in_threads
from xnn.backends.row_sources import RowSource
from xnn.data.reader import Reader
from xnn.errors import DTypeError


class Counted(RowSource):
    """Rows of an array, and the numbers of those that were read."""

    def __init__(self, array):
        super().__init__(array.shape, array.dtype)
        self.array, self.seen = array, []

    def take(self, rows):
        self.seen += rows.tolist()
        return self.array[rows]


class Marks(callbacks.Callback):
    """Notes at the end of each epoch what was read in it, and in validation after it."""

    def __init__(self, *sources):
        self.sources, self.epochs = sources, []

    def on_epoch_end(self, history, entry):
        self.epochs.append([sorted(source.seen) for source in self.sources])
        for source in self.sources:
            source.seen.clear()


def own_rows(ranks, order, batch_size):
    """The numbers of this rank's rows of all batches; a batch of fewer rows than ranks is computed whole."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return np.concatenate([b if len(b) < ranks.size else b[ranks.share(len(b))] for b in batches])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rows", [160, 161])
def test_a_rank_reads_its_rows_of_each_batch(size, rows):
    x, y = digits(rows)
    order = data.Batches((x, y), 32, seed=5).order(1)

    def work(ranks):
        source, held_out = Counted(x), Counted(x[:80])
        marks = Marks(source, held_out)
        trainer = mlp(callbacks=[marks])
        trainer.fit(
            (source, y), validation=(held_out, y[:80]), epochs=2, batch_size=32, seed=5, progress=False
        )
        second, validated = marks.epochs[1]
        assert second == sorted(own_rows(ranks, order, 32))
        turns = [n for n in range(80) if n // 1024 % size == ranks.rank]
        assert set(validated) - {0} == set(turns) - {0}  # row 0 tells the dtype

    in_threads(size, work)


def test_a_rank_reads_its_batches_where_it_evaluates_and_predicts(monkeypatch):
    """Besides the checks, which ranks share, and samples of rows, which are compared with those of other ranks."""
    monkeypatch.setattr("xnn.training.predicting.known", lambda arrays: [])
    monkeypatch.setattr("xnn.training.inputs.warn_of_samples", lambda *arguments: None)
    x, y = digits()

    def work(ranks):
        source, trainer = Counted(x), mlp()
        trainer.evaluate((source, y), batch_size=16)
        checked = [*range(160)[ranks.share(160)]]
        evaluated = [n for n in range(160) if n // 16 % 3 == ranks.rank]
        assert [n for n in source.seen if n] == [n for n in checked + evaluated if n]
        source.seen.clear()
        trainer.predict(source, batch_size=16)
        own = range(10)[ranks.share(10)]
        predicted = [n for n in range(160) if n // 16 in own]
        assert [n for n in source.seen if n] == [n for n in 2 * predicted if n]

    in_threads(3, work)


@pytest.mark.parametrize("how", ["map", "shards"])
def test_data_in_files_give_the_bits_of_arrays(how, tmp_path):
    x, y = digits(161)

    def opened():
        if how == "map":
            np.save(tmp_path / "x.npy", x)
            return np.load(tmp_path / "x.npy", mmap_mode="r")
        for number, part in enumerate(np.array_split(x, 3)):
            np.save(tmp_path / f"x-{number}.npy", part)
        return data.open_arrays(tmp_path, mapped=True)["x"]

    def work(samples):
        trainer = mlp(numerics="exact")
        return outcome(trainer, trainer.fit((samples, y), epochs=2, batch_size=32, progress=False), (x, y))

    samples, alone = opened(), work(x)
    for found in in_threads(3, lambda ranks: work(samples)):
        assert found == alone


def test_a_fault_in_the_rows_of_one_rank_ends_all(tmp_path):
    x, y = digits()
    given = (x / 255).astype(np.float32)
    given[150, 2] = np.nan
    np.save(tmp_path / "x.npy", given)
    faulty = []

    def work(ranks):
        try:
            mlp().fit((np.load(tmp_path / "x.npy", mmap_mode="r"), y), progress=False)
        except DTypeError:
            faulty.append(ranks.rank)
            raise

    with pytest.raises(DTypeError, match="sample 150 holds NaN"):
        in_threads(3, work)
    assert faulty == [2]


def test_numbers_that_do_not_fit_are_an_error_on_each_rank():
    """Of an array in memory; so a program can catch it, and go on with the others."""
    x = np.zeros((160, 784))
    x[150, 3] = 1e300

    def work(ranks):
        with pytest.raises(DTypeError):
            mlp().predict(x, batch_size=16)
        return ranks.rank

    assert in_threads(2, work) == [0, 1]


def test_a_batch_by_hand_of_fewer_rows_than_ranks():
    x, y = digits(64)

    def work(ranks):
        batches = data.Batches((Counted(x), y), 8)
        reader = Reader(batches, lambda rows: slice(0, rows) if rows < 4 else ranks.share(rows))
        places = reader.places(np.array([5, 9, 2]))
        return reader.buffers[0][places]

    for found in in_threads(4, work):
        np.testing.assert_array_equal(found, x[[5, 9, 2]])
