"""What asks whether exact runs agree on other engines, and how exact numerics round."""

__all__ = []
