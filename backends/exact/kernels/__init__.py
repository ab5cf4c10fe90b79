"""Kernels of exact numerics on the CPU.

Read `exact_kernels.py` first: which calls have kernels, and of which passes over arrays a kernel consists. The
passes exist twice, with the same names: in plain NumPy (`numpy_passes.py`) and as compiled loops
(`compiled_passes.py`, which calls `compiled_loops.py`).
"""

__all__ = []
