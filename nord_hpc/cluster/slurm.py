"""Slurm as text: the batch script of a search, what Slurm's commands answer, and which jobs a run folder belongs to.

Runs no search and submits nothing; asks Slurm only which nodes of the allocation still answer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from nord_hpc.cluster.probing import probe
from nord_hpc.errors import BadInput
from nord_hpc.store.run_folder import RunFolder, write_atomically
from nord_hpc.trial import Json

EARLIEST_SIGNAL_SECONDS = 120
"""Before the time limit, USR1 asks the search to save and stop; Slurm may send it 30 s earlier than asked."""
NODE_ANSWER_SECONDS = 15.0
FRUITLESS_LIVES = 2
"""Lives in a row without a trial finished, after which a job is not requeued any more."""
OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""States of a Slurm job that has ended and is not requeued."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What a search asks of Slurm.

    Attributes:
        ranks_per_node: MPI ranks; rank 0, on the first node, is the master.
        gpus_per_node: None asks for none.
        time: as sbatch takes it, such as "2:00:00" or "1-12".
        options: further options of sbatch, in their order, such as {"account": "abc", "exclusive": ""}; they win.
    """

    job_name: str
    nodes: int = 1
    ranks_per_node: int = 5
    threads: int = 1
    gpus_per_node: int | None = None
    time: str = "1:00:00"
    partition: str | None = None
    options: Mapping[str, str] | None = None

    def lines(self, *, log: str) -> list[tuple[str, str]]:
        """The options of sbatch, each with the comment that stands behind it."""
        lead = signal_seconds(self.time)
        chosen: dict[str, tuple[str, str]] = {
            "job-name": (self.job_name, ""),
            "nodes": (str(self.nodes), "site: any number; the more, the more gangs"),
            "ntasks-per-node": (str(self.ranks_per_node), "site: ranks of a node; rank 0 is the master"),
            "cpus-per-task": (str(self.threads), "cores of a rank, as resources.threads of the job file"),
            "time": (self.time, "site: a limit of the partition; the search goes on after it"),
            "signal": (f"B:USR1@{lead}", "seconds before the limit at which the search saves, up to 30 s earlier"),
            "requeue": ("", "lets the job go on after the limit, after preemption and after a lost first node"),
            "no-kill": ("", "a lost node does not end the job: the search goes on with those that are left"),
            "open-mode": ("append", "a later life does not cut the log"),
            "output": (log, "site: on a file system that all nodes see"),
        }
        if self.gpus_per_node is not None:
            chosen["gpus-per-node"] = (str(self.gpus_per_node), "not --gpus-per-task: each rank picks its own")
        if self.partition is not None:
            chosen["partition"] = (self.partition, "site")
        for name, value in (self.options or {}).items():
            if name == "no-requeue":
                chosen.pop("requeue", None)
            chosen[name] = (value, chosen.get(name, ("", ""))[1])
        return [(f"--{name}={value}" if value else f"--{name}", comment) for name, (value, comment) in chosen.items()]


@dataclass(frozen=True, slots=True)
class SlurmLife:
    """One start of a Slurm job of a search.

    Attributes:
        restart: how often Slurm had requeued the job.
        finished_before: trials that had a result when it began.
    """

    job_id: str
    restart: int
    began_at: float
    finished_before: int


@dataclass(frozen=True, slots=True)
class SlurmJobs:
    """The Slurm jobs of a run folder: those that were submitted for it, and the lives that they had."""

    job_ids: tuple[str, ...] = ()
    lives: tuple[SlurmLife, ...] = ()

    @classmethod
    def of(cls, folder: RunFolder) -> SlurmJobs:
        try:
            data = json.loads(folder.slurm_file.read_text(encoding="utf-8"))
            return cls(tuple(data["job_ids"]), tuple(SlurmLife(**life) for life in data["lives"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"{folder.slurm_file}: cannot be read: {error}; remove it") from error

    def save(self, folder: RunFolder) -> None:
        data = {"job_ids": list(self.job_ids), "lives": [asdict(life) for life in self.lives]}
        write_atomically(folder.slurm_file, json.dumps(data, indent=1).encode())

    def with_job(self, job_id: str) -> SlurmJobs:
        return self if job_id in self.job_ids else SlurmJobs((*self.job_ids, job_id), self.lives)

    def with_life(self, life: SlurmLife) -> SlurmJobs:
        """A life that is already known, as the script starts a search again within it, is not counted twice."""
        known = any((one.job_id, one.restart) == (life.job_id, life.restart) for one in self.lives)
        return self if known else SlurmJobs(self.with_job(life.job_id).job_ids, (*self.lives, life))

    def fruitless(self, n_finished: int) -> int:
        """The last lives in a row, the present one included, in which no trial has finished."""
        count = 0
        for life in reversed(self.lives):
            if life.finished_before < n_finished:
                break
            count += 1
        return count


def note_life(folder: RunFolder, *, n_finished: int, at: float, environ: Mapping[str, str] = os.environ) -> None:
    """Within a Slurm job: keep in the run folder which one it is."""
    job_id = environ.get("SLURM_JOB_ID")
    if job_id is not None:
        life = SlurmLife(job_id, int(environ.get("SLURM_RESTART_COUNT") or 0), at, n_finished)
        SlurmJobs.of(folder).with_life(life).save(folder)


def seconds_of(time: str) -> int:
    """A time limit in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        BadInput: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise BadInput(f"--time {time}: is not MINUTES, H:MM:SS or DAYS-HOURS, such as 30, 2:00:00 or 1-12")
    days, first, second, third = (None if part is None else int(part) for part in found.groups())
    assert first is not None
    if days is not None:
        return ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return (first * 60 + (second or 0)) * 60 + third
    return first * 60 + (second or 0)


def signal_seconds(time: str) -> int:
    """How long before the limit the search is asked to save: two minutes, less where the limit itself is short."""
    return max(20, min(EARLIEST_SIGNAL_SECONDS, seconds_of(time) // 3))


def script_of(settings: BatchSettings, *, job: Path, folder: Path, program: Path) -> str:
    """The batch script of a search whose run folder exists, with absolute paths; readable, and to be edited by hand."""
    return _script(
        settings.lines(log=f"{folder / 'logs' / 'slurm-%j.log'}"),
        head=_HEAD_OF_SUBMIT,
        job=shlex.quote(str(job)),
        folder=shlex.quote(str(folder)),
        program=shlex.quote(str(program)),
    )


def template() -> str:
    """slurm/search.sbatch: the same script, for a job file and a run folder that are given on the command line."""
    return _script(
        BatchSettings("nord_hpc").lines(log="slurm-%x-%j.log"),
        head=_HEAD_OF_TEMPLATE,
        job="${1:-}",
        folder="${2:-runs/slurm-${SLURM_JOB_ID:-local}}",
        program="${NORD_HPC:-${SLURM_SUBMIT_DIR:-.}/.venv/bin/nord-hpc}",
    )


def _script(options: Sequence[tuple[str, str]], *, head: str, job: str, folder: str, program: str) -> str:
    lines = [f"#SBATCH {option:<32}{f'# {comment}' if comment else ''}".rstrip() for option, comment in options]
    return f"#!/usr/bin/env bash\n{head}" + "\n".join(lines) + _BODY.format(job=job, folder=folder, program=program)


_HEAD_OF_SUBMIT = """\
# One search of nord_hpc, written by nord-hpc submit. To start it again: sbatch THIS_FILE
#
"""
_HEAD_OF_TEMPLATE = """\
# Runs one search of nord_hpc on Slurm, and goes on with it when its run folder already holds one.
#
#   sbatch slurm/search.sbatch JOB [RUN_DIR]
#   sbatch --nodes=4 --ntasks-per-node=16 --time=24:00:00 slurm/search.sbatch jobs/digits_evolution.yaml /scratch/digits
#
# JOB is a job file; RUN_DIR is by default runs/slurm-JOBID. Both on a file system that all nodes see. NORD_HPC in the
# environment names the program: by default .venv/bin/nord-hpc of the folder of submission, else the one in PATH.
# `nord-hpc submit JOB` writes such a script, with everything filled in.
#
"""
_BODY = """

# For an administrator: one mpirun, started by nord-hpc on the first node, spans the allocation; there are no other
# steps. Exit codes: 0 done; 2 wrong job file or options; 3 stopped with everything saved, to go on; 1 any other error.
# USR1 (before the limit) saves, ends with 3 and requeues the job; TERM (scancel, preemption) saves, no more.
set -uo pipefail

job={job}
folder={folder}
program={program}
resumes=3                        # starts of a search that was killed, within one life of the job, before a requeue
ranks=${{SLURM_NTASKS:-1}}
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
export HDF5_USE_FILE_LOCKING=FALSE  # shared file systems may have no locks; only one process writes

say() {{ echo "search.sbatch: $(date +%T): $*"; }}
if [[ -z $job ]]; then
    echo "usage: sbatch slurm/search.sbatch JOB [RUN_DIR]" >&2
    exit 2
fi
[[ -n ${{NORD_HPC:-}} || -x $program ]] || program=nord-hpc
if ! command -v "$program" >/dev/null; then
    echo "search.sbatch: there is no $program; activate its environment before sbatch, or set NORD_HPC" >&2
    exit 2
fi

# The shell waits for a child in the background, as a trap runs only between commands.
child= signalled=0 stopped=0 terminated=0
forward() {{
    signalled=1 stopped=1
    [[ $1 == TERM ]] && terminated=1
    say "handing $1 to the search"
    [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null
}}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

search() {{
    if [[ -e $folder/job.yaml ]]; then
        say "resuming $folder on $ranks ranks (restart ${{SLURM_RESTART_COUNT:-0}})"
        "$program" resume "$folder" -n "$ranks" &
    else
        say "running $job on $ranks ranks; run folder $folder"
        # shellcheck disable=SC2086 # options of array_of_seeds.sbatch, such as --set seed=3
        "$program" run "$job" --out "$folder" -n "$ranks" ${{NORD_HPC_OPTIONS:-}} &
    fi
    child=$!
    while true; do
        wait "$child"
        code=$?
        # Above 128 after a signal means that the wait was interrupted, and not that the search has ended.
        ((signalled && code > 128)) || break
        signalled=0
    done
    say "the search ended with exit code $code"
}}

# A job of a chain (chain.sh) leaves a search alone that is finished, or that the two jobs before brought no further.
if [[ -n ${{NORD_HPC_CHAIN:-}} && -e $folder/job.yaml ]] && ! "$program" goes-on "$folder"; then exit 0; fi

# Only what stands in the run folder says how a search ended; one that was killed is started again.
search
while ((code > 128 && !stopped && resumes-- > 0)); do search; done

may_requeue() {{
    [[ -n ${{SLURM_JOB_ID:-}} ]] && ((!terminated)) && command -v scontrol >/dev/null &&
        scontrol show job "$SLURM_JOB_ID" | grep -q 'Requeue=1'
}}
if ((code == 3 || code > 128)) && may_requeue && "$program" goes-on "$folder"; then
    say "requeueing job $SLURM_JOB_ID to go on"
    scontrol requeue "$SLURM_JOB_ID" || say "could not be requeued; submit again with RUN_DIR $folder" >&2
fi
exit "$code"
"""


def job_id_of(answer: str) -> str:
    """The job id in what `sbatch --parsable` prints: ID or ID;CLUSTER.

    Raises:
        BadInput: there is none.
    """
    for line in reversed(answer.split()):
        found = re.fullmatch(r"(\d+)(?:;\S+)?", line)
        if found:
            return found[1]
    raise BadInput(f"sbatch gave no job id: {' '.join(answer.split()) or 'no answer'}")


def parse_job(answer: str) -> dict[str, Json]:
    """What `scontrol show job -o` says of a job, as far as a user wants to know it."""
    fields = dict(re.findall(r"(\w+)=(\S*)", answer))
    restarts = fields.get("Restarts", "0")
    return {
        "state": fields.get("JobState", "UNKNOWN"),
        "reason": None if fields.get("Reason", "None") == "None" else fields["Reason"],
        "nodes": None if fields.get("NodeList", "(null)") == "(null)" else fields["NodeList"],
        "run_time": fields.get("RunTime"),
        "time_limit": fields.get("TimeLimit"),
        "restarts": int(restarts) if restarts.isdigit() else 0,
    }


def expand_nodes(text: str) -> list[str]:
    """The names in a node list such as "gpu[01-03,7],login1"."""
    names: list[str] = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\][^,\[\]]*)*", text):
        found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if found is None:
            names.append(part)
            continue
        prefix, ranges, rest = found.groups()
        for piece in ranges.split(","):
            first, _, last = piece.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names += expand_nodes(f"{prefix}{number:0{len(first)}d}{rest}")
    return names


def slots_of(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The nodes of this allocation with their tasks, in order; empty outside one."""
    nodes = expand_nodes(environ.get("SLURM_JOB_NODELIST", ""))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    return dict(zip(nodes, counts, strict=False))


def nodes_left(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The nodes of this allocation that still start a process, with their tasks. Takes seconds, also if one is dead."""
    slots = slots_of(environ)
    if len(slots) < 2:
        return slots

    def answers(node: str) -> bool:
        options = ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--immediate=10", "--mpi=none"]
        return probe(["srun", *options, "true"], seconds=NODE_ANSWER_SECONDS)[0] is not None

    with ThreadPoolExecutor(max_workers=16) as pool:
        alive = list(pool.map(answers, slots))
    return {node: slots[node] for node, lives in zip(slots, alive, strict=True) if lives}
