"""What `xnn bench` runs, imported as `xnn.benchmarks`.

contestants.py xnn as one of them; peers.py the others; xnn/runs/process.py a process and the line to it; worker.py a
contestant in one; suite.py takes turns among them; report.py tables, plots and comparisons; sweep.py from which
size a GPU pays; accuracy.py time to accuracy; xnn/cli/bench.py all that behind the command line. Run by themselves:
studies/scaling.py how cost grows; studies/step_profile.py where the time of one step goes; exactness/rounding.py how
exact numerics round; digests.py whether exact runs agree on other engines (exactness/engines.py has them,
exactness/run.py runs one).
"""

__all__ = []

if __name__ != "xnn.benchmarks":  # a second import name would make a second copy of every class
    raise ImportError(f"import xnn.benchmarks, not {__name__!r}: the folder is one package under one name")
