"""Killed at any moment and resumed: the history is the undisturbed one, and only unacknowledged trials run again."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from mpi.commands import (
    DIGITS,
    NORD,
    SYNTHETIC,
    kill_tree,
    n_finished,
    needs_mpirun,
    nord,
    start,
    status,
    trials,
    wait_for,
    write_job,
)

from nord_hpc.store.run_folder import RunFolder

pytestmark = [pytest.mark.mpi, needs_mpirun]


def run_with_kills(job: Path, folder: Path, *, kills: int, ranks: int, rng: random.Random, longest: float) -> int:
    """Start a search, kill -9 its process group at random moments, resume it; returns the kills that hit a search."""
    command = [*NORD, "run", str(job), "--out", str(folder), "-n", str(ranks)]
    finished = hits = 0
    for _ in range(kills):
        process = start(command, cwd=folder.parent)
        try:
            process.wait(timeout=rng.uniform(0.3, longest))
        except subprocess.TimeoutExpired:
            hits += 1
        assert kill_tree(process) == []
        process.communicate()
        now = n_finished(folder)
        assert now >= finished, "an acknowledged trial was lost"
        finished = now
        if (folder / "job.yaml").exists():
            command = [*NORD, "resume", str(folder), "-n", str(ranks)]
    nord(*command[len(NORD) :], cwd=folder.parent, timeout=180)
    return hits


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 5])
def test_ten_kills_change_no_bit(tmp_path: Path, ranks: int) -> None:
    log = tmp_path / "evaluations.log"
    changes = {"budget": {"trials": 40 if ranks == 1 else 160}, "evaluator": {"seconds": 0.15, "log": str(log)}}
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, **changes)
    hits = run_with_kills(
        job, tmp_path / "killed", kills=10, ranks=ranks, rng=random.Random(ranks), longest=2.0 if ranks == 1 else 4.5
    )
    assert hits >= 5
    evaluated = Counter(int(line.split()[0]) for line in log.read_text().splitlines())
    history = RunFolder(tmp_path / "killed").history()
    for number, entry in history.entries.items():
        # The last attempt alone was acknowledged; an attempt that had not begun when the kill came left no line.
        assert 1 <= evaluated[number] <= len(entry.attempts), f"trial {number}"
        assert [attempt.finished_at is not None for attempt in entry.attempts].count(True) == 1
        assert entry.attempts[-1].finished_at is not None
    log.unlink()
    nord("run", job, "--out", tmp_path / "calm", cwd=tmp_path, timeout=60)
    assert status(tmp_path / "killed")["history_sha256"] == status(tmp_path / "calm")["history_sha256"]


@pytest.mark.slow
def test_five_kills_of_three_ranks_change_no_bit(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 30}, evaluator={"seconds": 0.15})
    assert run_with_kills(job, tmp_path / "killed", kills=5, ranks=3, rng=random.Random(9), longest=3.5) >= 3
    nord("run", job, "--out", tmp_path / "calm", cwd=tmp_path)
    assert status(tmp_path / "killed")["history_sha256"] == status(tmp_path / "calm")["history_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_ten_kills_while_training(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", DIGITS, budget={"trials": 16})
    run_with_kills(job, tmp_path / "killed", kills=10, ranks=5, rng=random.Random(0), longest=15.0)
    nord("run", job, "--out", tmp_path / "calm", cwd=tmp_path)
    killed, calm = status(tmp_path / "killed"), status(tmp_path / "calm")
    assert killed["history_sha256"] == calm["history_sha256"]
    assert killed["best"] == calm["best"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_thirty_kills_in_the_first_five_seconds(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 300}, evaluator={"seconds": 0.1})
    folder = tmp_path / "killed"
    run_with_kills(job, folder, kills=30, ranks=3, rng=random.Random(3), longest=5.0)
    assert status(folder)["trials"]["completed"] == 300
    left = [file.name for file in folder.iterdir() if file.name.startswith(".")]
    assert left == [], "temporary files are left"


def test_each_trial_has_one_final_state_and_a_second_resume_does_nothing(tmp_path: Path) -> None:
    """Budget 10, a population of 8, two workers; killed when three are done."""
    job = write_job(
        tmp_path / "job.yaml",
        SYNTHETIC,
        budget={"trials": 10},
        strategy={"population": 8},
        evaluator={"seconds": 0.5, "log": str(tmp_path / "log")},
        resources={"shards": 1, "gang": 1},
    )
    folder = tmp_path / "run"
    process = start([*NORD, "run", str(job), "--out", str(folder), "-n", "3"], cwd=tmp_path)
    wait_for(lambda: n_finished(folder) >= 3, timeout=40, what="third result")
    assert kill_tree(process) == []
    process.communicate()
    done = n_finished(folder)
    before = {row["number"]: row for row in trials(folder)}
    (tmp_path / "log").unlink()
    nord("resume", folder, "-n", "3", cwd=tmp_path)
    assert len((tmp_path / "log").read_text().splitlines()) == 10 - done
    after = trials(folder)
    assert [row["state"] for row in after] == ["completed"] * 10
    for row in after:
        if row["number"] in before:
            assert row["descriptor_hash"] == before[row["number"]]["descriptor_hash"]
            assert row["seed"] == before[row["number"]]["seed"]
    (tmp_path / "log").unlink()
    again = nord("resume", folder, "-n", "3", cwd=tmp_path)
    assert "the budget is used up already: 0 trials evaluated" in again.stdout
    assert not (tmp_path / "log").exists()


def test_a_larger_budget_goes_on_as_if_it_had_been_there_from_the_start(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    nord("run", job, "--out", tmp_path / "grown", cwd=tmp_path)
    nord("resume", tmp_path / "grown", "--set", "budget.trials=35", cwd=tmp_path)
    nord("run", job, "--out", tmp_path / "large", "--set", "budget.trials=35", cwd=tmp_path)
    grown, large = status(tmp_path / "grown"), status(tmp_path / "large")
    assert grown["trials"]["completed"] == 35
    assert sorted(row["number"] for row in trials(tmp_path / "grown")) == list(range(35))
    fitness = {row["number"]: row["fitness"] for row in trials(tmp_path / "large")}
    assert grown["best"]["fitness"] == max(row["fitness"] for row in trials(tmp_path / "grown"))
    assert {row["number"]: row["fitness"] for row in trials(tmp_path / "grown")} == fitness
    assert large["trials"] == grown["trials"]


def test_a_changed_job_is_refused_naming_the_field(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, budget={"trials": 5})
    nord("run", job, "--out", tmp_path / "run", cwd=tmp_path)
    before = (tmp_path / "run" / "job.yaml").read_text()
    refused = nord("resume", tmp_path / "run", "--set", "seed=9", "--set", "strategy.sample=2", cwd=tmp_path, expect=2)
    assert "seed, strategy.sample changed" in refused.stderr and "--accept-changes" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert (tmp_path / "run" / "job.yaml").read_text() == before
