"""Runs nord_hpc with the arguments behind FILE, and appends to FILE-PID what starts processes or MPI, as it happens."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

STARTERS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "subprocess.Popen"}
MPI_MODULE = "mpi4py.MPI"
prefix = sys.argv.pop(1)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTERS:
        note = f"{event} {arguments[0] if arguments else ''}"
    elif event == "import" and arguments[0] == MPI_MODULE and arguments[1] is not None:  # is loaded, not looked for
        note = "MPI"
    else:
        return
    # Of the process that does it, which may be a helper that was forked.
    descriptor = os.open(f"{prefix}-{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(descriptor, f"{note}\n".encode())
    os.close(descriptor)


sys.addaudithook(watch)
runpy.run_module("nord_hpc", run_name="__main__", alter_sys=True)
