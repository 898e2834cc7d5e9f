"""A search whose ranks are killed, the master among them, has the history of the undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi.chaos import report, run_chaos
from mpi.commands import needs_mpirun

from nord_hpc.cluster import launch

pytestmark = [pytest.mark.mpi, needs_mpirun]


def needs_fault_tolerance() -> None:
    survives, why = launch.can_survive_deaths(launch.find_mpirun())
    if not survives:
        pytest.skip(f"this MPI does not survive the death of a rank: {why}")


def test_deaths_of_workers_and_master(tmp_path: Path) -> None:
    """Killed every few seconds: a rank, a rank, the master, and so on; spares take their places."""
    needs_fault_tolerance()
    result = run_chaos(
        tmp_path,
        seconds=14.0,
        n_ranks=8,
        spares=4,
        interval=3.0,
        seed=3,
        trial_seconds=0.5,
        stop_one=False,
    )
    said = "\n".join([*report(result), (tmp_path / "output.txt").read_text()[-2000:]])
    assert result.state == "finished", said
    assert result.history_sha256 == result.expected_sha256, said
    assert not result.ran_again, said
    assert len(result.blows) >= 3 and result.take_overs >= 1, said
    noticed = result.medians()["noticed"]
    assert noticed is not None and noticed < 2.0, said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_minutes_of_deaths(tmp_path: Path) -> None:
    """What `make chaos` runs, with a rank that is stopped and not dead among the killed ones."""
    needs_fault_tolerance()
    result = run_chaos(
        tmp_path,
        seconds=100.0,
        n_ranks=9,
        spares=4,
        interval=10.0,
        seed=1,
        trial_seconds=1.0,
        stop_one=True,
    )
    said = "\n".join([*report(result), (tmp_path / "output.txt").read_text()[-2000:]])
    assert result.state == "finished" and result.history_sha256 == result.expected_sha256, said
    assert not result.ran_again and result.take_overs >= 1, said
    stopped = [blow.noticed_seconds for blow in result.blows if blow.stopped]
    assert stopped and stopped[0] is not None and stopped[0] < 6.0, said
