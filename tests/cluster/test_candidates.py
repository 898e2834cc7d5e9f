"""Candidates that are known already, that set fields of the job, that continue others, and simulated budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cluster.simulation import Simulation, make_job, simulate

from nord_hpc.cluster import trial_maker
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.transport_simulated import Faults
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.job import Job

HARSH = Faults(rank_lost=0.08, gang_broken=0.1, hang=0.03, crash=0.05, slowdown_sigma=0.8)
TINY_SPACE = {"name": "conv_graph", "max_layers": 2, "channels": [4], "kernels": [3]}
PLUGIN = Path(__file__).with_name("climbing_strategy.py")


def reusing(mode: str = "virtual", **changes: Any) -> Job:
    return make_job(
        space=TINY_SPACE,
        strategy={"name": "random_search"},
        candidates={"duplicates": "reuse"},
        budget={"trials": 60},
        order={"mode": mode, "virtual_gangs": 5},
        **changes,
    )


def check_reuse(result: Simulation) -> int:
    """Every kind of trial is evaluated once, and the others take that outcome over; returns how many did."""
    entries = result.history.entries
    kinds: dict[str, int] = {}
    reused = 0
    for number, entry in sorted(entries.items()):
        trial, outcome = entry.trial, entry.outcome
        if trial.infeasible is not None:
            continue
        first = kinds.setdefault(trial.descriptor_hash, number)
        assert trial.reuses == (None if first == number else first)
        assert outcome is not None
        if trial.reuses is not None:
            twin = entries[first].outcome
            assert twin is not None
            assert (outcome.state, outcome.fitness, outcome.seconds) == (twin.state, twin.fitness, 0.0)
            assert outcome.provenance["reused_from"] == first
            assert result.history.commit_order.index(first) < result.history.commit_order.index(number)
            reused += 1
    return reused


def test_equal_candidates_are_evaluated_once_whatever_happens() -> None:
    undisturbed = simulate(reusing(), seed=1, n_workers=4)
    assert check_reuse(undisturbed) > 20
    for seed in range(12):
        disturbed = simulate(reusing(), seed=seed, n_workers=3 + seed % 5, faults=HARSH)
        check_reuse(disturbed)
        assert disturbed.history.history_sha256 == undisturbed.history.history_sha256


def test_equal_candidates_in_arrival_order() -> None:
    for seed in range(10):
        assert check_reuse(simulate(reusing("arrival"), seed=seed, n_workers=4, faults=HARSH)) > 10


def test_without_reuse_each_is_evaluated_with_its_own_seed() -> None:
    job = reusing().model_copy(update={"candidates": make_job().candidates})
    result = simulate(job, seed=1, n_workers=4)
    trials = [entry.trial for entry in result.history.entries.values() if entry.trial.infeasible is None]
    assert all(trial.runs for trial in trials) and len({trial.seed for trial in trials}) == len(trials) == 60


def first_candidates() -> list[FirstCandidate]:
    """Two results of another run, and one candidate without."""
    donor = simulate(make_job(seed=99), seed=1, n_workers=2).history
    good = [entry for entry in donor.entries.values() if entry.state == "completed"][:3]
    told = [FirstCandidate(e.trial.genotype, f"donor, trial {e.trial.number}", e.outcome) for e in good[:2]]
    return [*told, FirstCandidate(good[2].trial.genotype, "mine.json")]


@pytest.mark.parametrize("mode", ["virtual", "arrival"])
def test_first_candidates_come_before_the_strategys_own(mode: str) -> None:
    first = first_candidates()
    job = make_job(order={"mode": mode, "virtual_gangs": 5})
    result = simulate(job, seed=5, n_workers=4, first=first)
    entries = result.history.entries
    assert [entries[n].trial.genotype for n in range(3)] == [candidate.genotype for candidate in first]
    assert [entries[n].trial.imported for n in range(3)] == [first[0].source, first[1].source, None]
    assert entries[0].outcome is not None and first[0].outcome is not None
    assert entries[0].outcome.fitness == first[0].outcome.fitness
    assert not entries[0].attempts and not entries[1].attempts and len(entries[2].attempts) == 1
    # The imported ones do not count, and are parents like all others.
    assert len([e for e in entries.values() if e.trial.infeasible is None]) == 24 + 2
    alone = simulate(job, seed=5, n_workers=4)
    assert alone.history.history_sha256 != result.history.history_sha256


def test_first_candidates_survive_faults() -> None:
    first = first_candidates()
    undisturbed = simulate(make_job(), seed=0, n_workers=4, first=first).history.history_sha256
    for seed in range(20):
        again = simulate(make_job(), seed=seed, n_workers=2 + seed % 6, first=first, faults=HARSH)
        assert again.history.history_sha256 == undisturbed


@pytest.mark.parametrize("virtual_gangs", [1, 5])
def test_a_simulated_span_ends_the_search(virtual_gangs: int) -> None:
    order = {"virtual_gangs": virtual_gangs, "run_ahead": 3}
    job = make_job(budget={"simulated_seconds": 1200.0}, order=order)
    undisturbed = simulate(job, seed=0, n_workers=4)
    trials = [entry.trial for entry in undisturbed.history.entries.values()]
    assert max(trial.virtual_finish for trial in trials) <= 1200e6
    spent = sum(trial.cost for trial in trials)
    assert 0.75 * virtual_gangs * 1200e6 < spent <= virtual_gangs * 1200e6
    for seed in range(4):
        disturbed = simulate(job, seed=seed, n_workers=1 + seed % 6, faults=HARSH)
        assert disturbed.history.history_sha256 == undisturbed.history.history_sha256


def test_a_simulated_sum_ends_the_search() -> None:
    job = make_job(budget={"simulated_seconds": 1200.0, "simulated": "sum"})
    trials = [entry.trial for entry in simulate(job, seed=0, n_workers=4).history.entries.values()]
    assert 900e6 < sum(trial.cost for trial in trials) <= 1200e6


def test_a_longer_simulated_search_begins_like_the_shorter() -> None:
    orders = []
    for seconds in (900.0, 1800.0):
        job = make_job(budget={"simulated_seconds": seconds}, order={"virtual_gangs": 1})
        history = simulate(job, seed=0, n_workers=2).history
        orders.append([(n, history.entries[n].trial.descriptor_hash) for n in history.commit_order])
    assert orders[1][: len(orders[0])] == orders[0] and len(orders[1]) > len(orders[0])


def test_a_simulated_budget_needs_virtual_order() -> None:
    with pytest.raises(BadInput, match=r"simulated_seconds is time of the virtual order; set order\.mode to virtual"):
        make_job(budget={"simulated_seconds": 10.0}, order={"mode": "arrival"})


def test_trials_that_continue_others_have_their_seed_and_cost_the_difference() -> None:
    job = make_job(strategy={"name": f"{PLUGIN}:Climbing"}, training={"epochs": 9}, budget={"trials": 30})
    undisturbed = simulate(job, seed=0, n_workers=4)
    entries = undisturbed.history.entries
    continued = [entry.trial for entry in entries.values() if entry.trial.continues is not None]
    assert len(continued) >= 6
    for trial in continued:
        base = entries[trial.continues or 0].trial
        assert trial.seed == base.seed and trial.genotype == base.genotype and base.keeps_state
        assert (trial.fidelity.epochs, base.fidelity.epochs) == (9, 3)
        assert trial.cost == pytest.approx(2 * base.cost, rel=1e-5) and not trial.keeps_state
    for seed in range(6):
        disturbed = simulate(job, seed=seed, n_workers=2 + seed % 5, faults=HARSH)
        assert disturbed.history.history_sha256 == undisturbed.history.history_sha256


def test_candidates_set_fields_of_the_job() -> None:
    job = make_job(resources={"shards": 2, "gang": 2}, training={"batch_size": 64})
    changed = job.with_settings({"training.optimizer.lr": 0.5, "training.batch_size": 32, "own": 3})
    assert (changed.training.optimizer.lr, changed.training.batch_size, changed.resources.gang) == (0.5, 32, 2)
    assert job.with_settings({"resources.gang": 1}).resources.shards == 2
    assert job.with_settings({"resources.gang": 4}).resources.shards == 4
    with pytest.raises(Infeasible, match=r"its settings do not go together: training.batch_size 63 is not divisible"):
        job.with_settings({"training.batch_size": 63})
    with pytest.raises(Infeasible, match=r"a candidate sets budget.trials: only training"):
        job.with_settings({"budget.trials": 3})
    with pytest.raises(Infeasible, match=r"training.optimiser: is not a known key"):
        job.with_settings({"training.optimiser.lr": 0.1})


def test_heavy_trials_get_larger_gangs() -> None:
    """The gang is a function of the trial and the job, and so is the history; whatever the ranks, they are packed."""
    resources = {"shards": 4, "gang": "auto", "max_gang": 4, "gang_seconds": 40.0}
    job = make_job(resources=resources, evaluator={"name": "synthetic", "seconds": 60.0, "sigma": 1.2})
    results = [simulate(job, seed=n, n_workers=n) for n in (1, 3, 4, 9)]
    assert len({result.history.history_sha256 for result in results}) == 1
    seen = set()
    for entry in results[-1].history.entries.values():
        if entry.trial.infeasible is None:
            seconds = entry.trial.cost / 1e6
            assert entry.trial.gang == (1 if seconds <= 40 else 2 if seconds <= 80 else 4)
            assert entry.attempts[-1].ranks and len(entry.attempts[-1].ranks) == entry.trial.gang
            seen.add(entry.trial.gang)
    assert seen == {1, 2, 4}


def test_auto_gangs_are_checked_against_the_shards() -> None:
    with pytest.raises(BadInput, match=r"max_gang 3 does not divide shards 4; set max_gang to one of 1, 2, 4"):
        make_job(resources={"shards": 4, "gang": "auto", "max_gang": 3})
    assert make_job(resources={"shards": 4, "gang": "auto"}).resources.largest_gang == 4


def test_a_descriptor_that_no_message_can_hold_is_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_maker, "MANY_LAYERS", 7)
    monkeypatch.setattr(trial_maker, "LARGEST_DESCRIPTOR", 1200)
    entries = simulate(make_job(), seed=0, n_workers=2).history.entries.values()
    reasons = [entry.trial.infeasible for entry in entries if entry.trial.infeasible is not None]
    large = [reason for reason in reasons if "more than the limit of 1,200" in reason]
    assert large and len(large) < len(entries)
    for entry in entries:
        if entry.trial.infeasible is None:
            n_layers, n_bytes = len(entry.trial.descriptor["layers"]), len(json.dumps(entry.trial.descriptor))
            assert n_layers < 7 or n_bytes <= 1200
