"""Kernels of exact numerics, on the CPU and on a GPU.

Read `exact_kernels.py` first: which calls have kernels on the CPU, and of which passes over arrays a kernel consists.
The passes exist twice, with the same names: in plain NumPy (`numpy_passes.py`) and as compiled loops
(`compiled_passes.py`, which calls `compiled_loops.py`). `image_kernels.py` has the kernels of images, with passes in
`numpy_images.py` and `compiled_images.py`, which calls `image_loops.py`.

On a GPU, `cuda_table.py` does the same with `cuda_passes.py`, `cuda_elements.py`, `cuda_images.py` and
`cuda_losses.py`. Their CUDA sources are in `backends/kernels/cuda/`: exact_numbers.cu (numbers and functions), the
other sources whose names begin with exact, and some that fast numerics use as well.
Passes that follow one another become one launch. `cuda_check.py` compares them with the ops before they are used.
"""

__all__ = []
