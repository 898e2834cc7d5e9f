"""The coordinator under seeded delays, losses, hangs and crashes: the history is the one of an undisturbed search."""

from __future__ import annotations

import pytest
from cluster import schedules
from cluster.simulation import Circumstances, make_job, search, simulate

from nord_hpc.cluster.transport_simulated import Faults
from nord_hpc.errors import BadInput

SCHEDULES, BLOCKS = 500, 10


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return simulate(make_job(), seed=0, n_workers=1).history.history_sha256


@pytest.mark.parametrize("n_workers", [1, 2, 3, 5, 16])
def test_history_does_not_depend_on_the_workers(undisturbed: str, n_workers: int) -> None:
    assert simulate(make_job(), seed=n_workers, n_workers=n_workers).history.history_sha256 == undisturbed


def test_infeasible_candidates_take_a_number_but_no_part_of_the_budget() -> None:
    history = simulate(make_job(budget={"trials": 40}), seed=0, n_workers=3).history
    infeasible = [number for number, entry in history.entries.items() if entry.state == "infeasible"]
    assert infeasible and len(history.entries) == 40 + len(infeasible)
    for number in infeasible:
        entry = history.entries[number]
        assert entry.attempts == [] and entry.trial.virtual_finish == entry.trial.virtual_start + 1
        assert entry.outcome is not None and entry.outcome.reason == "this network is one of the ninth part"


def test_nothing_but_infeasible_candidates_ends_the_job() -> None:
    job = make_job(space={"name": "conv_graph", "max_layers": 2}, limits={"infeasible_in_a_row": 1})
    with pytest.raises(BadInput, match="1 candidates in a row are infeasible, the last because this network"):
        for seed in range(20):
            simulate(job.model_copy(update={"seed": seed}), seed=0, n_workers=1)


def test_another_seed_gives_another_history(undisturbed: str) -> None:
    assert simulate(make_job(seed=4), seed=0, n_workers=2).history.history_sha256 != undisturbed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_invariants_hold_in_random_schedules(block: int) -> None:
    """`SEED=n make simulate` replays one alone."""
    size = SCHEDULES // BLOCKS
    lives = takeovers = 0
    for number in range(block * size, (block + 1) * size):
        result = schedules.run(number)
        lives += result.lives
        takeovers += result.takeovers
    assert lives > 1.3 * size and takeovers > 0, "the faults did not bite"


def test_schedules_are_of_all_kinds_and_have_all_faults() -> None:
    chosen = [schedules.schedule(number) for number in range(SCHEDULES)]
    assert {schedule.kind for schedule in chosen} == set(schedules.JOBS)
    names = ("rank_lost", "gang_lost", "gang_broken", "hang", "mortal", "late", "resent", "crash")
    for name in names:
        assert sum(getattr(schedule.circumstances.faults, name) > 0 for schedule in chosen) > SCHEDULES / 5, name
    assert any(schedule.circumstances.n_spares for schedule in chosen)
    assert any(schedule.circumstances.stop for schedule in chosen)
    calm = [s for s in chosen if not any(getattr(s.circumstances.faults, name) for name in names)]
    assert len(calm) > SCHEDULES / 10


def test_a_schedule_replays_alone() -> None:
    first, second = schedules.run(18), schedules.run(18)
    assert first.lives == second.lives > 1 and first.started == second.started
    assert first.seconds == second.seconds


def test_a_master_that_takes_over_goes_on_with_what_runs() -> None:
    """Attempts of the master before are finished under its successor, and nothing that runs is begun again."""
    kind = "evolution"
    adopted = begun = 0
    for seed in range(30):
        circumstances = Circumstances(8, faults=Faults(crash=0.03), take_over=1.0)
        lines = schedules.undisturbed(kind)
        assert lines is not None
        result = search(schedules.job_of(kind), circumstances, seed=seed, reference=list(lines))
        for entry in result.history.entries.values():
            for attempt in entry.attempts:
                finished = [life for life in result.history.lives if life.began_at <= (attempt.finished_at or 0.0)]
                adopted += attempt.finished_at is not None and len(finished) > attempt.life + 1
                begun += 1
    assert adopted > 30 and begun < 1.3 * 30 * 24


def test_an_hours_budget_gives_the_beginning_of_the_longer_history() -> None:
    lines = schedules.undisturbed("hours")
    assert lines is not None
    for seed in range(10):
        result = search(schedules.job_of("hours"), Circumstances(4), seed=seed, reference=list(lines))
        [life] = result.history.lives
        assert life.reason == "the hours budget is used up"
        assert tuple(result.lines) == lines[: len(result.lines)] and 3 < len(result.lines) < len(lines)


def test_crashes_repeat_only_what_was_not_acknowledged() -> None:
    result = simulate(make_job(), seed=5, n_workers=4, faults=Faults(crash=0.05))
    assert result.lives > 1
    assert set(result.started) == {n for n, entry in result.history.entries.items() if entry.attempts}
    for number in set(result.started):
        entry = result.history.entries[number]
        assert len({(a.life, a.number) for a in entry.attempts}) == len(entry.attempts)
        assert entry.attempts[-1].finished_at is not None
        assert all(attempt.finished_at is None for attempt in entry.attempts[:-1])


def test_a_candidate_that_loses_its_ranks_is_given_up_after_its_attempts() -> None:
    job = make_job(limits={"attempts": 2}, budget={"trials": 6})
    result = simulate(job, seed=1, n_workers=2, faults=Faults(gang_broken=1.0))
    for entry in result.history.entries.values():
        if entry.state == "infeasible":
            continue
        assert entry.state == "failed"
        assert entry.outcome is not None and entry.outcome.failure is not None
        assert entry.outcome.failure.value == "lost"
        assert "given up after 2 attempts (limits.attempts)" in (entry.outcome.reason or "")
        assert len(entry.attempts) == 2
    assert len(result.history.not_repeatable) == 6


def test_arrival_order_replays_what_was_recorded() -> None:
    """Each life of an arrival-order search must come to the recorded state again; `check_invariants` compares."""
    job = make_job(order={"mode": "arrival"})
    lives = [simulate(job, seed=s, n_workers=4, faults=Faults(crash=0.04, rank_lost=0.02)).lives for s in range(20)]
    assert max(lives) > 2


def test_random_search_runs_ahead_of_its_results() -> None:
    """Proposals that depend on no result are made early, up to run_ahead beyond the virtual gangs."""
    few = make_job(strategy={"name": "random_search"}, order={"virtual_gangs": 2, "run_ahead": 0})
    many = make_job(strategy={"name": "random_search"}, order={"virtual_gangs": 2, "run_ahead": 14})
    slow = simulate(few, seed=0, n_workers=32)
    fast = simulate(many, seed=0, n_workers=32)
    assert fast.history.history_sha256 == slow.history.history_sha256
    assert fast.seconds < 0.5 * slow.seconds


def test_short_trials_wait_at_busy_ranks_and_are_not_charged_for_its_death() -> None:
    """Trials of a few milliseconds are sent in advance; when their rank dies, only the one in evaluation is charged."""
    job = make_job(
        evaluator={"name": "synthetic", "seconds": 0.002},
        resources={"shards": 1, "gang": 1},
        order={"virtual_gangs": 24},
        strategy={"name": "random_search"},
        budget={"trials": 60},
        limits={"attempts": 2},
    )
    calm = simulate(job, seed=0, n_workers=2)
    assert simulate(job, seed=1, n_workers=1).history.history_sha256 == calm.history.history_sha256
    for seed in range(30):
        result = simulate(job, seed=seed, n_workers=6, faults=Faults(rank_lost=0.04, crash=0.01))
        lost = {number for number, entry in result.history.entries.items() if entry.n_lost >= 2}
        failed = {number for number, entry in result.history.entries.items() if entry.state == "failed"}
        assert lost <= failed
        if not lost:
            assert result.history.history_sha256 == calm.history.history_sha256


def test_idle_time_is_charged_to_the_trial_that_is_waited_for() -> None:
    waiting = simulate(make_job(order={"virtual_gangs": 2, "run_ahead": 0}), seed=0, n_workers=8).history
    [life] = waiting.lives
    assert life.stall_seconds > 0.2 * 8 * (life.last_at - life.began_at)
    assert life.stalled_most_by in waiting.entries
    busy = simulate(make_job(order={"virtual_gangs": 12}), seed=0, n_workers=2).history.lives[0]
    assert busy.stall_seconds < 0.02 * 2 * (busy.last_at - busy.began_at)
