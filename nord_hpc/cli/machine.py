"""The numeric environment of this process, as far as the bits of a training depend on it; found without torch."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nord_hpc import __version__
from nord_hpc.job import Job
from nord_hpc.trial import Json

VECTOR_FLAGS = ("avx512_bf16", "avx512f", "avx2", "avx", "asimd", "sse4_2")


def fingerprint(job: Job) -> dict[str, Json]:
    """What must be equal for two runs to agree to the bit."""
    return {
        "nord_hpc": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "architecture": platform.machine(),
        "instruction_set": _instruction_set(),
        "threads": job.resources.threads,
        "device": job.resources.device,
    }


def source_commit() -> str | None:
    """The git commit that this package is run from, where it is; read from files, as MPI forbids helper processes."""
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _instruction_set() -> str:
    """The widest vector instructions of the CPU: other ones add in another order."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    return next((flag for flag in VECTOR_FLAGS if flag in flags), "baseline")
