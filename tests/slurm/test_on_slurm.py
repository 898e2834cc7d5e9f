"""Searches on a real Slurm: submitted, requeued, preempted, cancelled, with a lost node; always the same history."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import (
    CAMPAIGN,
    N_GPUS,
    NORD,
    OVER,
    ROOT,
    call,
    down,
    log_of,
    n_finished,
    state_of,
    status,
    submit,
    up,
    wait_for,
    wait_until_over,
    why_not,
    write_job,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
TWO_NODES = ("--nodes", "2", "--ranks-per-node", "3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    up()
    yield
    down()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the campaign without Slurm, and without its pauses, which change no result."""
    folder = tmp_path_factory.mktemp("reference")
    job = write_job(folder / "job.yaml")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    call(NORD, "run", job, "-n", "8", "--out", folder / "run", "--set", "evaluator.seconds=0.05", env=environ)
    # The costs, and so the virtual order, scale with the pauses.
    return str(status(folder / "run")["history_sha256"])


def starts(folder: Path) -> list[int]:
    return [life["restart"] for life in json.loads((folder / "slurm.json").read_text())["lives"]]


def running(job: Path, folder: Path, *options: str, trials: int = 4) -> str:
    """A submitted search that has finished some trials."""
    job_id = submit(job, folder, *options)
    try:
        wait_for(lambda: n_finished(folder) >= trials, timeout=60, what="trial finished")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log_of(folder)}") from None
    return job_id


def test_submit_trains_on_two_nodes(cluster: None, tmp_path: Path) -> None:
    job = ROOT / "jobs/digits_evolution.yaml"
    options = ("--set", "budget.trials=12", "--set", "training.epochs=1")
    call(NORD, "run", job, "-n", "3", "--out", tmp_path / "without", *options, timeout=120)
    job_id = submit(job, tmp_path / "with", *TWO_NODES, *options)
    found = wait_until_over(job_id, tmp_path / "with", timeout=120)
    assert (found["state"], found["ranks"], found["trials"]["completed"]) == ("finished", 6, 12)
    assert found["history_sha256"] == status(tmp_path / "without")["history_sha256"]
    assert found["slurm"]["state"] == "COMPLETED"
    assert "Slurm job" in call(NORD, "status", tmp_path / "with").splitlines()[-1]


def test_a_campaign_goes_on_after_its_limit(cluster: None, history: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", evaluator={"seconds": 1.6})  # more than a life, whenever its signal comes
    started = time.time()
    job_id = submit(job, tmp_path / "run", *TWO_NODES, "--time", "1")
    found = wait_until_over(job_id, tmp_path / "run", timeout=240)
    log = log_of(tmp_path / "run")
    assert (found["state"], found["history_sha256"]) == ("finished", history), log
    n_lives = log.count("(restart ")
    assert n_lives >= 2, log
    assert starts(tmp_path / "run") == list(range(n_lives))
    assert log.count("requeueing job") == n_lives - 1
    assert 30 * CAMPAIGN["evaluator"]["seconds"] < found["wall_seconds"] < time.time() - started


def test_requeue_and_cancel(cluster: None, history: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job_id = running(write_job(tmp_path / "job.yaml"), folder, *TWO_NODES, "--time", "10")
    call("scontrol", "requeue", job_id)
    wait_for(lambda: starts(folder) == [0, 1], timeout=60, what="second life")
    before = n_finished(folder)
    assert before >= 4
    wait_for(lambda: n_finished(folder) > before, timeout=60, what="progress of the second life")
    out = call(NORD, "cancel", folder, timeout=90)
    assert f"cancelled Slurm job {job_id}; " in out
    assert f"go on:  sbatch {folder}/search.sbatch" in out
    found = status(folder)
    assert (found["state"], found["slurm"]["state"]) == ("interrupted", "FAILED"), log_of(folder)  # by exit code 3
    assert found["reason"].startswith("signal SIG")
    assert "ended already; nothing to cancel" in call(NORD, "cancel", folder)
    again = call("sbatch", "--parsable", folder / "search.sbatch").strip()
    found = wait_until_over(again, folder, timeout=120)
    assert (found["state"], found["history_sha256"]) == ("finished", history)


def test_scancel_saves(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job_id = running(write_job(tmp_path / "job.yaml"), folder, *TWO_NODES)
    call("scancel", job_id)
    found = wait_until_over(job_id, folder, timeout=60)
    assert (found["state"], found["slurm"]["state"]) == ("interrupted", "CANCELLED"), log_of(folder)
    assert found["trials"]["completed"] >= 4


def test_preemption_goes_on(cluster: None, history: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (*TWO_NODES, "--partition", "preempt", "--sbatch", "nodelist=node1,node2", "--time", "10")
    job_id = running(write_job(tmp_path / "job.yaml"), folder, *options)
    wanted = ("--partition=main", "--nodelist=node1,node2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3")
    call("sbatch", *wanted, cwd=tmp_path)
    wait_for(lambda: starts(folder) == [0, 1], timeout=90, what="life after the preemption")
    found = wait_until_over(job_id, folder, timeout=120)
    assert (found["state"], found["history_sha256"]) == ("finished", history), log_of(folder)


def test_the_limit_without_a_warning_saves(cluster: None, tmp_path: Path) -> None:
    """TERM at the limit, where nobody asked for an earlier signal."""
    folder = tmp_path / "run"
    job = write_job(tmp_path / "job.yaml", budget={"trials": 1000})
    job_id = submit(job, folder, *TWO_NODES, "--time", "1", "--sbatch", "signal=B:CONT@1")
    found = wait_until_over(job_id, folder, timeout=150)
    assert (found["state"], found["slurm"]["state"]) == ("interrupted", "TIMEOUT"), log_of(folder)
    assert found["reason"].startswith("signal SIG")
    assert found["trials"]["completed"] > 10


def test_a_lost_node_leaves_the_others_at_work(cluster: None, history: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (*TWO_NODES, "--sbatch", "nodelist=node1,node2", "--time", "10")
    job_id = running(write_job(tmp_path / "job.yaml"), folder, *options)
    try:
        down("node2")
        found = wait_until_over(job_id, folder, timeout=200)
    finally:
        up()
    log = log_of(folder)
    assert (found["state"], found["history_sha256"]) == ("finished", history), log
    assert "node2 lost; 1 nodes are left" in log
    assert found["ranks"] == 3


def test_an_array_of_seeds(cluster: None, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", evaluator={"seconds": 0.0}, budget={"trials": 20})
    environ = {**os.environ, "NORD_HPC": str(NORD), "NORD_HPC_SLURM": str(ROOT / "slurm")}
    script = ROOT / "slurm/array_of_seeds.sbatch"
    options = ("--array=0-2", "--ntasks-per-node=3", "--time=5")
    job_id = call("sbatch", "--parsable", *options, script, job, tmp_path / "runs", env=environ, cwd=tmp_path).strip()
    wait_for(lambda: not call("squeue", "-h", "-j", job_id).strip(), timeout=120, what="end of the array")
    found = [status(tmp_path / f"runs/seed-{seed}") for seed in range(3)]
    assert [one["state"] for one in found] == ["finished"] * 3
    assert len({one["history_sha256"] for one in found}) == 3
    seeds = [_seed(tmp_path / f"runs/seed-{seed}") for seed in range(3)]
    assert seeds == [0, 1, 2]


def _wait_for_batch(options: tuple[str, ...]) -> None:
    job_id = call("sbatch", "--parsable", *options).strip()
    wait_for(lambda: state_of(job_id) in OVER, timeout=90, what=f"end of job {job_id}")


def _seed(folder: Path) -> int:
    from nord_hpc.store.run_folder import RunFolder

    return RunFolder(folder).recorded_job().seed


def test_a_chain_where_jobs_may_not_requeue(cluster: None, history: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", evaluator={"seconds": 1.6})
    folder = tmp_path / "run"
    environ = {**os.environ, "NORD_HPC": str(NORD)}
    options = ("--nodes=2", "--ntasks-per-node=3", "--time=1", "--signal=B:USR1@30")
    out = call(ROOT / "slurm/chain.sh", "4", job, folder, *options, env=environ, cwd=tmp_path)
    ids = [line.split()[-1] for line in out.splitlines()]
    assert len(ids) == 4
    wait_for(lambda: not call("squeue", "-h", "-j", ",".join(ids)).strip(), timeout=280, what="end of the chain")
    found = status(folder)
    assert (found["state"], found["history_sha256"]) == ("finished", history)
    assert found["slurm"]["lives"] >= 2


@pytest.mark.parametrize("asked", ["--gpus-per-node=2", "--gpus-per-task=1"])
def test_each_rank_has_a_device_of_its_own(cluster: None, tmp_path: Path, asked: str) -> None:
    mpirun = NORD.with_name("mpirun")
    options = "--allow-run-as-root --oversubscribe --bind-to none --mca osc ^ucx"
    line = f"{mpirun} {options} -n 4 {NORD} doctor --mpi --gang 1 --seconds 0.1 --json; echo code $?"
    batch = ("--nodes=2", "--ntasks-per-node=2", asked, f"--output={tmp_path}/out", "--wrap", line)
    _wait_for_batch(batch)
    out = (tmp_path / "out").read_text()
    found = json.loads(out[out.index("{") : out.rindex("}") + 1])
    devices = [(rank["host"], rank["device"]) for rank in found["ranks"]]
    if asked == "--gpus-per-node=2":
        assert len(set(devices)) == 2 * N_GPUS
        assert "code 0" in out
    else:
        assert {device for _, device in devices} == {0}
        assert "ask for --gpus-per-node=N in its place" in found["findings"][0]["text"]
        assert "code 2" in out


def test_ranks_that_are_alone_are_found_out(cluster: None, tmp_path: Path) -> None:
    line = f"srun --mpi=none {NORD} doctor --mpi"
    batch = ("--nodes=1", "--ntasks-per-node=2", f"--output={tmp_path}/out", "--wrap", line)
    _wait_for_batch(batch)
    text = "is 2, but MPI sees a world of 1: launcher and MPI library do not fit; set srun --mpi=pmix"
    assert (tmp_path / "out").read_text().count(text) == 2


def test_as_a_user_other_than_root(cluster: None) -> None:
    """With the system's Python, as root's own is often closed to others."""
    user = pwd.getpwnam("games")
    python = Path("/usr/bin/python3")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    home = Path("/var/tmp") / f"nord_hpc-{os.getpid()}"
    home.mkdir()
    try:
        (home / "bin").mkdir()
        wrapper = home / "bin/nord-hpc"
        wrapper.write_text(f'#!/bin/sh\nexec {python} -m nord_hpc "$@"\n')
        wrapper.chmod(0o755)
        job = write_job(home / "job.yaml", evaluator={"seconds": 0.0})
        call("chown", "-R", f"{user.pw_uid}:{user.pw_gid}", home)
        own = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        environ = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{home}/bin:{NORD.parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join([str(ROOT), *packages]),
        }
        if subprocess.run(
            [*own, wrapper, "version"], env=environ, cwd=home, capture_output=True, timeout=60
        ).returncode:
            pytest.skip(f"{python} cannot run nord_hpc for other users")
        out = call(*own, wrapper, "submit", job, "--out", home / "run", *TWO_NODES, env=environ, cwd=home)
        found = wait_until_over(out.split()[2].rstrip(":"), home / "run", timeout=90)
        assert found["state"] == "finished", log_of(home / "run")
        assert (home / "run/journal").stat().st_uid == user.pw_uid
    finally:
        call("rm", "-rf", home)


def test_what_slurm_refuses_leaves_no_run(cluster: None, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml")
    out = call(NORD, "submit", job, "--out", tmp_path / "run", "--partition", "none-such", expect=2)
    assert "nord-hpc: sbatch: sbatch: error: invalid partition specified: none-such" in out
    assert not (tmp_path / "run/job.yaml").exists()
