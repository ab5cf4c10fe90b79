"""Callbacks: objects that watch a training run, such as a progress bar, a log, or early stopping."""

from xnn.callbacks.callback import Callback, call_back
from xnn.callbacks.checkpoints import Checkpoint, checkpoints_in
from xnn.callbacks.early_stopping import EarlyStopping
from xnn.callbacks.gradient_norm import GradientNorm
from xnn.callbacks.json_lines import JsonLines
from xnn.callbacks.progress import EpochLines, ProgressBar, progress_of
from xnn.callbacks.tensorboard import TensorBoard
from xnn.callbacks.time_limit import TimeLimit

__all__ = [
    "Callback", "Checkpoint", "EarlyStopping", "EpochLines", "GradientNorm", "JsonLines", "ProgressBar",
    "TensorBoard", "TimeLimit", "call_back", "checkpoints_in", "progress_of",
]  # fmt: skip
