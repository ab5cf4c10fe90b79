"""Runs of `xnn train`: what determines one, networks in files, records of every step, and two runs compared."""

__all__ = []
