"""The supervisor of mpirun, with small programs in mpirun's place."""

from __future__ import annotations

import sys
from pathlib import Path

from nord_hpc.cluster.launch import SESSION_BASE, Supervisor

SAY_FOLDER = f"""
import os, pathlib, sys
folder = pathlib.Path(os.environ["{SESSION_BASE}"])
(folder / f"ompi.{{os.getpid()}}").mkdir()
pathlib.Path(sys.argv[1]).write_text(str(folder))
os.kill(os.getpid(), 9)
"""


def test_every_mpirun_has_a_session_folder_of_its_own_that_goes_with_it(tmp_path: Path) -> None:
    """A killed mpirun leaves its folder, and a later one with the same process id would fail at it."""
    folders = []
    for name in ("first", "second"):
        said = tmp_path / name
        result = Supervisor().run([sys.executable, "-c", SAY_FOLDER, str(said)], threads=1, on_wait=lambda: None)
        assert result.exit_code == -9
        folders.append(Path(said.read_text()))
    assert folders[0] != folders[1]
    assert not any(folder.exists() for folder in folders)
