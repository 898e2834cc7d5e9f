"""A Slurm of emulated nodes for the tests: started, spoken with, and stopped again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = ROOT.parent / "shared" / "slurm"
NORD = Path(sys.executable).with_name("nord-hpc")
N_NODES, N_CPUS, N_GPUS = 3, 4, 2
OVER = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "ENDED")

CAMPAIGN: dict[str, Any] = {
    "name": "campaign",
    "seed": 3,
    "space": {"name": "conv_graph", "max_layers": 3},
    "strategy": {"name": "regularized_evolution", "population": 6, "sample": 3},
    "evaluator": {"name": "synthetic", "seconds": 1.0, "sigma": 0.3},
    "budget": {"trials": 60},
    "resources": {"shards": 2, "gang": 2},
    "limits": {"lost_host_seconds": 6},
}


def why_not() -> str | None:
    """Why there can be no Slurm here."""
    if os.geteuid() != 0:
        return "needs root, to start Slurm's daemons"
    if not (TOOLS / "slurm-up").exists():
        return f"needs {TOOLS}/slurm-up"
    return None


def up() -> None:
    """Start the cluster, or what is missing of it."""
    options = ["--nodes", str(N_NODES), "--cpus", str(N_CPUS), "--gpus", str(N_GPUS)]
    call(TOOLS / "slurm-up", *options, timeout=300)


def down(*arguments: str) -> None:
    call(TOOLS / "slurm-down", *arguments, timeout=60)


def call(*command: str | Path, timeout: float = 60, expect: int | None = 0, **options: Any) -> str:
    """Standard output of a command, and what it complained of in the error if it fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, errors="replace", timeout=timeout, **options
    )
    said = done.stdout + done.stderr
    assert expect is None or done.returncode == expect, f"{command}: exit code {done.returncode}\n{said}"
    return said if done.returncode else done.stdout


def write_job(path: Path, **changes: Any) -> Path:
    job = dict(CAMPAIGN)
    for key, value in changes.items():
        job[key] = {**job[key], **value} if isinstance(value, dict) and isinstance(job.get(key), dict) else value
    path.write_text(json.dumps(job))
    return path


def submit(job: Path, folder: Path, *options: str) -> str:
    """The id of the job of a search."""
    out = call(NORD, "submit", job, "--out", folder, *options)
    assert out.startswith("submitted job "), out
    return out.split()[2].rstrip(":")


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(NORD, "status", folder, "--json"))
    return found


def n_finished(folder: Path) -> int:
    from nord_hpc.store.run_folder import RunFolder

    if not (folder / "journal").exists():
        return 0
    return sum(entry.outcome is not None for entry in RunFolder(folder).history().entries.values())


def state_of(job_id: str) -> str:
    out = call("scontrol", "show", "job", "-o", job_id)
    return next(word.removeprefix("JobState=") for word in out.split() if word.startswith("JobState="))


def wait_for(condition: Any, *, timeout: float, what: str) -> None:
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, f"no {what} within {timeout} s"
        time.sleep(0.3)


def wait_until_over(job_id: str, folder: Path, *, timeout: float) -> dict[str, Any]:
    """Status of the search when its job has left Slurm."""
    try:
        wait_for(lambda: state_of(job_id) in OVER, timeout=timeout, what=f"end of job {job_id}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log_of(folder)}") from None
    return status(folder)


def log_of(folder: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in sorted((folder / "logs").glob("slurm-*.log")))
