"""Asks other programs a question, with a time limit, and says in one line why there is no answer."""

from __future__ import annotations

import os
import signal
import subprocess

PROBE_SECONDS = 20.0
_LAUNCHER_PREFIXES = ("OMPI_COMM_", "OMPI_APP_CTX", "OMPI_UNIVERSE", "PMIX_", "PMI_", "PRTE_LAUNCHED", "HOROVOD_RANK")
"""Variables by which a process would take itself for a rank of the launcher that this one runs under."""


def probe(command: list[str], *, seconds: float = PROBE_SECONDS) -> tuple[str | None, str]:
    """Run a command, with everything it starts, under a time limit.

    Returns:
        Its output and "", or None and why there is none, in one line.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_PREFIXES)}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        return None, f"{command[0]}: {error.strerror}"
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {seconds:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        return None, one_line(errors) or f"exit code {process.returncode}"
    return output, ""


def one_line(text: str) -> str:
    """The last line that holds anything but rules, such as the message of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -*=")]
    return lines[-1][:200] if lines else ""
