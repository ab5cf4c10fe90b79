"""What `benchmarks/gpu.sh` runs on a machine with a GPU, and the summary that it leaves."""

__all__ = []
