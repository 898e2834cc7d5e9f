"""A search whose ranks are killed, the master among them, has the history of the undisturbed one."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from mpi.chaos import ranks_of, report, run_chaos
from mpi.commands import NORD, kill_tree, needs_mpirun, nord, start, status, write_job

from nord_hpc.cluster import launch
from nord_hpc.data_parallel import available
from nord_hpc.store.run_folder import RunFolder

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


DIGITS = {
    "name": "digits",
    "dataset": {"name": "digits"},
    "space": {"name": "conv_graph", "max_layers": 4, "channels": [8, 16]},
    "strategy": {"name": "regularized_evolution", "population": 6, "sample": 3},
    "training": {"epochs": 6, "optimizer": {"name": "adam", "lr": 0.003}},
    "budget": {"trials": 16},
    "resources": {"shards": 2, "gang": 2, "spares": 1},
    "limits": {"attempts": 20},
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", ["horovod", "torch_ddp"])
def test_deaths_in_the_middle_of_training(tmp_path: Path, backend: str) -> None:
    """Members of training gangs are killed and stopped; their partners come back, and the history is the same."""
    needs_fault_tolerance()
    reason = available(backend)
    if reason is not None:
        pytest.skip(reason)
    job = write_job(tmp_path / "job.yaml", DIGITS, resources={"backend": backend})
    nord("run", job, "--out", tmp_path / "whole", cwd=tmp_path, timeout=150)
    whole = status(tmp_path / "whole")["history_sha256"]
    run = tmp_path / "struck"
    process = start([*NORD, "run", str(job), "--out", str(run), "-n", "6"], cwd=tmp_path)
    struck = 0
    try:
        ends = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.5)
            history = RunFolder(run).history() if (run / "job.yaml").exists() else None
            n_done = 0 if history is None else sum(e.outcome is not None for e in history.entries.values())
            entries = [] if history is None else list(history.entries.values())
            busy = [entry.attempts[-1].ranks for entry in entries if entry.state == "running"]
            # One member of a gang that trains, after the 2nd and the 6th result; the second one is only stopped.
            if struck < 2 and n_done >= (2, 6)[struck] and busy:
                victim = ranks_of(process).get(busy[0][-1])
                if victim is not None:
                    victim.send_signal(signal.SIGKILL if struck == 0 else signal.SIGSTOP)
                    struck += 1
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    finally:
        assert kill_tree(process) == []
    found = status(run)
    assert struck == 2 and found["history_sha256"] == whole
    assert found["lives"] == 1, "nothing had to be started again"
    assert found["trials"]["failed"] == 0
