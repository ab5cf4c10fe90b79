"""docs/names.md: what it says that xnn has, xnn has, and nothing public is missing from it."""

import re
from pathlib import Path

import xnn
from xnn import callbacks, initializers, layers, losses, metrics, ops, optimizers, schedules

TEXT = (Path(__file__).parent.parent / "docs" / "names.md").read_text(encoding="utf-8")
MODULES = (layers, losses, optimizers, schedules, initializers, callbacks, metrics, ops, xnn)


def own_columns():
    """The last cell of every row of every table."""
    return [line.strip().strip("|").split("|")[-1] for line in TEXT.splitlines() if line.startswith("| ")]


def test_every_name_in_our_column_is_there():
    names = {name for cell in own_columns() for name in re.findall(r"`(?:\w+\.)*([A-Z]\w+)\b", cell)}
    assert len(names) > 65
    gone = {n for n in names if not any(hasattr(m, n) for m in MODULES) and n != "XNN_NUMERICS"}
    assert gone == set(), "docs/names.md names these in its last column, and xnn does not have them"


def test_nothing_is_missing():
    mentioned = set(re.findall(r"\b[A-Z]\w+\b", TEXT))
    bases = {"Buffer", "Container", "Drawing", "Function", "Layer", "Parameter", "Loss", "LossOverBatches", "MSELoss",
             "Optimizer", "State", "WeightDecay", "Common", "Initializer", "Schedule", "SCHEDULES"}  # fmt: skip
    public = [name for m in (layers, losses, optimizers, schedules, initializers) for name in m.__all__]
    missing = {n for n in public if n[0].isupper()} - mentioned - bases
    assert missing == set(), "name these classes in a row of docs/names.md"


def test_every_op_is_named():
    table = TEXT.partition("## Ops")[2].partition("## Layers")[0]
    public = {name for name in ops.__all__ if isinstance(getattr(ops, name), ops.Op)}
    inside = {"column_mse", "identity"}  # of MiniFlow's MSE, and of graphs
    assert public - set(re.findall(r"\w+", table)) == inside, (
        "name these ops in the first table of docs/names.md"
    )
