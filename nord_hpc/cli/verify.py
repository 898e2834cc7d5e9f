"""The command `nord-hpc verify`: whether a run folder's history is what its job gives, replayed and partly retrained.

How a replay works is left to the scheduler, whose resume is the same thing.
"""

from __future__ import annotations

import json
import math
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nord_hpc import seeding
from nord_hpc.cli import wiring
from nord_hpc.cli.machine import fingerprint
from nord_hpc.cluster import first_candidates, launch, parts, worker
from nord_hpc.cluster.messages import Task
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_inline import InlineGang
from nord_hpc.errors import BadInput, NordError, StoreError
from nord_hpc.interfaces import Evaluator
from nord_hpc.job import Job
from nord_hpc.logs import log_to_stderr
from nord_hpc.store import snapshot
from nord_hpc.store.history import Entry, History
from nord_hpc.store.run_folder import RunFolder, changed_fields
from nord_hpc.trial import FinishedTrial, HistoryDigest, Json, Outcome

AGREE, DIFFER = "agree", "differ"
UNREPEATED = ("latency_ms",)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        agrees: None where it could not be checked here.
        text: what was found, for people.
    """

    name: str
    agrees: bool | None
    text: str


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A search's run folder.")],
    retrain: Annotated[int, typer.Option("--retrain", min=0, help="Trials that are evaluated again.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Picks these trials.")] = 0,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="HEX", help="The history's digest as published.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log more to standard error.")] = 0,
) -> int:
    """Check a run: replay its strategy, recompute its digest, train some trials again. Exit code 1 if anything differs.

    The run's own plug-in files are imported and run.
    """
    log_to_stderr(verbose=verbose)
    launch.check_world(1, {})
    source = RunFolder.open(folder)
    console = Console()

    def show(check: Check) -> None:
        if not as_json:
            word = {True: AGREE, False: DIFFER, None: "-"}[check.agrees]
            console.print(f"{check.name:<12} {word:<7} {check.text}", highlight=False, markup=False, soft_wrap=True)

    checks = run_checks(source, n_retrained=retrain, seed=seed, digest=digest, on_check=show)
    agrees = all(check.agrees is not False for check in checks)
    if as_json:
        record = {"verdict": AGREE if agrees else DIFFER, "checks": [asdict(check) for check in checks]}
        print(json.dumps(record, indent=2, allow_nan=False))
    else:
        console.print(AGREE if agrees else DIFFER, highlight=False)
    return wiring.DONE if agrees else wiring.FAILED


def run_checks(
    source: RunFolder,
    *,
    n_retrained: int = 0,
    seed: int = 0,
    digest: str | None = None,
    on_check: Callable[[Check], None] = lambda check: None,
) -> list[Check]:
    """All checks of a run folder, in order; nothing in it is changed.

    Raises:
        BadInput: there is nothing to check, or no trial that could be trained again.
    """
    job, history = source.job(), source.history()
    if not history.commit_order:
        raise BadInput(f"{source.path}: no trial has been committed, so there is nothing to verify")
    picked = _picked(source, history, job, n_retrained, seed=seed)
    checks: list[Check] = []

    def note(check: Check | None) -> None:
        if check is not None:
            checks.append(check)
            on_check(check)

    note(_job_check(source, history, job))
    note(_digest_check(source, history, digest))
    with tempfile.TemporaryDirectory(prefix="nord_hpc-verify-") as scratch:
        evaluator = parts.make_evaluator(job, Path(scratch))
        note(_data_check(source, evaluator))
        note(_replay_check(source, history, job, evaluator))
        note(_machine_check(history, job, relevant=bool(picked)))
        for entry in picked:
            note(_retrain_check(entry, job, evaluator, history))
    if n_retrained:
        note(_test_check(source, history, job))
    return checks


def _job_check(source: RunFolder, history: History, job: Job) -> Check:
    """The job and the plug-in files as they are now against those that the search began with."""
    first = history.lives[0]
    changed = changed_fields(first.job, job.to_json())
    changed += [f"code/{name}" for name in changed_fields(first.code, source.code_digests())]
    if changed:
        return Check("job", False, f"{', '.join(changed)} changed since the search began")
    n_files = len(first.code)
    return Check("job", True, f"{job.name}, seed {job.seed}, and {n_files} plug-in file{'s' * (n_files != 1)}")


def _digest_check(source: RunFolder, history: History, digest: str | None) -> Check:
    """The digest recomputed from the records, against the published one, or that of the snapshot."""
    found, n = history.history_sha256, len(history.commit_order)
    if digest is not None:
        if found == digest.strip().lower():
            return Check("digest", True, f"{found} over {n} trials, as given")
        return Check("digest", False, f"{found} over {n} trials; given was {digest}")
    recorded, n_recorded = snapshot.recorded_digest(source.snapshot_file) or (None, 0)
    if recorded is None or n_recorded != n:
        return Check("digest", None, f"{found} over {n} trials; no snapshot of these to compare with: give --digest")
    text = f"{found} over {n} trials"
    return Check("digest", found == recorded, text if found == recorded else f"{text}; the snapshot has {recorded}")


def _data_check(source: RunFolder, evaluator: Evaluator) -> Check | None:
    """The fingerprint of the data here against that of the data then; None where there are no data."""
    if not hasattr(evaluator, "data") or not source.dataset_file.is_file():
        return None
    then = json.loads(source.dataset_file.read_text(encoding="utf-8"))
    now = evaluator.data()
    same = then["fingerprint"] == now["fingerprint"]
    text = f"{now['name']}, fingerprint {now['fingerprint'][:16]}"
    return Check("data", same, text if same else f"{text}; the search had {then['fingerprint'][:16]}")


def _replay_check(source: RunFolder, history: History, job: Job, evaluator: Evaluator) -> Check:
    """The strategy, asked and told again with the recorded fitness, proposes and commits the same."""
    n = len(history.commit_order)
    try:
        strategy, maker = parts.make_maker(job, evaluator)
        first = first_candidates.load(source.first_candidates_file)
        scheduler = make_scheduler(job, strategy=strategy, maker=maker, first=first)
        _, steps = scheduler.restore(history, None)
    except (NordError, ValueError) as error:
        return Check("replay", False, str(error))
    told = [step for step in steps if isinstance(step, FinishedTrial)][:n]
    order = [step.trial.number for step in told]
    if order != history.commit_order:
        pairs = zip([*order, None], history.commit_order, strict=False)
        place = next((place for place, (now, then) in enumerate(pairs) if now != then), n)
        return Check("replay", False, f"commit {place} is of another trial than recorded, or missing")
    digest = HistoryDigest()
    for step in told:
        digest.add(step.trial, step.outcome)
    if digest.hexdigest() != history.history_sha256:
        return Check("replay", False, f"gives the digest {digest.hexdigest()}")
    return Check(
        "replay", True, f"{job.strategy.name} proposes the same {len(history.entries)} trials, told in the same order"
    )


def _machine_check(history: History, job: Job, *, relevant: bool) -> Check | None:
    """Whether bits can be expected to agree here; None where it does not matter."""
    if not relevant:
        return None
    here = fingerprint(job)
    others = [machine for machine in history.machines if machine != here]
    if not others:
        return Check("machine", True, "the numeric environment is the one of the search")
    names = sorted({name for machine in others for name in changed_fields(machine, here)})
    shown = ", ".join(f"{name} {others[0].get(name)} against {here.get(name)} here" for name in names)
    return Check(
        "machine",
        None,
        f"other than in the search ({shown}): bits may differ, as other instructions, threads or libraries add in "
        f"another order; so may fitness, in its last digits at first",
    )


def _picked(source: RunFolder, history: History, job: Job, n: int, *, seed: int) -> list[Entry]:
    """`n` trials that can be evaluated again in one process, drawn by the seed."""
    if n == 0:
        return []
    entries = [history.entries[number] for number in history.commit_order]
    evaluated = [e for e in entries if e.trial.runs and e.outcome is not None and e.outcome.fitness is not None]
    able = [entry for entry in evaluated if _repeats_alone(entry.outcome)]
    if len(able) < n:
        why = ""
        if len(able) < len(evaluated):
            why = "; others were trained by gangs with the fast reduction, which one process cannot repeat"
        raise BadInput(f"--retrain {n}: {source.path} has {len(able)} trials that can be trained again{why}; set less")
    drawn = seeding.generator(seed, "verify").permutation(len(able))[:n]
    return [able[place] for place in sorted(drawn)]


def _repeats_alone(outcome: Outcome | None) -> bool:
    """With the exact reduction the fitness does not depend on the ranks; with the fast one it does."""
    how = {} if outcome is None else outcome.provenance
    return bool(how.get("reduction", "exact") == "exact" or how.get("gang", 1) == 1)


def _retrain_check(entry: Entry, job: Job, evaluator: Evaluator, history: History) -> Check:
    """The trial, evaluated again in this process, has the same fitness and metrics."""
    trial, recorded = entry.trial, entry.outcome
    assert recorded is not None
    name = f"trial {trial.number}"
    task = Task(1, trial, attempt=1, ranks=(0,), limit_seconds=math.inf, keep_above=math.inf)
    control = worker.WorkerControl(math.inf, lambda: False)
    report = worker.evaluate(
        task,
        evaluator=evaluator,
        gang=InlineGang(wiring.Connector(job)),
        control=control,
        rank=0,
        host=socket.gethostname(),
    )
    if report.outcome is None:
        raise BadInput(report.bad_input or f"{name}: {report.broken}")
    again = report.outcome
    if again.fitness is None:
        return Check(name, False, f"fitness {recorded.fitness!r} recorded; now it fails: {again.reason}")
    why = _why(entry, job, history)
    if again.fitness != recorded.fitness:
        return Check(name, False, f"fitness {recorded.fitness!r} recorded, {again.fitness!r} now{why}")
    compared = [key for key in recorded.metrics if key not in UNREPEATED]
    other = [key for key in compared if again.metrics.get(key) != recorded.metrics[key]]
    if other:
        return Check(name, False, f"fitness {again.fitness!r} agrees, but not {', '.join(other)}{why}")
    return Check(name, True, f"fitness {again.fitness!r} and all its metrics, trained again in {again.seconds:.1f} s")


def _why(entry: Entry, job: Job, history: History) -> str:
    then = history.lives[entry.attempts[-1].life].machine if entry.attempts else None
    return "" if then == fingerprint(job) else " (other machine: see above)"


def _test_check(source: RunFolder, history: History, job: Job) -> Check | None:
    """The kept weights of the trial that was tested give the same on the test part; None where they are not kept."""
    test = history.test
    if test is None or not source.weights_file(test["number"]).is_file():
        return None
    evaluator: Any = parts.make_evaluator(job, source.weights)
    if not hasattr(evaluator, "trained_network"):
        return None
    trial = history.entries[test["number"]].trial
    try:
        evaluator.trained_network(trial)  # or the test would train it again and replace what is there
    except StoreError as error:
        return Check("test", False, str(error))
    now: dict[str, Json] = evaluator.test(trial, control=worker.WorkerControl(math.inf, lambda: False))
    metric = job.objective.metric
    other = [key for key, value in test["metrics"].items() if key != "retrained" and now.get(key) != value]
    text = f"{metric} {now.get(metric)!r} of trial {trial.number} from its kept weights"
    return Check("test", not other, text if not other else f"{text}; recorded was {test['metrics'].get(metric)!r}")
