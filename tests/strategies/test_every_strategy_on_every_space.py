"""Every strategy on every space it fits: one history through kills and on any number of gangs, and it always ends."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from conformance.spaces_of_strategies import (
    FEW_POINTS,
    SINGLE_POINTS,
    mixed,
    names,
    nothing_is_finite,
    nothing_works,
    refusal,
    run_search,
    search_job,
    space_sections,
)

from nord_hpc import job as jobs

each_strategy = pytest.mark.parametrize("strategy", names("strategy"))


def fitting_jobs(strategy: str, sections: list[dict[str, Any]], *, trials: int) -> list[Any]:
    """A job for each of the spaces that the strategy takes."""
    found, refusals = [], []
    for section in sections:
        job = search_job(strategy, section, trials=trials)
        reason = refusal(job)
        if reason is None:
            found.append(job)
        elif "pip install" in reason:
            pytest.skip(reason)
        else:
            # A refusal names the class of the space, so that people know what to change.
            assert strategy in reason and len(reason) > 40, reason
            refusals.append(reason)
    return found


def check_one_history(strategy: str, *, trials: int) -> None:
    fitting = fitting_jobs(strategy, space_sections(), trials=trials)
    assert fitting, f"{strategy} fits no space that is registered"
    for job in fitting:
        space = job.space.name
        alone = run_search(job, n_gangs=1)
        killed = run_search(job, n_gangs=8, kill_at=(trials // 3, trials // 2))
        assert killed.lives == 3, space
        assert killed.lines() == alone.lines(), f"{strategy} on {space} depends on gangs or kills"
        assert killed.history.history_sha256 == alone.history.history_sha256, space
        states = Counter(entry.state for entry in alone.history.entries.values())
        assert states["completed"] > trials // 2 and states["failed"], space


@each_strategy
def test_one_history_on_1_and_8_gangs_through_kills(strategy: str) -> None:
    check_one_history(strategy, trials=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_strategy
def test_one_history_of_200_trials_on_1_and_8_gangs_through_kills(strategy: str) -> None:
    check_one_history(strategy, trials=200)


@each_strategy
@pytest.mark.parametrize("outcome", [nothing_is_finite, nothing_works], ids=["nan", "failed"])
def test_searches_end_where_nothing_completes(strategy: str, outcome: Any) -> None:
    for job in fitting_jobs(strategy, space_sections(), trials=16):
        search = run_search(job, n_gangs=3, outcome=outcome)
        states = Counter(entry.state for entry in search.history.entries.values())
        assert not states["completed"]
        assert states["failed"] == 16, job.space.name
        assert all(entry.trial.parents == () for entry in search.history.entries.values())


@each_strategy
@pytest.mark.parametrize("table", [SINGLE_POINTS, FEW_POINTS], ids=["one point", "few points"])
def test_searches_end_where_the_space_is_exhausted(strategy: str, table: dict[str, Any]) -> None:
    """Every trial of the budget is made, some points several times, or the strategy is done when it has seen them."""
    fitting = fitting_jobs(strategy, space_sections(table), trials=24)
    if not fitting:
        pytest.skip(f"{strategy} fits none of the small spaces")
    for job in fitting:
        search = run_search(job, n_gangs=3, outcome=mixed)
        entries = search.history.entries.values()
        seen = {json.dumps(entry.trial.genotype, sort_keys=True) for entry in entries}
        cls, options = jobs.options_of("space", job.space, folder=job.folder)
        size = cls(options).size()
        assert len(seen) <= size
        n_counted = sum(entry.trial.infeasible is None for entry in entries)
        assert n_counted == 24 or len(seen) == size, f"{strategy} on {job.space.name} ended early"
