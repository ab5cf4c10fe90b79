"""Ranks: the processes, or in tests the threads, that train one model together, each on some rows of every batch.

`group.py` says what ranks can do together, `threads.py` makes ranks of threads, and `mpi.py` of the processes that
mpirun, mpiexec or srun has started; on one machine these add up long messages by `shared_memory.py`. `launch.py`
finds out from the environment whether there are any. `rows.py` is what ops compute with while ranks share a batch.
"""

__all__ = []
