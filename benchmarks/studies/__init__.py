"""Measurements that answer one question each. Each module is a command of its own."""

__all__ = []
