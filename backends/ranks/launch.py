"""Tells from the environment whether a launcher of MPI (mpirun, mpiexec, srun) has started this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Launch", "launched"]

#: What launchers write into the environment of each process: its number, how many there are, and its number among
#: those on its machine.
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ("PMI_RANK", "PMI_SIZE", "SLURM_LOCALID"),  # srun --mpi=pmi2
    ("PMIX_RANK", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun --mpi=pmix
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),  # MVAPICH2
)


class Launch(NamedTuple):
    """rank: the number of this process, from 0. size: how many there are.

    local: its number among those on its machine; that among all if the launcher does not tell.
    """

    rank: int
    size: int
    local: int


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """The number of this process among those that a launcher of MPI has started; None if it started one, or none.

    environment: by default the process's own. SLURM's variables alone tell nothing: a batch script has them too.

    >>> launched({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"})
    Launch(rank=3, size=4, local=1)
    >>> launched({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"})
    """
    given = os.environ if environment is None else environment
    known: Launch | None = None
    for names in _VARIABLES:
        rank, size, local = (given.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            if int(size) == 1:
                return None
            if local.isdecimal():
                return Launch(int(rank), int(size), int(local))
            known = known or Launch(int(rank), int(size), int(rank))
    return known
