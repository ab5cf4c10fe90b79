"""Studies of single questions, run by themselves: how cost grows, where a step's time goes."""

__all__ = []
