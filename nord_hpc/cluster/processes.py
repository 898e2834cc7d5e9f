"""Names a process of the search so that others can look at it, and end it when it does not answer any more."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]


class Process(NamedTuple):
    """One process.

    Attributes:
        host: name of the machine.
        pid: its id there.
        started: when it was, in clock ticks since the host came up; ids are used again.
    """

    host: str
    pid: int
    started: int


def own_process() -> Process:
    """This process."""
    return process_here(os.getpid())


def process_here(pid: int) -> Process:
    """The process on this host that has this id.

    Raises:
        OSError: there is none.
    """
    # The command's name, in brackets, may hold blanks. Seconds since the epoch would move with the clock.
    _, _, fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    return Process(socket.gethostname(), pid, int(fields.split()[19]))


def find_process(process: Process) -> psutil.Process | None:
    """What the kernel knows of a process, if it is on this host and still there."""
    try:
        return psutil.Process(process.pid) if process_here(process.pid) == process else None
    except (OSError, psutil.Error):
        return None


def end_process(process: Process) -> None:
    """Kill a process that the others have given up, if it is on this host and still lives, stopped as it may be."""
    found = find_process(process)
    if found is not None:
        with contextlib.suppress(psutil.Error):
            found.kill()
            found.wait(5.0)
