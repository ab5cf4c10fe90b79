"""A CUDA device emulated on the CPU, on which a real CuPy runs: for tests on machines without a GPU. See README.md.

python -m cuda_emulator -m xnn train --epochs 1     any Python program, with the device attached
cuda_emulator.attach.attach()                       in this process, before CuPy is imported
cuda_emulator.kernels.Module(source)["name"]        a CUDA kernel over NumPy arrays, without CuPy
"""
