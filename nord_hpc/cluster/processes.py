"""Names a process of the search so that others can end it when it does not answer any more."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil  # type: ignore[import-untyped]


def own_process() -> tuple[str, tuple[int, float]]:
    """This process for `end_process`: its host, its id there, and when it was created."""
    return socket.gethostname(), (os.getpid(), psutil.Process().create_time())


def end_process(host: str, process: tuple[int, float]) -> None:
    """Kill a process that the others have given up, if it is on this host and still lives, stopped as it may be."""
    pid, created = process
    if host != socket.gethostname():
        return
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid)
        if found.create_time() == created:
            found.kill()
            found.wait(5.0)
