"""What `xnn train` runs, said in words: its network, its record, and a run done again."""

__all__ = []
