"""Examines the machine that a search would run on, and says what to set; exit codes are left to the command line.

Everything that loads torch, MPI or Horovod is asked of another process under a time limit: nothing of it is ever
started in this one, and nothing can hang it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nord_hpc import __version__
from nord_hpc.cluster import launch
from nord_hpc.cluster.probing import one_line, probe
from nord_hpc.data_parallel.build_horovod import cores_granted
from nord_hpc.trial import Json

N_FSYNCS = 21
SLOW_FSYNC_MILLISECONDS = 20.0
LITTLE_MEMORY_GIB = 2.0
NETWORK_FILESYSTEMS = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "smbfs", "wekafs"}
)

Status = Literal["ok", "warning", "missing"]

# What a launcher leaves for its ranks. A probe that inherited it would take itself for one of them.
_LAUNCHER_PREFIXES = ("OMPI_COMM_", "OMPI_APP_CTX", "OMPI_UNIVERSE", "PMIX_", "PMI_", "PRTE_LAUNCHED", "HOROVOD_RANK")

_TORCH_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": names,
                  "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available()}))
"""
_MPI_PROBE = """
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
line = MPI.Get_library_version().splitlines()[0].rstrip(chr(0)).strip()
print(json.dumps({"version": line.split(", package")[0], "library": line, "mpi4py": mpi4py.__version__}))
"""
_HOROVOD_PROBE = """
import json
from importlib.metadata import version
import horovod.torch as hvd
print(json.dumps({"version": version("horovod"), "mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built()),
                  "nccl": bool(hvd.nccl_built())}))
"""


def examine(folder: Path = Path("runs")) -> dict[str, Json]:
    """Look at everything, in some seconds.

    Args:
        folder: where run folders go; it, or where it does not exist yet the nearest folder above, is written to.

    Returns:
        Name of a part to a mapping with at least `status` ("ok", "warning" or "missing"), `summary` (one line) and
        `advice` (what to set; empty where all is well). JSON.
    """
    parts: dict[str, Callable[[], dict[str, Json]]] = {
        "nord_hpc": examine_program,
        "python": examine_python,
        "platform": examine_platform,
        "torch": examine_torch,
        "mpi": examine_mpi,
        "horovod": examine_horovod,
        "cores": examine_cores,
        "memory": examine_memory,
        "slurm": examine_slurm,
        "runs_folder": lambda: examine_folder(_nearest_existing(folder), purpose=folder),
    }
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures = {name: pool.submit(part) for name, part in parts.items()}
        return {name: future.result() for name, future in futures.items()}


def render(examination: Mapping[str, Any]) -> RenderableType:
    """The result of `examine` as a table, with what to set below it."""
    styles = {"ok": "green", "warning": "yellow", "missing": "red"}
    table = Table(box=None, pad_edge=False)
    for title in ("part", "status", "found"):
        table.add_column(title)
    advice = []
    for name, part in examination.items():
        status = part["status"]
        table.add_row(name.replace("_", " "), Text(status, style=styles[status]), Text(part["summary"]))
        if part["advice"]:
            advice.append(Text(f"{name.replace('_', ' ')}: {part['advice']}"))
    return Group(table, *([Text(), Text("What to set:"), *advice] if advice else []))


def examine_program() -> dict[str, Json]:
    return _part("ok", f"{__version__} in {Path(__file__).parents[1]}", version=__version__)


def examine_python() -> dict[str, Json]:
    version = platform.python_version()
    old = sys.version_info < (3, 10)
    advice = "set up nord_hpc with Python 3.10 or newer" if old else ""
    return _part("warning" if old else "ok", f"{version} in {sys.prefix}", advice, version=version, prefix=sys.prefix)


def examine_platform() -> dict[str, Json]:
    linux = sys.platform == "linux"
    advice = "" if linux else "only Linux is supported: the launcher, MPI and the process limits need it"
    facts: dict[str, Json] = {"system": platform.platform(), "machine": platform.machine(), "host": platform.node()}
    return _part("ok" if linux else "warning", f"{facts['system']} on {facts['host']}", advice, **facts)


def examine_torch() -> dict[str, Json]:
    """torch, its CUDA, the GPUs that it sees, and gloo for the backend torch_ddp."""
    found, why = probe_json(_TORCH_PROBE)
    if found is None:
        return _part("missing", f"torch does not load: {why}", "run make setup, or pip install nord_hpc again")
    gpus, cuda = found["gpus"], found["cuda"]
    summary = f"{found['version']}, {'CUDA ' + cuda if cuda else 'no CUDA'}, GPUs: {', '.join(gpus) or 'none'}"
    if cuda and not gpus and shutil.which("nvidia-smi"):
        advice = "torch sees no GPU: check the driver (nvidia-smi), CUDA_VISIBLE_DEVICES, and --gres of the Slurm job"
        return _part("warning", summary, advice, **found)
    if not cuda and shutil.which("nvidia-smi"):
        return _part("warning", summary, "this machine has a GPU: install torch with CUDA", **found)
    return _part("ok", summary, **found)


def examine_mpi() -> dict[str, Json]:
    """mpi4py's MPI library, the mpirun that would be used, and whether a search survives the death of a rank."""
    found, why = probe_json(_MPI_PROBE)
    mpirun = find_mpirun()
    if found is None:
        advice = "run make setup; without MPI a search runs in one process (-n 1)"
        return _part("missing", f"mpi4py does not load: {why}", advice, mpirun=mpirun, fault_tolerance=False)
    facts = {**found, "mpirun": mpirun}
    if mpirun is None:
        advice = "put the mpirun of this MPI in PATH; without it a search runs in one process (-n 1)"
        return _part("missing", f"{found['version']}, no mpirun", advice, **facts, fault_tolerance=False)
    fault_tolerance, why = launch.can_survive_deaths(Path(mpirun), fresh=True)
    facts.update(fault_tolerance=fault_tolerance, fault_tolerance_reason=why)
    summary = (
        f"{found['version']}, mpi4py {found['mpi4py']}, {mpirun}, fault tolerance: {'yes' if fault_tolerance else 'no'}"
    )
    if fault_tolerance:
        return _part("ok", summary, **facts)
    advice = (
        f"mpirun --with-ft ulfm does not work ({why}), so the death of a rank ends mpirun, and the search is restarted "
        "on its run folder; for gangs that outlive their ranks use Open MPI 5 and an mpi4py built with it"
    )
    return _part("warning", summary, advice, **facts)


def find_mpirun() -> str | None:
    """The mpirun of this environment, else the first in PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")


def examine_horovod() -> dict[str, Json]:
    """Horovod and the operations it was built with."""
    found, why = probe_json(_HOROVOD_PROBE)
    build = "python -m nord_hpc.data_parallel.build_horovod"
    if found is None:
        return _part("missing", f"does not load: {why}", f"run {build}; until then gangs use torch_ddp")
    built = [name for name in ("mpi", "gloo", "nccl") if found[name]]
    summary = f"{found['version']}, built with {', '.join(built) or 'no operations'}"
    if not found["mpi"]:
        return _part("warning", summary, f"gangs need the MPI operations: pip uninstall horovod, then {build}", **found)
    return _part("ok", summary, **found)


def examine_cores() -> dict[str, Json]:
    granted, source = cores_granted()
    machine = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    summary = f"{granted} granted (by {source}) of {machine}; OMP_NUM_THREADS {threads or 'not set'}"
    facts: dict[str, Json] = {"granted": granted, "source": source, "machine": machine, "omp_num_threads": threads}
    if threads is not None and threads.isdecimal() and int(threads) > granted:
        return _part("warning", summary, f"set OMP_NUM_THREADS to at most {granted}", **facts)
    return _part("ok", summary, **facts)


def examine_memory() -> dict[str, Json]:
    """Memory in GiB: of the machine, free now, and the limit of this process's control group."""
    memory, gib = psutil.virtual_memory(), 2**30
    limit = control_group_limit()
    available = memory.available if limit is None else min(memory.available, limit)
    facts: dict[str, Json] = {
        "total_gib": round(memory.total / gib, 2),
        "available_gib": round(available / gib, 2),
        "limit_gib": None if limit is None else round(limit / gib, 2),
    }
    limited = "" if limit is None else f", limited to {facts['limit_gib']} GiB"
    summary = f"{facts['available_gib']} of {facts['total_gib']} GiB available{limited}"
    if available < LITTLE_MEMORY_GIB * gib:
        advice = "a rank with torch takes 0.3 GiB and more: use few ranks, or ask Slurm for more by --mem"
        return _part("warning", summary, advice, **facts)
    return _part("ok", summary, **facts)


def control_group_limit(root: Path = Path("/sys/fs/cgroup"), self_file: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit, in bytes, of this process's control group (version 2) and those above it, if any."""
    try:
        lines = self_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    limits = []
    for group in [root / own, *(root / own).parents]:
        if not group.is_relative_to(root):
            break
        try:
            limits.append(int((group / "memory.max").read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits, default=None)


def examine_slurm(environ: Mapping[str, str] = os.environ) -> dict[str, Json]:
    """Slurm's commands, and the allocation that this process is in, if any."""
    commands = {name: shutil.which(name) for name in ("sinfo", "srun", "sbatch", "scontrol")}
    variables: dict[str, Json] = {name: environ[name] for name in sorted(environ) if name.startswith("SLURM_")}
    job = environ.get("SLURM_JOB_ID")
    facts: dict[str, Json] = {**commands, "in_allocation": job is not None, "variables": variables}
    tasks = environ.get("SLURM_NTASKS")
    inside = f"in job {job} with {tasks or 'an unknown number of'} tasks" if job else "not in an allocation"
    present = [name for name, path in commands.items() if path]
    if not present and job is None:
        return _part("ok", "not on this machine; searches start here with nord-hpc run -n RANKS", **facts)
    summary = f"{', '.join(present) or 'no commands'}; {inside}"
    absent = [name for name, path in commands.items() if not path]
    if absent:
        return _part("warning", summary, f"{', '.join(absent)} not in PATH: load the Slurm module", **facts)
    if job is not None and tasks is None:
        return _part("warning", summary, "ask for ranks by --ntasks: 1 master and the workers", **facts)
    return _part("ok", summary, **facts)


def examine_folder(folder: Path, *, purpose: Path | None = None) -> dict[str, Json]:
    """Write, fsync, rename and remove files in a folder, as a search does in its run folder.

    Args:
        purpose: the folder that is meant, where `folder` only stands for it since it does not exist yet.
    """
    meant = folder if purpose is None else purpose
    place = f"{meant.absolute()}" if meant == folder else f"{meant.absolute()} (to be made in {folder.absolute()})"
    facts: dict[str, Json] = {"path": str(meant.absolute()), "tested": str(folder.absolute()), "exists": meant.is_dir()}
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        return _part("missing", f"{place} {what}", f"make it, or give another by --out: {meant}", **facts)
    filesystem = filesystem_type(folder)
    facts["filesystem"] = filesystem
    try:
        milliseconds = median_fsync_milliseconds(folder)
    except OSError as error:
        summary = f"{place} cannot be written: {error.strerror}"
        return _part("missing", summary, f"make it writable, or give another by --out: {meant}", **facts)
    facts["fsync_milliseconds"] = round(milliseconds, 3)
    summary = f"{place}, {filesystem}, {milliseconds:.2f} ms an fsync (median)"
    if filesystem in {"tmpfs", "ramfs"}:
        return _part("warning", summary, "it is kept in memory: a restart of the machine loses it; use --out", **facts)
    if milliseconds > SLOW_FSYNC_MILLISECONDS:
        advice = "each result waits for an fsync: for many short trials give a faster folder by --out"
        return _part("warning", summary, advice, **facts)
    if filesystem in NETWORK_FILESYSTEMS:
        facts["network"] = True
    return _part("ok", summary, **facts)


def median_fsync_milliseconds(folder: Path) -> float:
    """Time of an fsync after appending to a new file; the file is then renamed, its folder fsynced, and removed.

    Raises:
        OSError: one of the steps is not possible there.
    """
    descriptor, name = tempfile.mkstemp(prefix=".nord_hpc-write-test-", dir=folder)
    renamed = f"{name}-renamed"
    try:
        try:
            seconds = [_timed_append(descriptor) for _ in range(N_FSYNCS)]
        finally:
            os.close(descriptor)
        os.rename(name, renamed)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        for leftover in (name, renamed):
            Path(leftover).unlink(missing_ok=True)
    return 1000 * statistics.median(seconds)


def _timed_append(descriptor: int) -> float:
    os.write(descriptor, b"x" * 256)
    begin = time.perf_counter()
    os.fsync(descriptor)
    return time.perf_counter() - begin


def filesystem_type(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a folder, such as "ext4" or "nfs4"; "unknown" where it cannot be told."""
    target, best, kind = folder.resolve(), -1, "unknown"
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of mounts at one place the last one is seen, so equal lengths replace.
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def probe_json(program: str) -> tuple[dict[str, Any] | None, str]:
    """What a Python program prints as its last line, read as JSON. See `probe`."""
    output, why = probe([sys.executable, "-c", program])
    if output is None:
        return None, why
    try:
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None, f"unexpected answer: {one_line(output)}"
    return found, ""


def _part(status: Status, summary: str, advice: str = "", **facts: Json) -> dict[str, Json]:
    return {"status": status, "summary": summary, "advice": advice, **facts}


def _nearest_existing(folder: Path) -> Path:
    """The folder itself if it is there, else the nearest one above it that is."""
    absolute = folder.absolute()
    return next((path for path in (absolute, *absolute.parents) if path.exists()), absolute)
