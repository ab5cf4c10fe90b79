"""Kernels: the calls of a training step as functions without arguments, in NumPy, BLAS and compiled loops."""

__all__ = []
