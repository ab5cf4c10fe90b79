"""Callbacks: objects that watch a training run, such as a progress bar, a log, or early stopping."""

from xnn.callbacks.callback import Callback, call_back
from xnn.callbacks.early_stopping import EarlyStopping
from xnn.callbacks.json_lines import JsonLines
from xnn.callbacks.progress import EpochLines, ProgressBar

__all__ = ["Callback", "EarlyStopping", "EpochLines", "JsonLines", "ProgressBar", "call_back"]
