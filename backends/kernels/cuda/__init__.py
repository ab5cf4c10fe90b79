"""Kernels in CUDA C++ for the CuPy backend, and programs of them that run as CUDA graphs.

Read in this order: `launch.py` (how a kernel is compiled and launched), `cublas.py` (matrix products), `feed.py`
(what changes from step to step, in the GPU's memory, and graphs), `data_set.py` (the data there, or streamed),
`array_ops.py` (ops without a kernel in graphs), then the kernels of a subject beside their sources:

| file | sources |
|---|---|
| data_kernels.py | gather.cu, dropout.cu |
| augmentation_kernels.py | augmentation.cu |
| dense_kernels.py | dense.cu |
| activation_kernels.py | activations.cu, softmax.cu |
| image_kernels.py, pooling_kernels.py | images.cu |
| normalization_kernels.py | normalization.cu |
| embedding_kernels.py | embedding.cu |
| loss_kernels.py, loss_weights.py | loss.cu, distances.cu, numbers.cu |
| update_kernels.py | updates.cu |
| persistent_kernel.py, persistent_rule.py | persistent.cu: a chunk of steps of a small perceptron in one launch |

The sources whose names begin with exact are for exact numerics: `backends/exact/kernels/cuda_table.py`.

common.cu stands in front of each source. `table.py` has the table of all kernels, and joins kernels that can be one
launch. `finite.py` looks for NaN and infinity, by numbers.cu. Importing these files does not import CuPy.
"""

__all__ = []
