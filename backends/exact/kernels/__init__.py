"""The kernels of exact numerics: the table, and its passes in NumPy and as compiled loops."""

__all__ = []
