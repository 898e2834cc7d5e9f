"""Training under MPI starts no process beside the ranks: data live in memory, and batches are views of them.

So nothing is forked after MPI has started, nothing imports the program anew, and there is no number of workers to set.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.datasets.fashion_mnist import SYSTEM_FOLDER
from nord_hpc.store.run_folder import RunFolder

SCRIPT = Path(__file__).with_name("watched_run.py")

JOB: dict[str, Any] = {
    "name": "watched",
    "dataset": {"name": "fashion_mnist", "path": ".", "allow_partial": True, "validation": 0.2},
    "space": {"name": "conv_graph", "max_layers": 2, "channels": [4]},
    "strategy": {"name": "random_search"},
    "training": {"epochs": 2, "batch_size": 20},
    "budget": {"trials": 2},
    "resources": {"shards": 2, "gang": 2},
}


def run(folder: Path, *arguments: str, ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder / "seen"), *arguments]
    if ranks is not None:
        mpirun = Path(sys.executable).with_name("mpirun")
        if not mpirun.exists():
            pytest.skip("no mpirun beside this Python")
        options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx"]
        command = [str(mpirun), *options, "--mca", "mpi_yield_when_idle", "1", "-n", str(ranks), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NORD_HPC_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False)


def seen(folder: Path) -> dict[str, list[str]]:
    """Process to what it did."""
    return {path.name: path.read_text().splitlines() for path in folder.glob("seen-*")}


def write_images(folder: Path) -> None:
    """The first images of Fashion-MNIST: 200 for training, 50 for validation, 50 for the test."""
    for name, n, head, each in [
        ("train-images-idx3-ubyte", 250, 16, 784),
        ("train-labels-idx1-ubyte", 250, 8, 1),
        ("t10k-images-idx3-ubyte", 50, 16, 784),
        ("t10k-labels-idx1-ubyte", 50, 8, 1),
    ]:
        with gzip.open(SYSTEM_FOLDER / f"{name}.gz", "rb") as stream:
            content = bytearray(stream.read(head + n * each))
        content[4:8] = n.to_bytes(4, "big")
        (folder / name).write_bytes(content)


def write_job(folder: Path) -> str:
    (folder / "job.yaml").write_text(json.dumps(JOB))  # JSON is YAML
    return str(folder / "job.yaml")


@pytest.mark.mpi
def test_three_ranks_start_mpi_once_each_and_nothing_else(tmp_path: Path) -> None:
    if not SYSTEM_FOLDER.is_dir():
        pytest.skip(f"there is no {SYSTEM_FOLDER}; install dataset-fashion-mnist")
    write_images(tmp_path)
    done = run(tmp_path, "run", write_job(tmp_path), "--out", str(tmp_path / "run"), ranks=3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fork" not in done.stderr
    entries = RunFolder(tmp_path / "run").history().entries.values()
    assert [entry.outcome.state.value for entry in entries if entry.outcome is not None] == ["completed"] * 2
    found = seen(tmp_path)
    assert len(found) == 3, found
    for did in found.values():
        assert did.count("MPI") == 1
        assert did[did.index("MPI") + 1 :] == []


def test_loading_helpers_cannot_be_asked_for(tmp_path: Path) -> None:
    for key in ("training.workers", "training.num_workers", "dataset.workers"):
        done = run(tmp_path, "run", write_job(tmp_path), "--out", "run", "--set", f"{key}=2")
        assert done.returncode == 2
        assert f"{key}: is not a known key; remove it, or check its spelling and indentation" in done.stderr
        assert not (tmp_path / "run").exists()


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    """Processes that are started, forked ones too, leave their mark."""
    (tmp_path / "nord_hpc.py").write_text(
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "child = os.fork()\n"
        "if child == 0:\n    import mpi4py.MPI\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path / "seen")]
    subprocess.run(command, env=environment, cwd=tmp_path, timeout=60, check=True)
    found = sorted(seen(tmp_path).values(), key=len)
    assert found[0] == ["MPI"] and len(found) == 2
    assert found[1][0].startswith("subprocess.Popen ") and "os.fork " in found[1]
