"""Kernels: a backend's fast replacements for the ops in a training step, in NumPy, BLAS and compiled loops.

Read in this order:

1. `calls.py` (what a training step is made of), `fusion.py` (which calls become one), `binding.py` (how a call is
   run), `blas.py`;
2. in plain NumPy: `numpy_kernels.py` with `sum_kernels.py`, `update_kernels.py`, `image_kernels.py`,
   `row_kernels.py`, `pool_kernels.py`, `normalization_kernels.py` with `normalization_numbers.py` and
   `feature_kernels.py`, `layer_norm_kernels.py`, `shape_kernels.py`, `dropout_kernels.py` and `bell_kernels.py` (GELU
   and SiLU); threads (`workers.py`) share the images of a batch by `batch_parts.py`;
3. compiled by Numba (`jit.py`), for dense networks: `compiled_loops.py` of `intrinsics.py`, `rows.py` (how the loops
   are told what to do) and `row_runner.py` (how threads share that), and `compiled_kernels.py` (which calls they
   serve). Further loops, each compiled when a network needs it: `gather_rows.py`, `draw_loops.py`,
   `embedding_rows.py`, `loss_*`, `metric_rows.py`, `update_*`, and `feature_loops.py` for `layer_norm_rows.py` and
   `normalization_rows.py`;
4. compiled, for images: `image_calls.py` and `image_loops.py` (how threads share a stretch of calls), then rows and
   loops: `convolution_rows.py` and `convolution_loops.py`, with `shifts.py` (convolution as a sum of shifted planes)
   and `micro_kernels.py` (its tiles); `pooling_*`, `branch_*`, `normalization_*`, `curve_*`, `softmax_rows.py` and
   `augment_*`; they use `vectors.py`;
5. the folder `cuda`.
"""

__all__ = []
