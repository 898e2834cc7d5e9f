"""The lock between processes: one holder, a bounded wait, free after the holder's death."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nord_hpc.datasets.locks import locked
from nord_hpc.errors import BadInput

HOLDER = """
import sys, time
from pathlib import Path
from nord_hpc.datasets.locks import locked
with locked(Path(sys.argv[1]), wait_seconds=5):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_lock_is_waited_for_no_longer_than_told_and_free_after_its_holders_death(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        start = time.monotonic()
        with pytest.raises(BadInput, match=r"a.lock: another process has held this lock for 0.3 seconds; end that"):
            locked(path, wait_seconds=0.3).__enter__()
        assert 0.3 <= time.monotonic() - start < 2
        holder.send_signal(signal.SIGKILL)
        with locked(path, wait_seconds=5):
            pass
    finally:
        holder.kill()
        holder.wait(timeout=10)
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadInput, match="file/sub: cannot be written: Not a directory; set NORD_HPC_CACHE to a folder"),
        locked(tmp_path / "file" / "sub" / "a.lock", wait_seconds=1),
    ):
        pass
