"""The training loop: the Trainer, and how a training step is recorded, turned into calls and run.

Read in this order: `trainer.py` (fit and evaluate), `inputs.py` (checks of the data), `fit.py` (the loop over epochs
and batches), `trace.py` (records one batch), `flatten.py` (turns the record into a list of calls),
`xnn/backends/kernels/fusion.py` (shortens the list), `program.py` (binds and runs it), `steps.py` (a program for each
batch size), `parameters.py` and `groups.py` (the arrays that a step changes). Then `full_batch.py` (the loop of
L-BFGS), `divergence.py` (finds what became NaN), `interrupt.py` (Ctrl-C and time limits), `room.py` (memory, and a
batch size that fits), `checkpoint.py` (what a checkpoint holds), `resuming.py` (reads one), `lowering.py` (goes back
to one after a divergence) and `state_tree.py` (how values become JSON and arrays). For a GPU there are `captured.py`
(what a graph can hold), `host_copy.py` and `placement.py` (where the arrays are).
"""

from xnn.training.trainer import Trainer

__all__ = ["Trainer"]
