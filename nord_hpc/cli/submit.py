"""The commands that speak with Slurm: submit a search, say how its job stands, cancel it, decide whether it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nord_hpc import job as jobs
from nord_hpc.cli import wiring
from nord_hpc.cluster import parts, slurm
from nord_hpc.cluster.slurm import BatchSettings, SlurmJobs
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.store.history import History
from nord_hpc.store.run_folder import RunFolder, default_path, write_atomically

ANSWER_SECONDS = 60
SAVE_SECONDS = 60.0
"""For a search to save and end, before its job is cancelled for good."""

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")]


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Nodes of the allocation.")] = 1,
    ranks_per_node: Annotated[
        int | None,
        typer.Option("--ranks-per-node", min=1, metavar="R", help="MPI ranks of each node; 1 is the master."),
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=1, metavar="G", help="GPUs of each node.")
    ] = None,
    time_limit: Annotated[
        str, typer.Option("--time", metavar="T", help="Time limit, as sbatch takes it; the search goes on after it.")
    ] = "1:00:00",
    partition: Annotated[str | None, typer.Option("--partition", metavar="P", help="Partition.")] = None,
    sbatch: Annotated[
        list[str], typer.Option("--sbatch", metavar="KEY=VALUE", help="A further option of sbatch: account=abc.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run folder, on all nodes; else runs/NAME-TIME."),
    ] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job.")
    ] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")] = False,
) -> int:
    """Run a search as a Slurm job: checks it now, writes its batch script into the run folder, and submits that."""
    loaded = jobs.load(job, overrides=overrides)
    per_node = ranks_per_node or _ranks_per_node(loaded, nodes, gpus_per_node)
    wiring.check(loaded, n_workers=max(1, nodes * per_node - 1))
    folder = (out or default_path(loaded.name)).resolve()
    settings = BatchSettings(
        job_name=loaded.name,
        nodes=nodes,
        ranks_per_node=per_node,
        threads=loaded.resources.threads,
        gpus_per_node=gpus_per_node,
        time=time_limit,
        partition=partition,
        options=dict(_pair(option) for option in sbatch),
    )
    script = slurm.script_of(settings, job=job.resolve(), folder=folder, program=_program())
    if dry_run:
        sys.stdout.write(script)
        return wiring.DONE
    if shutil.which("sbatch") is None:
        raise BadInput("there is no sbatch in PATH: load the Slurm module, or run here with: nord-hpc run JOB -n RANKS")
    opened = parts.create_run_folder(folder, loaded)
    write_atomically(opened.batch_script, script.encode())
    try:
        answer = _slurm("sbatch", "--parsable", str(opened.batch_script))
    except BadInput:
        _take_back(opened)
        raise
    job_id = slurm.job_id_of(answer)
    SlurmJobs.of(opened).with_job(job_id).save(opened)
    print(f"submitted job {job_id}: {nodes * per_node} ranks on {nodes} node{'s' * (nodes > 1)}, {time_limit} a life")
    print(f"run folder {folder}")
    print(f"watch:  nord-hpc status {folder}")
    print(f"        squeue -j {job_id}")
    print(f"        tail -F {opened.logs / f'slurm-{job_id}.log'}")
    print(f"stop:   nord-hpc cancel {folder}")
    return wiring.DONE


def cancel(folder: FolderArgument) -> int:
    """End a search that runs as a Slurm job, with everything saved; nord-hpc resume or sbatch goes on with it."""
    opened = RunFolder.open(folder)
    known = SlurmJobs.of(opened)
    if not known.job_ids:
        raise BadInput(f"{folder}: belongs to no Slurm job; send INT or TERM to the nord-hpc that runs it")
    alive = [job_id for job_id in known.job_ids if not _is_over(job_id)]
    if not alive:
        print(f"Slurm job {known.job_ids[-1]} has ended already; nothing to cancel")
        return wiring.DONE
    for job_id in alive:
        if _state(job_id) == "RUNNING":
            _slurm("scancel", "--batch", "--signal=TERM", job_id)  # the script hands it on, and requeues nothing
        else:
            _slurm("scancel", job_id)
    ends = time.monotonic() + SAVE_SECONDS
    while time.monotonic() < ends and not all(_is_over(job_id) for job_id in alive):
        time.sleep(0.5)
    for job_id in alive:
        if not _is_over(job_id):
            print(f"Slurm job {job_id} did not end within {SAVE_SECONDS:.0f} s, and is killed")
            _slurm("scancel", job_id)
    print(f"cancelled Slurm job {', '.join(alive)}; {_n_finished(opened.history())} trials are saved")
    print(
        f"go on:  sbatch {opened.batch_script}" if opened.batch_script.exists() else f"go on:  nord-hpc resume {folder}"
    )
    return wiring.DONE


def goes_on(folder: FolderArgument) -> int:
    """Whether the batch script is to requeue its job: exit code 0 if so, else 1 and the reason."""
    opened = RunFolder.open(folder)
    history = opened.history()
    if history.state in ("finished", "error"):
        print(f"{folder}: the search is {history.state}; not requeued")
        return 1
    fruitless = SlurmJobs.of(opened).fruitless(_n_finished(history))
    if fruitless >= slurm.FRUITLESS_LIVES:
        print(
            f"{folder}: no trial has finished in {fruitless} lives of the job in a row; not requeued. Ask for more "
            "time, or make trials shorter (training.epochs, dataset.fraction)"
        )
        return 1
    return 0


def slurm_state(folder: RunFolder) -> dict[str, Any] | None:
    """How the last Slurm job of a search stands; None where it has none."""
    known = SlurmJobs.of(folder)
    if not known.job_ids:
        return None
    job_id = known.job_ids[-1]
    found = {"job_id": job_id, "lives": len(known.lives), **_ask(job_id)}
    return found


def slurm_line(state: dict[str, Any]) -> str:
    """`slurm_state` in a line."""
    reason = f" ({state['reason']})" if state.get("reason") else ""
    where = f" on {state['nodes']}" if state.get("nodes") else ""
    used = f", {state['run_time']} of {state['time_limit']}" if state.get("run_time") else ""
    plural = "s" * (state["lives"] != 1)
    return f"Slurm job {state['job_id']} {state['state']}{reason}{where}{used}, {state['lives']} start{plural}"


def note_life(folder: RunFolder) -> None:
    """Keep in the run folder which Slurm job works on it, if one does."""
    slurm.note_life(folder, n_finished=_n_finished(folder.history()), at=time.time())


def _ranks_per_node(job: Job, nodes: int, gpus_per_node: int | None) -> int:
    """A rank for each GPU; without GPUs the master and two gangs."""
    if gpus_per_node is not None:
        return gpus_per_node
    return -(-(1 + 2 * job.resources.largest_gang) // nodes)


def _pair(option: str) -> tuple[str, str]:
    key, separator, value = option.partition("=")
    key = key.lstrip("-")
    if not key or not (separator or key in ("exclusive", "no-requeue", "contiguous")):
        raise BadInput(f"--sbatch {option}: is not KEY=VALUE, such as --sbatch account=abc")
    return key, value


def _program() -> Path:
    """nord-hpc of this environment."""
    beside = Path(sys.executable).with_name("nord-hpc")
    found = beside if os.access(beside, os.X_OK) else Path(shutil.which("nord-hpc") or sys.argv[0])
    return found.absolute()


def _take_back(folder: RunFolder) -> None:
    """What was made for a job that Slurm refused."""
    for file in (folder.batch_script, folder.job_file):
        file.unlink(missing_ok=True)


def _slurm(*command: str) -> str:
    """The answer of one of Slurm's commands.

    Raises:
        BadInput: its own complaint, in one line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BadInput(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def _ask(job_id: str) -> dict[str, Any]:
    if shutil.which("scontrol") is None:
        return {"state": "UNKNOWN", "reason": "there is no scontrol in PATH"}
    try:
        return slurm.parse_job(_slurm("scontrol", "show", "job", "--oneliner", job_id))
    except BadInput as error:
        if "Invalid job id" in str(error):  # Slurm forgets jobs some minutes after their end
            return {"state": "ENDED", "reason": "no longer known to Slurm"}
        return {"state": "UNKNOWN", "reason": str(error)}


def _state(job_id: str) -> str:
    return str(_ask(job_id)["state"])


def _is_over(job_id: str) -> bool:
    return _state(job_id) in {*slurm.OVER, "ENDED"}


def _n_finished(history: History) -> int:
    return sum(entry.outcome is not None for entry in history.entries.values())
