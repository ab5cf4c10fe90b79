"""What `xnn bench` runs, imported as `xnn.benchmarks`: contestants, the suite that times them, its tables.

contestants.py xnn as one of them; peers.py the others; worker.py one contestant in a process of its own; suite.py
takes turns among them; report.py tables, plots and comparisons; accuracy.py time to accuracy; sweep.py sizes;
scaling.py cost against samples, batch, width and depth.
"""

__all__ = []

if __name__ != "xnn.benchmarks":  # a second import name would make a second copy of every class
    raise ImportError(f"import xnn.benchmarks, not {__name__!r}: the folder is one package under one name")
