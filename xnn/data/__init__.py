"""Data: sets by name, files that are checked before they are believed, and batches."""

from xnn.data.batches import Batches
from xnn.data.dataset import Dataset
from xnn.data.datasets import dataset_names, load, on_disk
from xnn.data.idx import read_idx
from xnn.data.synthetic import synthetic_digits

__all__ = ["Batches", "Dataset", "dataset_names", "load", "on_disk", "read_idx", "synthetic_digits"]
