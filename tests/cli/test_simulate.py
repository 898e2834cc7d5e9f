"""`nord-hpc simulate`: utilization on many gangs, found on a virtual clock; packing of gangs of several sizes."""

from __future__ import annotations

import heapq
import json
import random
from pathlib import Path
from typing import Any

import pytest
from cluster.light_parts import FILE
from typer.testing import CliRunner

from nord_hpc import job as jobs
from nord_hpc.cli import app, simulate
from nord_hpc.cli.simulate import Seconds, Simulated, run_simulation
from nord_hpc.errors import BadInput

JOB: dict[str, Any] = {
    "name": "planned",
    "space": {"name": f"{FILE}:LightSpace", "points": 10**9},
    "strategy": {"name": "random_search"},
    "evaluator": {"name": f"{FILE}:LightEvaluator", "infeasible": False, "sigma": 0.0},
    "training": {"epochs": 1},
    "budget": {"trials": 2000},
    "order": {"virtual_gangs": 96},
}


def planned(
    gangs: int = 64, *, error: float = 0.15, seconds: str | None = "lognormal:60:0.8", **changes: Any
) -> Simulated:
    job = jobs.from_mapping({**JOB, **changes}, folder=Path())
    parsed = None if seconds is None else Seconds.parse(seconds)
    return run_simulation(job, n_ranks=gangs, seconds=parsed, prediction_error=error)


def test_one_gang_is_always_busy() -> None:
    found = planned(1, budget={"trials": 50}, order={"virtual_gangs": 2})
    assert found.utilization == pytest.approx(1.0, abs=0.01)
    assert found.hours == pytest.approx(50 * found.seconds_per_trial / 3600, rel=0.01)
    assert found.trials == 50 and found.stall < 0.01


def test_virtual_order_needs_more_virtual_gangs_than_gangs() -> None:
    """At 1.5 times the gangs, virtual order keeps 98% of arrival order's utilization, and far less at 1.0."""
    evolution = {"name": "regularized_evolution", "population": 50, "sample": 10}
    free = planned(strategy=evolution, order={"mode": "arrival"}).utilization_before_drain
    wide = planned(strategy=evolution, order={"virtual_gangs": 96}).utilization_before_drain
    narrow = planned(strategy=evolution, order={"virtual_gangs": 64, "run_ahead": 0})
    assert free > 0.99 and wide > 0.97 * free
    assert narrow.utilization_before_drain < 0.9 * free and narrow.stall > 0.1


def test_a_master_feeds_as_many_gangs_as_trials_are_longer_than_its_work() -> None:
    found = planned(budget={"trials": 300})
    assert found.gangs_fed == pytest.approx(found.seconds_per_trial / found.master_seconds_per_trial)
    assert 0 < found.master_seconds_per_trial < 0.02


def fixed_gangs(found_gangs: int, sizes: list[int], seconds: list[float]) -> float:
    """Utilization of gangs of four ranks for ever, of which a trial uses as many ranks as it wants."""
    free = [0.0] * found_gangs
    for duration in seconds:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return sum(s * n for s, n in zip(seconds, sizes, strict=True)) / (max(free) * found_gangs * 4)


def test_gangs_that_are_formed_anew_pack_as_well_as_fixed_ones_and_mixed_ones_better() -> None:
    """64 ranks: trials of four ranks each, and then of one, two and four."""
    four = {"shards": 4, "gang": 4}
    uniform = planned(64, resources=four, order={"virtual_gangs": 32}, budget={"trials": 1000}, error=0.0)
    rng = random.Random(1)
    drawn = [Seconds.parse("lognormal:60:0.8").draw(rng) for _ in range(1000)]
    assert uniform.utilization > fixed_gangs(16, [4] * 1000, drawn) - 0.02
    assert uniform.utilization_before_drain > 0.98

    gangs = (1, 1, 1, 2, 2, 4)
    space = {**JOB["space"], "gangs": list(gangs)}
    evaluator = {**JOB["evaluator"], "sigma": 0.6}
    mixed = planned(
        64, space=space, evaluator=evaluator, seconds=None, order={"virtual_gangs": 96}, budget={"trials": 1000}
    )
    sizes = [gangs[index % 6] for index in range(1000)]
    rng.shuffle(sizes)
    assert mixed.utilization_before_drain > 0.95
    assert mixed.utilization > fixed_gangs(16, sizes, drawn) + 0.2


def test_a_large_gang_waits_for_a_few_trials_alone_while_small_ones_go_on() -> None:
    """Eight ranks, one trial in thirty wants all: it begins within the time of the longest trials."""
    space = {**JOB["space"], "gangs": [1] * 29 + [8]}
    job = jobs.from_mapping(
        {**JOB, "space": space, "budget": {"trials": 900}, "order": {"virtual_gangs": 450}}, folder=Path()
    )

    kept: list[Any] = []
    original = simulate._measured
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_measured", lambda j, e, **k: (kept.extend(e), original(j, e, **k))[1])
        run_simulation(job, n_ranks=8, seconds=Seconds.parse("uniform:40:80"), prediction_error=0.3)
    longest = max(e.ends - e.begins for e in kept)
    ordered = sorted(kept, key=lambda e: (e.task.trial.virtual_finish, e.task.trial.number))
    large = [index for index, e in enumerate(ordered) if len(e.task.ranks) == 8]
    assert len(large) > 8
    for index in large:
        before = max((e.begins for e in ordered[:index]), default=0.0)
        assert ordered[index].begins - before < 3 * longest


@pytest.mark.parametrize("text", ["lognormal:60", "lognormal:0:1", "uniform:5:1", "often", "normal:1:2", "-3", "60:x"])
def test_unknown_times_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"--seconds-per-trial .*: set a number of seconds, lognormal:MEAN:SIGMA, or"):
        Seconds.parse(text)


def test_times_are_drawn_as_they_are_named() -> None:
    rng = random.Random(0)
    lognormal = [Seconds.parse("lognormal:60:0.8").draw(rng) for _ in range(20_000)]
    assert sum(lognormal) / len(lognormal) == pytest.approx(60.0, rel=0.03)
    assert all(1.0 <= Seconds.parse("uniform:1:3").draw(rng) <= 3.0 for _ in range(100))
    assert Seconds.parse("45").draw(rng) == 45.0


def test_the_command_shows_both_orders_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(JOB))
    arguments = ["simulate", str(path), "--gangs", "16", "--trials", "200", "--seconds-per-trial", "lognormal:60:0.8"]
    shown = CliRunner().invoke(app.app, arguments)
    assert shown.exit_code == 0, shown.output
    for text in ("16 gangs, 24 virtual ones", "virtual order", "arrival order", "gangs one master feeds", "drain"):
        assert text in shown.output
    found = json.loads(CliRunner().invoke(app.app, [*arguments, "--json"]).output)
    assert found["virtual_gangs"] == 24
    assert [one["order"] for one in found["orders"]] == ["virtual", "arrival"]
    assert all(one["trials"] == 200 and 0.5 < one["utilization"] <= 1.0 for one in found["orders"])
