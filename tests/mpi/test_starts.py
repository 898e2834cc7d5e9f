"""Ranks that survive deaths start every time, also where there are more of them than cores."""

import subprocess
import sys
from pathlib import Path

import pytest

from nord_hpc.cluster import launch

N_STARTS, N_RANKS = 40, 5
RANK = """
import os
from nord_hpc.cluster.transport_mpi import World
world = World()
os.write(1, f"rank {world.rank} of {world.size}, {len(set(world.processes))} processes\\n".encode())
world.mailbox(master=world.rank == 0).flush(1.0)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_forty_starts_of_five_ranks(tmp_path: Path) -> None:
    """With the heart beats of Open MPI's own detector, one start in five ended in a crash."""
    mpirun = launch.find_mpirun()
    if not launch.can_survive_deaths(mpirun)[0]:
        pytest.skip("this MPI does not survive the death of a rank")
    (tmp_path / "rank.py").write_text(RANK)
    command = launch.mpirun_command(N_RANKS, [sys.executable, str(tmp_path / "rank.py")], mpirun=mpirun, survives=True)
    wanted = [f"rank {rank} of {N_RANKS}, {N_RANKS} processes" for rank in range(N_RANKS)]
    for _ in range(N_STARTS):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert sorted(done.stdout.splitlines()) == wanted, done.stderr
