"""Kernels: a backend's fast replacements for the ops in a training step, in NumPy, BLAS and compiled loops.

Read in this order: `calls.py` (what a training step is made of), `binding.py` (how a call is run), `blas.py`,
`numpy_kernels.py` with `image_kernels.py` and `update_kernels.py`, then `compiled_loops.py` (loops that Numba
compiles, `jit.py`, of `intrinsics.py`), `rows.py` (how they are told what to do) and `compiled_kernels.py` (which calls
they serve), then the folder `cuda`.
"""

__all__ = []
