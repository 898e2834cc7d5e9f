"""Builds and installs Horovod for the torch and MPI at hand, as a command of the set-up; using it is left to others.

Horovod has no wheels. Its source archive is fetched with pip, changed where current torch needs it, compiled, kept as a
wheel in the user's cache folder, and installed. Only the standard library is needed here, and neither torch nor MPI is
ever loaded into this process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

VERSION = "0.28.1"
ARCHIVE_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
BUILD_SECONDS = 1800
PROGRESS_SECONDS = 15
RECIPE = 1
"""Part of the cache key: to be raised with every change of what is built from equal versions."""

CXX_STANDARD_FILES = ("CMakeLists.txt", "horovod/torch/CMakeLists.txt")
CXX_STANDARD_LINE = "set(CMAKE_CXX_STANDARD 14)"

# A cached wheel is installed into other environments than the one it was built in, so its libraries look for those of
# MPI (ENVIRONMENT/lib) and torch from where they lie themselves: ENVIRONMENT/lib/pythonX.Y/site-packages/horovod/torch.
RUN_PATH_LINES = """
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../.." "$ORIGIN/../../torch/lib")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)"""

_PROBE = """
import json, sys
import torch
from torch.utils.cpp_extension import CUDA_HOME
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
mpi = MPI.Get_library_version().splitlines()[0].rstrip(chr(0)).strip()
json.dump({"torch": torch.__version__, "cuda": torch.version.cuda if CUDA_HOME else None, "mpi": mpi}, sys.stdout)
"""
_CHECK = "import horovod.torch as hvd; import sys; sys.exit(not hvd.mpi_built())"


class BuildFailed(Exception):
    """Horovod cannot be built or installed here. The message says why in a few lines."""


@dataclass(frozen=True)
class Ingredients:
    """The versions that a build of Horovod is tied to.

    Attributes:
        torch: with its local version, such as "2.13.0+cpu".
        cuda: of torch, where a CUDA toolkit is there to compile with; None otherwise.
        mpi: the library's own version line.
        python: implementation and version, such as "cpython-311".
        machine: the compiler's target, such as "x86_64-linux-gnu".
    """

    torch: str
    cuda: str | None
    mpi: str
    python: str
    machine: str

    @property
    def label(self) -> str:
        """Local part of the version of a wheel built here; different where any ingredient differs."""
        text = json.dumps([VERSION, RECIPE, asdict(self)], sort_keys=True)
        return f"nord.{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def key(self) -> str:
        """The name of the folder of the wheel in the cache: the label, and something to read."""
        return f"{VERSION}-{self.python}-torch{self.torch}-{self.label.removeprefix('nord.')}"


def main() -> int:
    """Have the right Horovod installed in this environment. 0 when it is, 1 when it cannot be built."""
    try:
        ingredients = look()
        if is_installed(ingredients):
            say(f"{installed_version()} for torch {ingredients.torch} is installed")
            return 0
        folder = cache_folder() / ingredients.key
        wheel = cached_wheel(folder)
        if wheel is None:
            wheel = build(ingredients, folder)
        else:
            say(f"taking the wheel built before: {wheel}")
        install(wheel, ingredients)
    except (BuildFailed, OSError) as error:
        print(f"Horovod: cannot be built: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def look() -> Ingredients:
    """The versions at hand, asked of another process, as torch and MPI must not be loaded here."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise BuildFailed(f"torch and mpi4py are needed first:\n{last_lines(done.stderr, 1)}")
    found = json.loads(done.stdout)
    compiler = os.environ.get("CXX") or "c++"
    try:
        machine = subprocess.run([*compiler.split(), "-dumpmachine"], capture_output=True, text=True, timeout=20)
    except OSError as error:
        raise BuildFailed(f"no C++ compiler: {compiler}: {error.strerror}") from error
    return Ingredients(
        torch=found["torch"],
        cuda=found["cuda"],
        mpi=found["mpi"],
        python=f"{sys.implementation.name}-{sys.version_info.major}{sys.version_info.minor}",
        machine=machine.stdout.strip(),
    )


def is_installed(ingredients: Ingredients) -> bool:
    """Whether the installed Horovod is the right one: built for these ingredients, or somebody else's that works."""
    found = installed_version()
    if found is None:
        return False
    public, _, label = found.partition("+")
    if label.startswith("nord."):
        return public == VERSION and label == ingredients.label
    return works()


def works() -> bool:
    """Whether the installed Horovod loads, with MPI operations."""
    return subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, timeout=120).returncode == 0


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the wheels are kept, one folder for each set of ingredients."""
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(base) / "nord_hpc" / "horovod"


def cached_wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("horovod-*.whl"))), None)


def build(ingredients: Ingredients, folder: Path) -> Path:
    """Compile the wheel into `folder`, which appears complete or not at all.

    Returns:
        The wheel within `folder`; that of another process, where one was faster.

    Raises:
        BuildFailed: with the end of the log, which is kept beside `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        log.write_text(f"{ingredients}\n", encoding="utf-8")
        source = fetch(scratch, log=log)
        patch(source)
        done = scratch / "done"
        n_cores, _ = cores_granted()
        say(f"compiling {VERSION} for torch {ingredients.torch} on {n_cores} cores; log: {log}")
        command = [*_pip("wheel"), "--no-build-isolation", "--no-deps", "--no-cache-dir", "-w", str(done), str(source)]
        run_logged(command, log=log, what="compiling", environ=build_environment(ingredients, n_cores=n_cores))
        if cached_wheel(done) is None:
            fail_with_log("compiling", log)
        publish(done, folder)
    wheel = cached_wheel(folder)
    assert wheel is not None
    say(f"built {wheel}")
    return wheel


def fetch(scratch: Path, *, log: Path) -> Path:
    """Download the source archive, check it, and unpack it.

    Returns:
        The folder of the source.
    """
    say(f"fetching the source of {VERSION}")
    command = [*_pip("download"), "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "-d", str(scratch)]
    run_logged([*command, f"horovod=={VERSION}"], log=log, what="fetching", environ=os.environ)
    archive = scratch / f"horovod-{VERSION}.tar.gz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise BuildFailed(f"{archive.name} has SHA-256 {digest}, and not {ARCHIVE_SHA256}")
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10
            opened.extractall(scratch, filter="data")
        else:
            opened.extractall(scratch)
    return scratch / f"horovod-{VERSION}"


def patch(source: Path) -> None:
    """Change the source so that current torch, which needs C++17, compiles, and the libraries can be moved."""
    for name in CXX_STANDARD_FILES:
        path = source / name
        text = require_cxx17(path.read_text(encoding="utf-8"), name=name)
        if name == "CMakeLists.txt":
            text = text.replace(_CXX17_LINE, _CXX17_LINE + RUN_PATH_LINES, 1)
        path.write_text(text, encoding="utf-8")


_CXX17_LINE = CXX_STANDARD_LINE.replace("14", "17")


def require_cxx17(text: str, *, name: str) -> str:
    """The text of a CMake file with its one line that sets C++14 set to C++17.

    Raises:
        BuildFailed: the line is not there exactly once, so this is not the file that the change was made for.
    """
    found = text.count(CXX_STANDARD_LINE)
    if found != 1:
        raise BuildFailed(f"{name}: expected the line {CXX_STANDARD_LINE!r} once, found it {found} times")
    return text.replace(CXX_STANDARD_LINE, _CXX17_LINE)


def build_environment(
    ingredients: Ingredients, *, n_cores: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment variables that Horovod's build reads, on top of the present ones."""
    tools = Path(sys.executable).parent
    made = {name: value for name, value in environ.items() if name not in {"MAKELEVEL", "MFLAGS", "PYTHONPATH"}}
    made.update(
        PATH=f"{tools}{os.pathsep}{environ.get('PATH', os.defpath)}",
        HOROVOD_LOCAL_VERSION=ingredients.label,
        HOROVOD_WITH_PYTORCH="1",
        HOROVOD_WITHOUT_TENSORFLOW="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_WITH_MPI="1",
        HOROVOD_WITHOUT_GLOO="1",
        CMAKE_POLICY_VERSION_MINIMUM="3.5",
        CMAKE_BUILD_PARALLEL_LEVEL=str(n_cores),
        MAKEFLAGS=f"-j{n_cores}",
    )
    if ingredients.cuda is not None:
        made["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    return made


def cores_granted(environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """The cores that this process may use, and who says so: Slurm, its affinity, or the machine's count."""
    granted = environ.get("SLURM_CPUS_PER_TASK", "")
    if granted.isdecimal() and int(granted) > 0:
        return int(granted), "SLURM_CPUS_PER_TASK"
    machine = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed < machine:
            return allowed, "affinity"
    return machine, "machine"


def publish(done: Path, folder: Path) -> None:
    """Give a finished folder its final name. A folder that another process has put there meanwhile is as good."""
    try:
        os.rename(done, folder)
    except OSError:
        if cached_wheel(folder) is None:
            raise


def install(wheel: Path, ingredients: Ingredients) -> None:
    """Install the wheel in this environment and load it once. One that does not load is removed again, everywhere."""
    log = wheel.parent.parent / f"{ingredients.key}.log"
    command = [*_pip("install"), "--force-reinstall", "--no-deps", str(wheel)]
    run_logged(command, log=log, what="installing", environ=os.environ)
    if not works():
        run_logged([*_pip("uninstall"), "--yes", "horovod"], log=log, what="removing", environ=os.environ)
        shutil.rmtree(wheel.parent)
        raise BuildFailed("the wheel was built, and does not load; it was removed again")
    say(f"installed {installed_version()}")


def run_logged(command: list[str], *, log: Path, what: str, environ: Mapping[str, str]) -> None:
    """Run a command with its output appended to the log, and say now and then that it goes on.

    Raises:
        BuildFailed: it failed, or took more than `BUILD_SECONDS`.
    """
    begin = time.monotonic()
    with log.open("a", encoding="utf-8") as opened:
        opened.write(f"$ {' '.join(command)}\n")
        opened.flush()
        process = subprocess.Popen(command, stdout=opened, stderr=subprocess.STDOUT, env=dict(environ))
        try:
            while True:
                try:
                    process.wait(timeout=PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - begin
                    if elapsed > BUILD_SECONDS:
                        raise BuildFailed(f"{what} took more than {BUILD_SECONDS} s; log: {log}") from None
                    say(f"{what}, {elapsed:.0f} s so far (compiling takes about 100 s on 2 cores)")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        fail_with_log(what, log)


def fail_with_log(what: str, log: Path) -> NoReturn:
    end = last_lines(log.read_text(encoding="utf-8", errors="replace"), 8)
    raise BuildFailed(f"{what} failed; the end of the log:\n{end}\nthe whole log: {log}")


def last_lines(text: str, n: int) -> str:
    """The last `n` lines that hold anything, indented."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-n:])


def say(text: str) -> None:
    print(f"Horovod: {text}", flush=True)


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check"]


def installed_version() -> str | None:
    try:
        return version("horovod")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
