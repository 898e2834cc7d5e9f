"""Kills ranks of a running search, the master among them, and measures what that costs; run as a program or by tests.

`python tests/mpi/chaos.py --minutes 2` runs a search of synthetic trials on 9 ranks, 4 of them spares at the start,
kills a random rank every 10 s, and compares the history with that of the undisturbed search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nord_hpc import job as jobs
from nord_hpc.cluster import parts
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.evaluators.synthetic import SyntheticEvaluator
from nord_hpc.store import journal
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.trial import Trial

START_SECONDS = 90.0
END_SECONDS = 120.0


def job_of(*, seed: int, trials: int, seconds: float, spares: int, log: Path) -> dict[str, Any]:
    """A search whose trials sleep; a third of them in gangs of two."""
    return {
        "name": "chaos",
        "seed": seed,
        "space": {"name": "conv_graph", "max_layers": 4},
        "strategy": {"name": "regularized_evolution", "population": 12, "sample": 4},
        "evaluator": {"name": "synthetic", "seconds": seconds, "sigma": 0.5, "log": str(log)},
        "budget": {"trials": trials},
        "resources": {"shards": 2, "gang": 2, "spares": spares},
        "order": {"virtual_gangs": 6},
        "limits": {"attempts": 20, "restarts": 20},
    }


class _Alone:
    rank, size = 0, 1

    def connect(self) -> Any:
        raise NotImplementedError("synthetic trials do not talk to each other")


class _Free:
    def check(self) -> None:
        pass


def undisturbed_digest(data: dict[str, Any]) -> str:
    """The history of the job without any rank: the same trials in the same order, without their time."""
    job = jobs.from_mapping({**data, "evaluator": {**data["evaluator"], "log": None}}, folder=Path())
    strategy, maker = parts.make_maker(job, parts.make_evaluator(job, Path()))
    quick = SyntheticEvaluator(SyntheticEvaluator.Options(seconds=0.0), job=job, folder=Path(), weights_folder=Path())
    scheduler = make_scheduler(job, strategy=strategy, maker=maker)
    while not scheduler.finished:
        for step in scheduler.advance(room=8):
            if isinstance(step, Trial) and step.runs:
                outcome = quick.evaluate(step, gang=_Alone(), control=_Free(), keep_above=None)
                scheduler.finish(step.number, outcome)
    return scheduler.ledger.digest.hexdigest()


@dataclass
class Blow:
    """One rank that was killed or stopped, and what the journal says of it."""

    at: float
    rank: int
    was_master: bool
    stopped: bool = False
    noticed_seconds: float | None = None
    dispatched_seconds: float | None = None
    taken_over_seconds: float | None = None
    restarted_seconds: float | None = None


@dataclass
class Result:
    """What happened in a search under fire."""

    state: str
    history_sha256: str
    expected_sha256: str
    blows: list[Blow]
    lives: int = 0
    take_overs: int = 0
    restarts: int = 0
    retries: int = 0
    lost_seconds: float = 0.0
    wall_seconds: float = 0.0
    ran_again: list[int] = field(default_factory=list)
    trials: int = 0

    def medians(self) -> dict[str, float | None]:
        return {
            name: _median([getattr(blow, f"{name}_seconds") for blow in self.blows if blow.stopped is stopped])
            for name, stopped in (
                ("noticed", False),
                ("dispatched", False),
                ("taken_over", False),
                ("restarted", False),
            )
        }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The living ranks below a `nord-hpc run`."""
    found = {}
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                rank = child.environ().get("OMPI_COMM_WORLD_RANK")
                if rank is not None and "rank" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found[int(rank)] = child
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return found


def records_of(run: Path) -> list[dict[str, Any]]:
    return journal.read(run / "journal") if (run / "journal").exists() else []


def run_chaos(
    folder: Path,
    *,
    seconds: float,
    n_ranks: int,
    spares: int,
    interval: float,
    seed: int,
    trial_seconds: float,
    stop_one: bool,
) -> Result:
    """Run a search that takes about that many seconds undisturbed, and strike it at every interval."""
    run, log = folder / "run", folder / "evaluations.log"
    workers = n_ranks - 1 - spares
    trials = max(20, int(seconds / trial_seconds * workers / 2 * 0.85))
    data = job_of(seed=seed, trials=trials, seconds=trial_seconds, spares=spares, log=log)
    (folder / "job.yaml").write_text(json.dumps(data))
    command = [sys.executable, "-m", "nord_hpc", "run", str(folder / "job.yaml"), "-n", str(n_ranks), "--out", str(run)]
    began = time.time()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            blows = _strike(
                process,
                run,
                interval=interval,
                rng=random.Random(seed),
                stop_one=stop_one,
                ends=began + 4 * seconds + 120,
            )
            process.wait(timeout=END_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)
    return _examine(run, log, data, blows, wall_seconds=time.time() - began)


def _strike(
    process: subprocess.Popen[str], run: Path, *, interval: float, rng: random.Random, stop_one: bool, ends: float
) -> list[Blow]:
    blows: list[Blow] = []
    next_at = 0.0
    while process.poll() is None and time.time() < ends:
        time.sleep(0.05)
        lives = [record for record in records_of(run) if record["kind"] == "run"]
        if not lives or time.time() < next_at:
            continue
        if next_at == 0.0:
            next_at = time.time() + interval / 2
            continue
        ranks = ranks_of(process)
        if not ranks or _starting(run):
            continue
        master = _master(run)
        # Every third blow is for the master.
        rank = master if len(blows) % 3 == 2 and master in ranks else rng.choice(sorted(ranks))
        stop = stop_one and len(blows) == 1 and rank != master
        at = time.time()
        ranks[rank].send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
        blows.append(Blow(at, rank, rank == master, stopped=stop))
        next_at = at + interval
    return blows


def _starting(run: Path) -> bool:
    """Whether mpirun was started again and its ranks are not at work yet."""
    kinds = [record["kind"] for record in records_of(run)]
    return "started" not in kinds[len(kinds) - 1 - kinds[::-1].index("run") :]


def _master(run: Path) -> int:
    lives = [record for record in records_of(run) if record["kind"] == "run"]
    return int(lives[-1].get("master", 0))


def _examine(run: Path, log: Path, data: dict[str, Any], blows: list[Blow], *, wall_seconds: float) -> Result:
    records = records_of(run)
    opened = RunFolder.open(run)
    history = opened.history()
    result = Result(history.state, history.history_sha256, undisturbed_digest(data), blows, wall_seconds=wall_seconds)
    lives = [record for record in records if record["kind"] == "run"]
    result.lives = len(lives)
    result.take_overs = sum(record["takeover"] for record in lives)
    result.restarts = result.lives - 1 - result.take_overs
    result.trials = len(history.entries)
    finished = {record["number"]: record["at"] for record in records if record["kind"] == "finished"}
    for entry in history.entries.values():
        result.retries += max(0, len(entry.attempts) - 1)
        result.lost_seconds += sum(
            (later.started_at - attempt.started_at)
            for attempt, later in zip(entry.attempts, entry.attempts[1:], strict=False)
        )
    for line in log.read_text().splitlines():
        number, _, at = line.split()
        # A gang's leader logs when it begins; a moment may pass between a result's record and the next start.
        if int(number) in finished and float(at) > finished[int(number)]:
            result.ran_again.append(int(number))
    for blow, until in zip(blows, [*(b.at for b in blows[1:]), float("inf")], strict=True):
        _time(blow, until, records)
    return result


def _time(blow: Blow, until: float, records: list[dict[str, Any]]) -> None:
    """What followed a blow, up to the next one."""
    after = [record for record in records if blow.at < record["at"] < until]
    began = next((record for record in after if record["kind"] == "run"), None)
    if began is not None:
        name = "taken_over_seconds" if began["takeover"] else "restarted_seconds"
        setattr(blow, name, began["at"] - blow.at)
    lost = next((record for record in after if record["kind"] == "lost" and record["rank"] == blow.rank), None)
    if lost is None:
        return
    blow.noticed_seconds = lost["at"] - blow.at
    running: dict[int, list[int]] = {}
    for record in records:
        if record["at"] >= lost["at"]:
            break
        if record["kind"] == "started":
            running[record["number"]] = record["ranks"]
        elif record["kind"] == "finished":
            running.pop(record["number"], None)
    victims = {number for number, ranks in running.items() if blow.rank in ranks}
    again = next(
        (r for r in after if r["kind"] == "started" and r["number"] in victims and r["at"] >= lost["at"]), None
    )
    if again is not None:
        blow.dispatched_seconds = again["at"] - blow.at


def report(result: Result) -> list[str]:
    """For people: what happened, and what it cost."""
    medians = result.medians()
    stopped = [blow for blow in result.blows if blow.stopped]

    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.2f} s"

    lines = [
        f"{len(result.blows)} ranks struck: {sum(b.was_master for b in result.blows)} masters, "
        f"{len(stopped)} stopped and not killed",
        f"{result.take_overs} take-overs, {result.restarts} restarts by the supervisor, {result.lives} lives",
        f"{result.retries} retries of trials, {result.lost_seconds:.1f} rank-group seconds of work lost",
        f"from death to its notice, median: {shown(medians['noticed'])}",
        f"from death to re-dispatch of its trial, median: {shown(medians['dispatched'])}",
        f"from the master's death to its successor, median: {shown(medians['taken_over'])}",
        f"from a death to a restart by the supervisor, median: {shown(medians['restarted'])}",
        f"from a stopped rank to its notice: {shown(_median([blow.noticed_seconds for blow in stopped]))}",
        f"acknowledged trials that were run again: {len(result.ran_again)}",
        f"{result.state}: {result.trials} trials in {result.wall_seconds:.0f} s",
        f"history_sha256 {result.history_sha256}",
        f"undisturbed    {result.expected_sha256}: {'equal' if agrees(result) else 'DIFFERENT'}",
    ]
    return lines


def agrees(result: Result) -> bool:
    return result.history_sha256 == result.expected_sha256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds from one blow to the next")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nord_hpc-chaos-") as folder:
        result = run_chaos(
            Path(folder),
            seconds=60 * arguments.minutes,
            n_ranks=9,
            spares=4,
            interval=arguments.interval,
            seed=arguments.seed,
            trial_seconds=1.0,
            stop_one=True,
        )
        print("\n".join(report(result)))
        good = result.state == "finished" and agrees(result) and not result.ran_again
        if not good:
            print((Path(folder) / "output.txt").read_text()[-3000:])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
