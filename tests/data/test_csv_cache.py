"""Large CSV files: read once into files in the cache, with the results of reading them into memory."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from xnn import data
from xnn.backends.row_sources import is_mapped, reads_rows
from xnn.data import csv_cache, loading
from xnn.errors import CorruptFileError, DataError, DiskError, XnnError

RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.standard_normal((120, 3)).round(3)


def table(targets, names="a,b,c,kind", end="\n"):
    rows = (",".join([*map(str, row), str(target)]) for row, target in zip(NUMBERS, targets, strict=True))
    return end.join([*([names] if names else []), *rows, ""])


CLASSES = RANDOM.integers(0, 3, 120)
TABLES = {
    "names of classes": table(np.array(["setosa", "Malmö", "x y"])[CLASSES]),
    "numbers of classes": table(CLASSES),
    "no header": table(CLASSES, ""),
    "CRLF": table(CLASSES, end="\r\n"),
    "regression": table(RANDOM.standard_normal(120)),
    "codes": table(np.array(["007", "010", "100"])[CLASSES]),
    "quoted": table(np.array(['"NA"', '"a, b"', '"say ""so"""'])[CLASSES]),
    "over two lines": table(np.array(['"a\nb"', "c"])[CLASSES % 2]),
    "no name": table(CLASSES, ",b,b,kind"),
}
WRONG = {
    "missing": table(CLASSES).replace("\n", ",\n", 1) + "1,2,,0\n",
    "text": table(CLASSES) + "1,2,big,0\n",
    "short": table(CLASSES) + "1,2,3\n",
    "no target": table(CLASSES) + "1,2,3,\n",
    "damaged target": table(RANDOM.standard_normal(120)) + "1,2,3,4.5 kg\n",
    "nothing": "a,b,c\n",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(csv_cache, "_NUMBERS", 30)  # 10 rows at a time
    yield
    end_use()


def end_use():
    """Unlock all tables, as when the process has ended."""
    while csv_cache._used:
        csv_cache._used.popitem()[1].close()


def load(path, monkeypatch, large=True, **options):
    with monkeypatch.context() as patch:
        patch.setattr(loading, "LARGE", 1 if large else 2**30)
        return data.load(path, **options)


def equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(np.asarray(one), other)
        assert one.dtype == other.dtype
    for attribute in ("task", "labels", "columns", "advice", "note"):
        assert getattr(found, attribute) == getattr(wanted, attribute)
    assert found.scaling_layer().config() == wanted.scaling_layer().config()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("most", [2**16, 4])
@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_the_data_are_those_in_memory(tmp_path, monkeypatch, capsys, text, most):
    monkeypatch.setattr(csv_cache, "_MOST_CODES", most)
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    wanted = load(path, monkeypatch, large=False)
    for told in (1, 0):  # the second time, from the cache
        found = load(path, monkeypatch)
        assert reads_rows(found.x_train)
        equal(found, wanted)
        assert capsys.readouterr().err.count("xnn: reading") == told


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_faults_are_those_in_memory(tmp_path, monkeypatch, text):
    path, said = tmp_path / "t.csv", []
    path.write_text(text, encoding="utf-8")
    for large in (False, True, True):
        with pytest.raises(XnnError) as caught:
            load(path, monkeypatch, large)
        said.append(str(caught.value))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("name", ["names of classes", "regression", "over two lines", "no header", "CRLF"])
@pytest.mark.parametrize("most", [2**16, 4])
def test_reading_that_was_ended_goes_on_where_it_ended(tmp_path, monkeypatch, capsys, name, most):
    monkeypatch.setattr(csv_cache, "_MOST_CODES", most)
    path, rows = tmp_path / "t.csv", []
    path.write_text(TABLES[name], encoding="utf-8", newline="")
    wanted = load(path, monkeypatch, large=False)
    read = csv_cache.numbers_of

    def ended(path, row, *rest):
        rows.append(row.line)
        if len(rows) in (37, 80):
            raise KeyboardInterrupt
        return read(path, row, *rest)

    monkeypatch.setattr(csv_cache, "numbers_of", ended)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            load(path, monkeypatch)
    equal(load(path, monkeypatch), wanted)
    assert len(rows) < 120 + 2 * 10 + 2  # at most ten rows are read again each time
    assert capsys.readouterr().err.count("reading on") == 2


def test_a_file_that_changed_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    for text in (table(CLASSES), table(CLASSES[::-1]), table(CLASSES) + "1,2,3,0\n"):
        path.write_text(text, encoding="utf-8")
        equal(load(path, monkeypatch), load(path, monkeypatch, large=False))


def test_other_columns_have_a_cache_of_their_own(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(table(CLASSES), encoding="utf-8")
    for options in ({"target": "a"}, {"target": ["a", "b"]}, {"task": "regression"}, {"seed": 3}):
        equal(load(path, monkeypatch, **options), load(path, monkeypatch, large=False, **options))


def test_a_cache_that_is_cut_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(table(CLASSES), encoding="utf-8")
    load(path, monkeypatch)
    (file,) = (tmp_path / "cache").rglob("x")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="is damaged: delete it"):
        load(path, monkeypatch)


def test_a_cache_that_cannot_be_written_is_told_of(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(table(CLASSES), encoding="utf-8")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DiskError, match="XDG_CACHE_HOME names another place"):
        load(path, monkeypatch)


def test_a_limit_of_memory_is_told_from_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    """Mapping a large file fails so where the process has a limit."""

    def refuses(*arguments, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    (tmp_path / "table.csv").write_text(TABLES["regression"])
    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", refuses)
        with pytest.raises(DataError, match=r"cannot map .*Cannot allocate memory; raise the limit"):
            load(tmp_path / "table.csv", monkeypatch)
    load(tmp_path / "table.csv", monkeypatch)


def test_the_samples_are_mapped(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(table(CLASSES), encoding="utf-8")
    found = load(path, monkeypatch)
    assert is_mapped(found.x_train.source)


@pytest.mark.parametrize("first", ["007", "0x7", "12345678901234567891"])
@pytest.mark.parametrize("place", [0, 119])
def test_codes_of_many_classes_become_no_numbers(tmp_path, monkeypatch, first, place):
    monkeypatch.setattr(csv_cache, "_MOST_CODES", 4)
    path, targets = tmp_path / "t.csv", [str(number + 0.5) for number in range(120)]
    targets[place] = first
    path.write_text(table(targets), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=f"'{first}',?( which)? is not a number"):
        load(path, monkeypatch)


def test_a_table_that_is_in_use_keeps_its_numbers_when_its_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(table(CLASSES), encoding="utf-8")
    found = load(path, monkeypatch)
    wanted = np.array(found.x_train)
    lines = table(CLASSES).splitlines()
    path.write_text("\n".join([lines[0], *lines[:50:-1], ""]), encoding="utf-8")
    assert len(load(path, monkeypatch).x_train) < len(wanted)
    assert np.array_equal(found.x_train, wanted)


def test_reading_goes_on_behind_a_byte_order_mark(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(TABLES["names of classes"], encoding="utf-8-sig")
    wanted, read, rows = load(path, monkeypatch, large=False), csv_cache.numbers_of, []

    def ended(path, row, *rest):
        rows.append(row.line)
        if len(rows) == 37:
            raise KeyboardInterrupt
        return read(path, row, *rest)

    monkeypatch.setattr(csv_cache, "numbers_of", ended)
    with pytest.raises(KeyboardInterrupt):
        load(path, monkeypatch)
    equal(load(path, monkeypatch), wanted)


def several(folder, monkeypatch, days):
    """Tables that are in the cache and were last used so many days ago, and their folders."""
    folders = []
    for number in range(len(days)):
        path = folder / f"{number}.csv"
        path.write_text(table(CLASSES), encoding="utf-8")
        load(path, monkeypatch)
        (new,) = {found.parent for found in (folder / "cache").rglob("state.json")} - {*folders}
        folders.append(new)
    end_use()
    for new, ago in zip(folders, days, strict=True):
        os.utime(new / "used", (time.time() - ago * 86400,) * 2)
    return folders


@pytest.fixture
def new_table(tmp_path):
    (tmp_path / "new.csv").write_text(table(CLASSES[::-1]), encoding="utf-8")
    return tmp_path / "new.csv"


def test_tables_that_were_not_used_for_long_are_removed_when_another_is_read(
    tmp_path, monkeypatch, capsys, new_table
):
    folders = several(tmp_path, monkeypatch, [29, 31, 400])
    load(tmp_path / "1.csv", monkeypatch)  # uses it
    assert all(folder.exists() for folder in folders)
    end_use()
    found = load(new_table, monkeypatch)
    assert [folder.exists() for folder in folders] == [True, True, False]
    assert (
        f"xnn: removed {folders[2]}, the numbers of a table that was last used on " in capsys.readouterr().err
    )
    equal(found, load(new_table, monkeypatch, large=False))
    equal(load(tmp_path / "2.csv", monkeypatch), load(tmp_path / "0.csv", monkeypatch, large=False))


def test_beyond_a_size_those_that_were_not_used_for_longest_are_removed(tmp_path, monkeypatch, new_table):
    folders = several(tmp_path, monkeypatch, [3, 1, 2])
    size = sum(os.path.getsize(file) for file in folders[0].iterdir())
    monkeypatch.setattr(csv_cache, "_KEPT_BYTES", 2.5 * size)
    load(new_table, monkeypatch)
    assert [folder.exists() for folder in folders] == [False, True, True]


def remove_others(folders, new_table, monkeypatch):
    """Read a new table, when the first folder is old and in use, and the second one is not in use."""
    os.utime(folders[0] / "used", (0, 0))
    load(new_table, monkeypatch)
    assert [folder.exists() for folder in folders] == [True, False]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks, and removes no file in use")
@pytest.mark.parametrize("here", [True, False], ids=["this process", "another"])
def test_a_table_in_use_is_not_removed(tmp_path, monkeypatch, new_table, here):
    folders = several(tmp_path, monkeypatch, [100, 100])
    code = f"""
        from pathlib import Path
        from xnn.data import csv_cache
        csv_cache._use(Path({str(folders[0])!r}))
        print("used", flush=True)
        input()
    """
    words = [sys.executable, "-c", "\n".join(map(str.strip, code.splitlines()))]
    if here:
        kept = load(tmp_path / "0.csv", monkeypatch)
        remove_others(folders, new_table, monkeypatch)
        assert np.asarray(kept.x_train).shape == (96, 3)
    else:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, cwd=tmp_path, **pipes) as process:
            assert process.stdout.readline() == "used\n"
            remove_others(folders, new_table, monkeypatch)
            process.communicate("\n", timeout=60)
        new_table.write_text(table(CLASSES), encoding="utf-8")
        load(new_table, monkeypatch)
        assert not folders[0].exists()


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, read = tmp_path / "t.csv", csv_cache.numbers_of
    path.write_text(table(CLASSES), encoding="utf-8")

    def changes(given, row, *rest):
        if row.line == 50:
            with open(path, "a", encoding="utf-8") as file:
                file.write("1,2,3,0\n")
        return read(given, row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(csv_cache, "numbers_of", changes)
        with pytest.raises(CorruptFileError, match="was changed while it was read"):
            load(path, monkeypatch)
    equal(load(path, monkeypatch), load(path, monkeypatch, large=False))
