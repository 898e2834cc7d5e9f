"""The fixture that runs a script on real ranks under mpirun, with a time limit; conftest files import it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

Results = list[dict[str, Any]]


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """Runs a script on `n` ranks; each writes what it found to FOLDER/rank-R.json, FOLDER being its first argument."""
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        found = shutil.which("mpirun")
        if found is None:
            pytest.skip("no mpirun beside this Python")
        mpirun = Path(found)

    def run(script: Path, *arguments: str, n: int, timeout_seconds: float = 90) -> Results:
        folder = tmp_path_factory.mktemp(script.stem)
        command = [str(mpirun), "--allow-run-as-root", "--oversubscribe", "--mca", "osc", "^ucx"]
        command += ["--mca", "mpi_yield_when_idle", "1", "-n", str(n), sys.executable, str(script), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # mpirun ends its ranks when it is killed, but may ignore all gentler signals.
        done = subprocess.run(
            [*command, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(n)]

    return run
