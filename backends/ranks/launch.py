"""Tells from the environment whether a launcher of MPI (mpirun, mpiexec, srun) has started this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Launch", "launched"]

#: What launchers write into the environment of each process: its number, and how many there are.
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, srun --mpi=pmi2
    ("PMIX_RANK", "SLURM_NTASKS"),  # srun --mpi=pmix
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH2
)


class Launch(NamedTuple):
    """rank: the number of this process, from 0. size: how many there are."""

    rank: int
    size: int


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """The number of this process among those that a launcher of MPI has started; None if it started one, or none.

    environment: by default the process's own. SLURM's variables alone tell nothing: a batch script has them too.

    >>> launched({"PMI_RANK": "1", "PMI_SIZE": "4"})
    Launch(rank=1, size=4)
    >>> launched({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"})
    """
    given = os.environ if environment is None else environment
    for names in _VARIABLES:
        rank, size = (given.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            return Launch(int(rank), int(size)) if int(size) > 1 else None
    return None
