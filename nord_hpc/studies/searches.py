"""Runs searches: side by side in virtual time where results are looked up, else one by one as run folders."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from nord_hpc import job as jobs
from nord_hpc.cluster import first_candidates, parts
from nord_hpc.errors import BadInput
from nord_hpc.interfaces import Evaluator
from nord_hpc.job import Job
from nord_hpc.store.run_folder import RunFolder, write_atomically
from nord_hpc.studies.incumbent import Incumbent, RunResult
from nord_hpc.studies.simulate_search import simulate
from nord_hpc.trial import Json

CHUNK = 5
"""Seeds that a process runs at a time."""

DIGEST_FILE = "study-job.sha256"
"""In a run folder: of the job that the study made it for."""

INTERRUPTED = 3
"""The exit code of a search that was asked to stop."""

_evaluators: dict[str, Evaluator] = {}
"""Of this process, with their tables, for its next search of the same kind."""


def simulated(
    wanted: Mapping[Any, tuple[Job, Sequence[int]]], *, processes: int
) -> Iterator[tuple[Any, int, RunResult]]:
    """Run searches in virtual time, spread over processes; results come as they are there.

    Args:
        wanted: key to job and seeds.

    Yields:
        Key, seed, result.
    """
    chunks = [
        (key, job, seeds[begin : begin + CHUNK])
        for key, (job, seeds) in wanted.items()
        for begin in range(0, len(seeds), CHUNK)
    ]
    processes = min(processes, len(chunks))
    if processes <= 1:
        for key, job, seeds in chunks:
            for seed in seeds:
                yield key, seed, run_simulated({**job.to_json(), "seed": seed}, job.folder)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin) as pool:
        futures = {
            pool.submit(_run_chunk, job.to_json(), str(job.folder), seeds): (key, seeds) for key, job, seeds in chunks
        }
        try:
            for future in as_completed(futures):
                key, seeds = futures[future]
                for seed, data in zip(seeds, future.result(), strict=True):
                    yield key, seed, RunResult.from_json(data)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():  # what they have begun is not waited for
                process.terminate()
            raise


def _begin() -> None:
    """In each process: it is the first one that is interrupted, and says so to the others."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_chunk(data: dict[str, Json], folder: str, seeds: Sequence[int]) -> list[dict[str, Json]]:
    return [run_simulated({**data, "seed": seed}, Path(folder)).to_json() for seed in seeds]


def run_simulated(data: Mapping[str, Any], folder: Path) -> RunResult:
    """One search in this process, in virtual time.

    Raises:
        BadInput: the job is wrong, or its parts do not fit.
    """
    job = jobs.from_mapping(data, folder=folder)
    resolved = job.to_json()
    key = json.dumps([*(resolved[name] for name in ("evaluator", "objective", "training", "dataset")), str(folder)])
    if key not in _evaluators:
        _evaluators[key] = parts.make_evaluator(job, folder)
    evaluator = _evaluators[key]
    strategy, maker = parts.make_maker(job, evaluator)
    first = first_candidates.gather(job, parts.make_space(job))
    return simulate(job, strategy=strategy, maker=maker, evaluator=evaluator, first=first)


def run_in_folder(job: Job, folder: Path, *, ranks: int) -> RunFolder:
    """One search as a run folder of its own, to its end; it goes on if it was begun.

    Args:
        ranks: MPI ranks, the master included; 1 for none.

    Raises:
        KeyboardInterrupt: the search was asked to stop, and has saved all.
        BadInput: it ended otherwise, or the folder was made for another job.
    """
    digest_file = folder / DIGEST_FILE
    if not digest_file.exists():
        parts.create_run_folder(folder, job)
        write_atomically(digest_file, digest(job).encode())
    elif digest_file.read_text(encoding="utf-8") != digest(job):
        raise BadInput(f"{folder}: was made with another job; set --out to another folder")
    opened = RunFolder.open(folder)
    if opened.history().state == "finished":
        return opened
    command = [sys.executable, "-m", "nord_hpc", "resume", str(folder), "-n", str(ranks)]
    # Of a session of its own, so that the terminal's Ctrl-C comes once, from here.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise BadInput(f"{folder}: the search ended with exit code {code}; see its logs, mend it, and start again")
    return opened


def file_name(text: str) -> str:
    """The text with nothing but what a file's name may have everywhere."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def digest(job: Job) -> str:
    """Equal for jobs that are equal."""
    return hashlib.sha256(json.dumps(job.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def trained(job: Job, folder: Path, *, ranks: int) -> RunResult:
    """The result of a search as a run folder; see `run_in_folder`."""
    began = time.monotonic()
    opened = run_in_folder(job, folder, ranks=ranks)
    return result_of_run(opened, wall_seconds=time.monotonic() - began)


def result_of_run(folder: RunFolder, *, wall_seconds: float) -> RunResult:
    """The result of a search from its run folder, in measured time."""
    history, job = folder.history(), folder.job()
    incumbent = Incumbent(job)
    began = history.lives[0].began_at
    for number in history.commit_order:
        entry = history.entries[number]
        assert entry.outcome is not None
        last = entry.attempts[-1] if entry.attempts else None
        seconds = last.finished_at - began if last is not None and last.finished_at is not None else 0.0
        rank_seconds = entry.outcome.seconds * (len(last.ranks) if last is not None else 0)
        incumbent.add(entry.trial, entry.outcome, seconds=seconds, rank_seconds=rank_seconds)
    test = {} if history.test is None else history.test["metrics"]
    return incumbent.result(history_sha256=history.history_sha256, wall_seconds=wall_seconds, test=test)
