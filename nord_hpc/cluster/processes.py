"""Names a process of the search so that others can look at it, and end it when it does not answer any more."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]


class Process(NamedTuple):
    """One process.

    Attributes:
        host: name of the machine.
        pid: its id there.
        created: when it was, in seconds since the epoch; ids are used again.
    """

    host: str
    pid: int
    created: float


def own_process() -> Process:
    """This process."""
    return Process(socket.gethostname(), os.getpid(), psutil.Process().create_time())


def find_process(process: Process) -> psutil.Process | None:
    """What the kernel knows of a process, if it is on this host and still there."""
    if process.host != socket.gethostname():
        return None
    try:
        found = psutil.Process(process.pid)
        return found if found.create_time() == process.created else None
    except psutil.Error:
        return None


def end_process(process: Process) -> None:
    """Kill a process that the others have given up, if it is on this host and still lives, stopped as it may be."""
    found = find_process(process)
    if found is not None:
        with contextlib.suppress(psutil.Error):
            found.kill()
            found.wait(5.0)
