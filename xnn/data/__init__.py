"""Data: data sets by name, CSV and .npz files, and batches.

x_train, y_train, x_val, y_val, x_test, y_test = xnn.data.load("mnist")
iris = xnn.data.load("iris.csv", target="species")
"""

from xnn.data.batches import Batches
from xnn.data.dataset import Dataset
from xnn.data.datasets import dataset_names, load, on_disk
from xnn.data.idx import read_idx
from xnn.data.shards import Shards, open_arrays
from xnn.data.standardize import standardize
from xnn.data.stream import Stream
from xnn.data.synthetic import synthetic_digits

__all__ = [
    "Batches", "Dataset", "Shards", "Stream", "dataset_names", "load", "on_disk", "open_arrays", "read_idx",
    "standardize", "synthetic_digits",
]  # fmt: skip
