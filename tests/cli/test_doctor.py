"""The examination of a machine: complete, bounded in time, true about the folder it writes to, and readable."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nord_hpc.cli import doctor


@pytest.fixture(scope="module")
def examination(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return doctor.examine(folder=tmp_path_factory.mktemp("runs"))


def test_every_part_has_a_status_a_summary_and_advice(examination: dict[str, Any]) -> None:
    assert list(examination) == [
        "nord_hpc",
        "python",
        "platform",
        "torch",
        "mpi",
        "horovod",
        "cores",
        "memory",
        "slurm",
        "runs_folder",
    ]
    for name, part in examination.items():
        assert part["status"] in {"ok", "warning", "missing"}, name
        assert part["summary"] and "\n" not in part["summary"], name
        assert (part["advice"] == "") == (part["status"] == "ok"), name
    assert json.loads(json.dumps(examination, allow_nan=False)) == examination


def test_it_agrees_with_what_is_installed(examination: dict[str, Any]) -> None:
    import torch
    from mpi4py import __version__ as mpi4py_version

    assert examination["torch"]["version"] == torch.__version__
    assert examination["torch"]["gpus"] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    assert examination["mpi"]["mpi4py"] == mpi4py_version
    assert examination["mpi"]["version"].startswith("Open MPI v5.")
    assert Path(examination["mpi"]["mpirun"]).name == "mpirun"
    assert examination["python"]["prefix"] == sys.prefix
    assert 0 < examination["memory"]["available_gib"] <= examination["memory"]["total_gib"]


@pytest.mark.mpi
def test_open_mpi_5_survives_deaths(examination: dict[str, Any]) -> None:
    assert examination["mpi"]["fault_tolerance"] is True
    assert examination["mpi"]["status"] == "ok"


def test_mpi_is_never_started_in_this_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom nord_hpc.cli import doctor\n"
        f"doctor.examine(folder=Path({str(tmp_path)!r}))\n"
        "print([name for name in ('torch', 'mpi4py.MPI', 'horovod') if name in sys.modules])"
    )
    output, why = doctor.probe([sys.executable, "-c", program], seconds=60)
    assert output == "[]\n", why


def test_rendered_for_people(examination: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    changed = {**examination, "horovod": {"status": "missing", "summary": "does not load", "advice": "run [build]"}}
    console.print(doctor.render(changed))
    text = console.export_text()
    assert "horovod      missing  does not load" in text
    assert "What to set:\n" in text and "horovod: run [build]" in text
    assert "cores        ok" in text


def test_writable_folder(tmp_path: Path) -> None:
    part = doctor.examine_folder(tmp_path)
    assert part["status"] in {"ok", "warning"}
    assert 0 < part["fsync_milliseconds"] < 5000
    assert part["filesystem"] not in {"", "unknown"}
    assert part["exists"] is True
    assert list(tmp_path.iterdir()) == []


def test_folder_that_does_not_exist_says_so(tmp_path: Path) -> None:
    part = doctor.examine_folder(tmp_path / "none")
    assert part["status"] == "missing"
    assert part["summary"] == f"{tmp_path}/none does not exist"
    assert part["advice"] == f"make it, or give another by --out: {tmp_path}/none"


def test_folder_that_is_a_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    part = doctor.examine_folder(file)
    assert (part["status"], part["summary"]) == ("missing", f"{file} is not a folder")


def test_folder_that_cannot_be_written_says_why() -> None:
    part = doctor.examine_folder(Path("/proc/self"))  # refuses files even from root
    assert part["status"] == "missing"
    assert part["summary"].startswith("/proc/self cannot be written: ")
    assert part["advice"] == "make it writable, or give another by --out: /proc/self"
    assert "fsync_milliseconds" not in part


def test_a_runs_folder_to_be_made_is_tested_above(tmp_path: Path) -> None:
    part = doctor.examine_folder(tmp_path, purpose=tmp_path / "a" / "runs")
    assert part["status"] in {"ok", "warning"}
    assert part["summary"].startswith(f"{tmp_path}/a/runs (to be made in {tmp_path}), ")
    assert part["exists"] is False
    assert not (tmp_path / "a").exists()


def test_memory_and_slow_disks_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "filesystem_type", lambda folder: "tmpfs")
    part = doctor.examine_folder(tmp_path)
    assert part["status"] == "warning" and "kept in memory" in part["advice"]
    monkeypatch.setattr(doctor, "filesystem_type", lambda folder: "nfs4")
    monkeypatch.setattr(doctor, "median_fsync_milliseconds", lambda folder: 45.0)
    part = doctor.examine_folder(tmp_path)
    assert part["status"] == "warning" and "45.00 ms an fsync" in part["summary"]
    monkeypatch.setattr(doctor, "median_fsync_milliseconds", lambda folder: 1.0)
    part = doctor.examine_folder(tmp_path)
    assert (part["status"], part["network"]) == ("ok", True)


def test_filesystem_type_takes_the_last_of_the_longest_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /scratch rw shared:1 - lustre mds:/x rw\n"
        "3 1 0:6 / /scratch rw - nfs4 server:/y rw\n"
        "4 1 0:7 / /with\\040space rw - xfs /dev/sdb rw\n"
    )
    assert doctor.filesystem_type(Path("/scratch/me"), mounts) == "nfs4"
    assert doctor.filesystem_type(Path("/scratchy"), mounts) == "ext4"
    assert doctor.filesystem_type(Path("/with space/x"), mounts) == "xfs"
    assert doctor.filesystem_type(Path("/"), tmp_path / "none") == "unknown"


def test_cores_come_from_slurm_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    part = doctor.examine_cores()
    assert (part["granted"], part["source"], part["status"]) == (1, "SLURM_CPUS_PER_TASK", "warning")
    assert part["advice"] == "set OMP_NUM_THREADS to at most 1"


def test_lowest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    (groups / "job" / "step").mkdir(parents=True)
    own = tmp_path / "self"
    own.write_text("0::/job/step\n")
    assert doctor.control_group_limit(groups, own) is None
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    (groups / "job" / "memory.max").write_text("4096\n")
    assert doctor.control_group_limit(groups, own) == 4096


def test_slurm_inside_and_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    part = doctor.examine_slurm({})
    assert (part["status"], part["in_allocation"], part["srun"]) == ("ok", False, None)
    part = doctor.examine_slurm({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4"})
    assert part["status"] == "warning" and part["summary"] == "no commands; in job 12 with 4 tasks"
    assert part["variables"] == {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4"}
    for name in ("sinfo", "srun", "sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert doctor.examine_slurm({})["status"] == "ok"
    part = doctor.examine_slurm({"SLURM_JOB_ID": "12"})
    assert part["advice"] == "ask for ranks by --ntasks: 1 master and the workers"


def test_mpi_without_mpirun_or_fault_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_json", lambda program: ({"version": "MPICH 5", "mpi4py": "4.1.2"}, ""))
    monkeypatch.setattr(doctor, "find_mpirun", lambda: None)
    part = doctor.examine_mpi()
    assert part["status"] == "missing" and part["summary"] == "MPICH 5, no mpirun"
    stub = tmp_path / "mpirun"
    stub.write_text('#!/bin/sh\necho "unrecognized argument with-ft" >&2\nexit 1\n')
    stub.chmod(0o755)
    monkeypatch.setattr(doctor, "find_mpirun", lambda: str(stub))
    part = doctor.examine_mpi()
    assert (part["status"], part["fault_tolerance"]) == ("warning", False)
    assert part["advice"].startswith("mpirun --with-ft ulfm does not work (unrecognized argument with-ft)")


def test_parts_that_do_not_load_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_json", lambda program: (None, "ImportError: libmpi.so.40"))
    for part in (doctor.examine_torch(), doctor.examine_mpi(), doctor.examine_horovod()):
        assert part["status"] == "missing"
        assert part["summary"].endswith("load: ImportError: libmpi.so.40")
    assert "until then gangs use torch_ddp" in doctor.examine_horovod()["advice"]


def test_horovod_without_mpi_operations_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"version": "0.28.1", "mpi": False, "gloo": True, "nccl": False}
    monkeypatch.setattr(doctor, "probe_json", lambda program: (found, ""))
    part = doctor.examine_horovod()
    assert (part["status"], part["summary"]) == ("warning", "0.28.1, built with gloo")


def test_a_probe_that_hangs_is_ended_with_its_children() -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    begin = time.monotonic()
    assert doctor.probe([sys.executable, "-c", program], seconds=0.5) == (None, "no answer in 0.5 s")
    assert time.monotonic() - begin < 10  # the child held the pipe open: it is gone as well


def test_a_probe_that_fails_gives_the_last_line() -> None:
    assert doctor.probe([sys.executable, "-c", "raise ValueError('no such thing')"]) == (
        None,
        "ValueError: no such thing",
    )
    assert doctor.probe(["/no/such/program"]) == (None, "/no/such/program: No such file or directory")
    assert doctor.probe_json("print('text')") == (None, "unexpected answer: text")


def test_a_probe_does_not_take_itself_for_a_rank_of_this_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("PMIX_RANK", "3")
    monkeypatch.setenv("OMPI_MCA_btl", "self")
    program = "import os; print([name for name in os.environ if name.startswith(('OMPI_', 'PMIX_'))])"
    assert doctor.probe([sys.executable, "-c", program]) == ("['OMPI_MCA_btl']\n", "")
