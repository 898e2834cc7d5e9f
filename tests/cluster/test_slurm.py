"""What Slurm is told and how its answers are read, without Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nord_hpc.cluster import launch, slurm
from nord_hpc.cluster.slurm import BatchSettings, SlurmJobs, SlurmLife
from nord_hpc.errors import BadInput
from nord_hpc.store.run_folder import RunFolder

SHOWN = (
    "JobId=77 JobName=digits UserId=me(1000) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 "
    "RunTime=00:01:30 TimeLimit=01:00:00 NodeList=node[1-2] BatchHost=node1"
)


def options(script: str) -> list[str]:
    return [
        line.removeprefix("#SBATCH ").partition("#")[0].strip() for line in script.splitlines() if "#SBATCH" in line
    ]


def test_a_script_holds_what_was_asked_and_is_bash(tmp_path: Path) -> None:
    settings = BatchSettings(
        "digits",
        nodes=4,
        ranks_per_node=8,
        threads=2,
        gpus_per_node=4,
        time="2:00:00",
        partition="gpu",
        options={"account": "abc", "exclusive": "", "output": "/logs/%j"},
    )
    text = slurm.script_of(settings, job=Path("/my jobs/a.yaml"), folder=Path("/runs/a b"), program=Path("/bin/nord"))
    assert options(text) == [
        "--job-name=digits",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--cpus-per-task=2",
        "--time=2:00:00",
        "--signal=B:USR1@120",
        "--requeue",
        "--no-kill",
        "--open-mode=append",
        "--output=/logs/%j",
        "--gpus-per-node=4",
        "--partition=gpu",
        "--account=abc",
        "--exclusive",
    ]
    assert "job='/my jobs/a.yaml'\nfolder='/runs/a b'\nprogram=/bin/nord\n" in text
    file = tmp_path / "script"
    file.write_text(text)
    assert subprocess.run(["bash", "-n", file], capture_output=True, timeout=20, check=True).stderr == b""


def test_no_requeue_takes_the_place_of_requeue() -> None:
    lines = [option for option, _ in BatchSettings("a", options={"no-requeue": ""}).lines(log="log")]
    assert "--no-requeue" in lines
    assert "--requeue" not in lines


@pytest.mark.parametrize(
    ("time", "seconds", "lead"),
    [
        ("1", 60, 20),
        ("30", 1800, 120),
        ("2:30", 150, 50),
        ("2:00:00", 7200, 120),
        ("1-12", 129600, 120),
        ("1-0:1", 86460, 120),
    ],
)
def test_time_limits(time: str, seconds: int, lead: int) -> None:
    assert (slurm.seconds_of(time), slurm.signal_seconds(time)) == (seconds, lead)


@pytest.mark.parametrize("time", ["", "soon", "1:2:3:4", "1-"])
def test_a_wrong_time_limit_is_refused(time: str) -> None:
    with pytest.raises(BadInput, match=f"^--time {time}: is not MINUTES, H:MM:SS or DAYS-HOURS, such as 30"):
        slurm.seconds_of(time)


def test_answers_of_slurm() -> None:
    assert slurm.job_id_of("77;cluster\n") == "77"
    with pytest.raises(BadInput, match=r"^sbatch gave no job id: no answer$"):
        slurm.job_id_of("")
    assert slurm.parse_job(SHOWN) == {
        "state": "RUNNING",
        "reason": None,
        "nodes": "node[1-2]",
        "run_time": "00:01:30",
        "time_limit": "01:00:00",
        "restarts": 2,
    }
    waiting = slurm.parse_job("JobState=PENDING Reason=Priority NodeList=(null) Restarts=0")
    assert (waiting["state"], waiting["reason"], waiting["nodes"]) == ("PENDING", "Priority", None)


def test_node_lists() -> None:
    assert slurm.expand_nodes("gpu[01-03,7],login1") == ["gpu01", "gpu02", "gpu03", "gpu7", "login1"]
    assert slurm.expand_nodes("a[1-2]b[3-4]") == ["a1b3", "a1b4", "a2b3", "a2b4"]
    environ = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert slurm.slots_of(environ) == {"node1": 2, "node2": 2, "node3": 1}
    assert slurm.slots_of({}) == {}


def test_lives_without_progress_are_counted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert SlurmJobs.of(folder) == SlurmJobs()
    for restart, finished in enumerate([0, 4, 4, 4]):
        environ = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restart)}
        for _ in range(2):  # a search that was killed is started again within the same life
            slurm.note_life(folder, n_finished=finished, at=float(restart), environ=environ)
    slurm.note_life(folder, n_finished=9, at=9.0, environ={})
    jobs = SlurmJobs.of(folder)
    assert jobs.job_ids == ("77",)
    assert jobs.lives[1] == SlurmLife("77", 1, 1.0, 4)
    assert [life.restart for life in jobs.lives] == [0, 1, 2, 3]
    assert [jobs.fruitless(n) for n in (4, 5)] == [3, 0]
    folder.slurm_file.write_text("{")
    with pytest.raises(BadInput, match=r"slurm\.json: cannot be read: .*; remove it$"):
        SlurmJobs.of(folder)


@pytest.mark.parametrize(("seconds", "options"), [(6, ("3", "1", "3")), (15, ("9", "2", "3")), (60, ("30", "10", "3"))])
def test_a_cut_cable_is_noticed_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: int, options: tuple[str, ...]
) -> None:
    """time + interval x probes is the limit that the job sets."""
    monkeypatch.setattr(launch, "_is_open_mpi", lambda program: True)
    command = launch.mpirun_command(
        4, ["rank"], mpirun=Path("mpirun"), survives=True, lost_host_seconds=seconds, hosts={"a": 2, "b": 2}
    )
    given = {command[i + 1]: command[i + 2] for i, word in enumerate(command) if word in ("--prtemca", "--mca")}
    names = ("oob_tcp_keepalive_time", "oob_tcp_keepalive_intvl", "oob_tcp_keepalive_probes")
    assert tuple(given[name] for name in names) == options
    assert int(options[0]) + int(options[1]) * int(options[2]) == seconds
    assert command[command.index("--host") + 1] == "a:2,b:2"
