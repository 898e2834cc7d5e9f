"""Starting: worlds that do not fit, login nodes without MPI, idle ranks, signals, and files that others hold."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import psutil
import pytest
from mpi.commands import (
    DIGITS,
    NORD,
    SYNTHETIC,
    environment,
    kill_tree,
    mpirun,
    n_finished,
    needs_mpirun,
    nord,
    start,
    status,
    trials,
    wait_for,
    write_job,
)

pytestmark = [pytest.mark.mpi, needs_mpirun]


def test_four_processes_of_a_launcher_that_mpi_does_not_understand(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    command = [*NORD, "run", str(job), "--out", str(tmp_path / "run")]
    processes = [start(command, cwd=tmp_path, SLURM_NTASKS="4", SLURM_PROCID=str(rank)) for rank in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "SLURM_NTASKS is 4, but MPI sees a world of 1" in err
        assert "set srun --mpi=pmix" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_in_a_batch_script_ranks_may_be_asked_for(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 3})
    slurm = {"SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    nord("run", job, "--out", tmp_path / "run", "-n", "1", cwd=tmp_path, **slurm)
    assert status(tmp_path / "run")["ranks"] == 1


def test_one_rank_under_mpirun_is_an_inline_run(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 3})
    mpirun(1, "run", job, "--out", tmp_path / "run", cwd=tmp_path)
    found = status(tmp_path / "run")
    assert (found["state"], found["ranks"], found["gangs"]) == ("finished", 1, 1)


def test_a_gang_larger_than_the_world(tmp_path: Path) -> None:
    """Refused where the fitness depends on the ranks, shrunk where it does not."""
    resources = {"shards": 4, "gang": 4, "reduction": "fast"}
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, resources=resources, budget={"trials": 3})
    started = time.monotonic()
    for refused in (
        mpirun(3, "run", job, "--out", tmp_path / "run", cwd=tmp_path, expect=2),
        nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path, expect=2),
    ):
        assert "resources.gang is 4, but there are 2 workers" in refused.stderr
    assert time.monotonic() - started < 15
    exact = nord("run", job, "--out", tmp_path / "run", "-n", "3", "--set", "resources.reduction=exact", cwd=tmp_path)
    assert "a trial may want 4 ranks, but there are 2 workers: gangs of at most 2 are used" in exact.stderr
    assert {len(row["ranks"]) for row in trials(tmp_path / "run")} == {2}


def test_commands_that_need_no_mpi_start_none(tmp_path: Path) -> None:
    """On a login node MPI may abort the process that starts it."""
    (tmp_path / "stub" / "mpi4py").mkdir(parents=True)
    (tmp_path / "stub" / "mpi4py" / "__init__.py").write_text("raise RuntimeError('MPI was started')")
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 3})
    stub = {"PYTHONPATH": str(tmp_path / "stub")}
    nord("--help", cwd=tmp_path, **stub)
    nord("validate", job, cwd=tmp_path, **stub)
    nord("run", job, "--out", tmp_path / "run", cwd=tmp_path, **stub)
    assert "completed" in nord("trials", tmp_path / "run", cwd=tmp_path, **stub).stdout
    assert "synthetic finished: 3 completed" in nord("status", tmp_path / "run", cwd=tmp_path, **stub).stdout
    started = subprocess.run(
        [sys.executable, "-c", "import mpi4py"], env=environment(**stub), capture_output=True, timeout=20, check=False
    )
    assert b"MPI was started" in started.stderr, "the stub does not stand in for MPI"


def test_ranks_of_another_number_than_the_launcher_started(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    refused = mpirun(2, "run", job, "-n", "3", "--out", tmp_path / "run", cwd=tmp_path, expect=2)
    assert "-n 3 does not fit the 2 ranks that the launcher started" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_idle_ranks_sleep(tmp_path: Path) -> None:
    """One long trial on one of five workers: the others and the master use next to no CPU."""
    job = write_job(
        tmp_path / "job.yaml",
        SYNTHETIC,
        evaluator={"seconds": 12.0, "distribution": "constant", "prediction_error": 0.0},
        budget={"trials": 1},
        resources={"shards": 1, "gang": 1},
    )
    folder = tmp_path / "run"
    process = start([*NORD, "run", str(job), "--out", str(folder), "-n", "6"], cwd=tmp_path)
    try:
        wait_for(lambda: b"started" in _bytes(folder / "journal"), timeout=30, what="start of the trial")
        time.sleep(1.0)
        ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if p.cmdline()[1:4] == RANK]
        assert len(ranks) == 6
        before = [sum(rank.cpu_times()[:2]) for rank in ranks]
        time.sleep(8.0)
        used = [sum(rank.cpu_times()[:2]) - earlier for rank, earlier in zip(ranks, before, strict=True)]
        assert max(used) < 0.8, f"CPU seconds in 8 seconds: {used}"
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        kill_tree(process)


RANK = ["-m", "nord_hpc", "rank"]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 3), (signal.SIGUSR1, 1)]
)
def test_a_signal_saves_and_ends_with_code_3(tmp_path: Path, number: signal.Signals, ranks: int) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, evaluator={"seconds": 0.4}, budget={"trials": 30})
    folder = tmp_path / "run"
    process = start([*NORD, "run", str(job), "--out", str(folder), "-n", str(ranks)], cwd=tmp_path)
    try:
        wait_for(lambda: n_finished(folder) >= 2, timeout=40, what="second result")
        process.send_signal(number)
        asked = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - asked < 10
        assert process.returncode == 3
    finally:
        assert kill_tree(process) == []
    found = status(folder)
    assert found["state"] == "interrupted" and "signal" in found["reason"]
    assert (folder / "search.h5").exists()
    assert found["trials"]["failed"] == 0 and found["trials"]["completed"] < 30
    nord("resume", folder, "--set", "evaluator.seconds=0.01", "--accept-changes", cwd=tmp_path)
    assert status(folder)["trials"]["completed"] == 30


def test_a_signal_to_any_rank_stops_the_search(tmp_path: Path) -> None:
    """As a batch system may send it to each process of a step."""
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, evaluator={"seconds": 0.4}, budget={"trials": 30})
    folder = tmp_path / "run"
    process = start([*NORD, "run", str(job), "--out", str(folder), "-n", "3"], cwd=tmp_path)
    try:
        wait_for(lambda: n_finished(folder) >= 2, timeout=40, what="second result")
        rank_2 = next(p for p in psutil.Process(process.pid).children(recursive=True) if _rank_of(p) == "2")
        rank_2.send_signal(signal.SIGTERM)
        rank_2.send_signal(signal.SIGUSR1)
        process.communicate(timeout=30)
        assert process.returncode == 3
    finally:
        assert kill_tree(process) == []
    found = status(folder)
    assert found["state"] == "interrupted" and "on rank 2" in found["reason"]
    assert found["trials"]["failed"] == 0


def _rank_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("OMPI_COMM_WORLD_RANK") if "rank" in process.cmdline() else None
    except psutil.Error:
        return None


@pytest.mark.slow
def test_others_may_read_and_lock_the_snapshot(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, evaluator={"seconds": 0.3}, budget={"trials": 40})
    folder = tmp_path / "run"
    nord("run", job, "--out", folder, "--set", "budget.trials=2", cwd=tmp_path)
    process = start([*NORD, "resume", str(folder), "--set", "budget.trials=40", "-n", "3"], cwd=tmp_path)
    try:
        with h5py.File(folder / "search.h5", "r") as reader:
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert len(reader["trials/number"]) == 2, "the reader keeps its consistent older state"
    finally:
        kill_tree(process)
    assert status(folder)["trials"]["completed"] == 40
    with h5py.File(folder / "search.h5", "r") as reader:
        assert len(reader["trials/number"]) == 40


@pytest.mark.parametrize("locking", ["TRUE", "FALSE"])
def test_an_exclusive_lock_on_the_snapshot_stops_nothing(tmp_path: Path, locking: str) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 3})
    folder = tmp_path / "run"
    nord("run", job, "--out", folder, cwd=tmp_path)
    with (folder / "search.h5").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        nord("resume", folder, "--set", "budget.trials=6", cwd=tmp_path, HDF5_USE_FILE_LOCKING=locking)
    assert status(folder)["trials"]["completed"] == 6


def test_two_searches_do_not_write_one_folder(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, evaluator={"seconds": 1.0})
    folder = tmp_path / "run"
    process = start([*NORD, "run", str(job), "--out", str(folder)], cwd=tmp_path)
    try:
        wait_for(lambda: (folder / "journal").exists(), timeout=20, what="journal")
        time.sleep(1.0)
        refused = nord("resume", folder, cwd=tmp_path, expect=2)
        assert "another process is running this search" in refused.stderr
        assert status(folder)["state"] == "running"
    finally:
        kill_tree(process)
        process.communicate()
    assert status(folder)["state"] == "interrupted"


def test_no_horovod_means_torch_ddp_or_gangs_of_one(tmp_path: Path) -> None:
    """A package that cannot be imported is as good as absent."""
    (tmp_path / "stub" / "horovod").mkdir(parents=True)
    (tmp_path / "stub" / "horovod" / "__init__.py").write_text("raise ImportError('not built')")
    job = write_job(tmp_path / "job.yaml", DIGITS, budget={"trials": 2})
    nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path, PYTHONPATH=str(tmp_path / "stub"))
    assert {row["provenance"]["backend"] for row in trials(tmp_path / "run")} == {"torch_ddp"}


def test_mpirun_is_found_beside_this_python() -> None:
    from nord_hpc.cluster.launch import mpirun_command

    command = mpirun_command(3, ["true"])
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
    assert Path(command[0]).parent == Path(sys.executable).parent


def test_too_few_virtual_gangs_are_said(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 4}, resources={"shards": 1, "gang": 1})
    done = nord("run", job, "--out", tmp_path / "run", "-n", "5", "--set", "order.virtual_gangs=4", cwd=tmp_path)
    assert "4 gangs will wait for each other: order.virtual_gangs is 4, and 6 or more keep them busy" in done.stderr
    assert status(tmp_path / "run")["fsyncs"] > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_idle_ranks_do_not_slow_the_one_that_trains(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job.yaml",
        DIGITS,
        dataset={"fraction": 1.0},
        training={"epochs": 60},
        budget={"trials": 1},
        resources={"shards": 1, "gang": 1},
    )
    seconds = {}
    for attempt, ranks in enumerate((2, 6, 2, 6)):
        folder = tmp_path / f"{attempt}-{ranks}"
        nord("run", job, "--out", folder, "-n", str(ranks), cwd=tmp_path)
        [row] = trials(folder)
        seconds[ranks] = min(seconds.get(ranks, 1e9), row["seconds"])
    assert seconds[6] <= 1.3 * seconds[2]
