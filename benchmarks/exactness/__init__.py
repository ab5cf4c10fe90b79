"""Measures exact numerics: whether runs on other engines give the same bits, and how products are rounded."""

__all__ = []
