"""NSGA-II: the conformance suite, ranks and rooms, generations and steady state, and fronts of a measured table."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.strategy_cost import early_and_late_seconds
from conformance.strategy_suite import FULL, SinglePoint, StrategySuite, ToySpace, finish
from latency_table import DEVICES, LatencyTable, data_is_missing
from pydantic import ValidationError

from nord_hpc.interfaces import Wait
from nord_hpc.strategies.nsga2 import NSGA2
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

LATENCY = {"metric": "latency_ms", "direction": "minimize"}
TWO: dict[str, Any] = {"objectives": [{"metric": "fitness"}, LATENCY]}


class TestNSGA2(StrategySuite):
    name = "nsga2"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "steady": {"population": 16, "crossover": 1.0, "mutation": 0.1, "memory": 40},
        "generations": {"population": 12, "generational": True, "distinct": False},
    }


def nsga2(space: Any = None, seed: int = 0, **options: Any) -> NSGA2:
    given = NSGA2.Options.model_validate({**TWO, **options})
    return NSGA2(given, space=space or ToySpace(), seed=seed, full_fidelity=FULL)


def measured(number: int, score: float, latency: Any, *, proposal: Proposal | None = None) -> FinishedTrial:
    finished = finish(proposal or Proposal([number]), number, TrialState.COMPLETED, score)
    return replace(finished, outcome=replace(finished.outcome, metrics={"latency_ms": latency}))


def members(strategy: NSGA2) -> list[list[int]]:
    """Trial numbers, front by front, those without all objectives last."""
    state = strategy.state_dict()
    fronts = [sorted(number for _, number, _ in front) for front in state["fronts"]]
    return [*fronts, *([[number for number, _ in state["unranked"]]] if state["unranked"] else [])]


def test_members_stand_in_fronts_of_fitness_and_latency() -> None:
    strategy = nsga2(population=6)
    for number, (score, latency) in enumerate([(0.9, 9.0), (0.5, 5.0), (0.8, 9.5), (0.4, 5.0), (0.3, 8.0)]):
        strategy.tell(measured(number, score, latency))
    assert members(strategy) == [[0, 1], [2, 3], [4]]
    strategy.tell(measured(5, 0.95, 4.0))  # dominates all
    assert members(strategy) == [[5], [0, 1], [2, 3], [4]]


def test_the_worst_of_the_last_front_with_least_room_leaves() -> None:
    strategy = nsga2(population=5)
    for number, (score, latency) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 3.0), (0.35, 3.5), (0.9, 9.0)]):
        strategy.tell(measured(number, score, latency))
    strategy.tell(measured(5, 0.5, 6.0))  # of the six, number 2 is closest to its neighbours
    assert members(strategy) == [[0, 1, 3, 4, 5]]
    strategy.tell(measured(6, 0.05, 7.0))  # dominated: it comes and goes
    assert members(strategy) == [[0, 1, 3, 4, 5]]


def test_of_equal_members_the_oldest_leaves() -> None:
    strategy = nsga2(population=5)
    for number, (score, latency) in enumerate([(0.1, 1.0), *[(0.5, 5.0)] * 4, (0.9, 9.0)]):
        strategy.tell(measured(number, score, latency))
    assert members(strategy) == [[0, 1, 3, 4, 5]], "2 and 3 have no room; 1 and 4 have some on one side"


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "fast", True])
def test_trials_without_an_objective_rank_last_and_are_named_once(missing: Any, caplog: Any) -> None:
    strategy = nsga2(population=3)
    with caplog.at_level(logging.WARNING):
        strategy.tell(measured(0, 0.99, missing))
        strategy.tell(measured(1, 0.98, missing))
        strategy.tell(measured(2, 0.1, 9.0))
    assert members(strategy) == [[2], [0, 1]]
    assert [record.getMessage() for record in caplog.records] == [
        "trial 0 has no finite latency_ms and ranks behind all that have; strategy.objectives names what the evaluator "
        "must measure"
    ]
    strategy.tell(measured(3, 0.1, 9.5))
    assert members(strategy) == [[2], [3], [1]]
    strategy.tell(measured(4, 0.05, 9.7))
    assert members(strategy) == [[2], [3], [4]]


def test_parents_are_the_better_of_two() -> None:
    strategy = nsga2(population=4, crossover=0.0, distinct=False)
    for number, (score, latency) in enumerate([(0.9, 1.0), (0.8, 2.0), (0.7, 3.0), (0.6, 4.0)]):
        strategy.tell(measured(number, score, latency, proposal=Proposal([0] * 12)))
    counts = np.zeros(4)
    for number in range(4, 4004):
        counts[strategy.ask(number).parents[0]] += 1  # type: ignore[union-attr]
    expected = np.array([7, 5, 3, 1]) / 16
    assert np.all(abs(counts / 4000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000))


def test_a_generation_waits_for_its_last_result_and_competes_with_its_parents() -> None:
    strategy = nsga2(population=3, generational=True)
    proposals: dict[int, Any] = {number: strategy.ask(number) for number in range(3)}
    for number in (2, 0):
        assert isinstance(strategy.ask(3), Wait)
        strategy.tell(measured(number, 0.5, 5.0, proposal=proposals[number]))
    strategy.tell(finish(proposals[1], 1, TrialState.FAILED, None))
    children: dict[int, Any] = {number: strategy.ask(number) for number in range(3, 6)}
    assert {parent for child in children.values() for parent in child.parents} <= {0, 2}
    assert members(strategy) == [[0, 2]]
    assert isinstance(strategy.ask(6), Wait)
    for number, score in ((3, 0.4), (4, 0.6), (5, 0.7)):
        strategy.tell(measured(number, score, 5.0, proposal=children[number]))
    assert members(strategy) == [[0, 2]], "children enter together"
    strategy.ask(6)
    assert members(strategy) == [[5], [4], [2]]


class FewPoints(SinglePoint):
    """Three points, each a mutation of the others."""

    def sample(self, rng: np.random.Generator) -> Any:
        return [int(3 * rng.random())]

    def mutate(self, genotype: Any, rng: np.random.Generator) -> Any:
        return self.sample(rng)


@pytest.mark.parametrize("generational", [False, True])
def test_no_point_comes_twice_while_there_are_others(generational: bool) -> None:
    strategy = nsga2(FewPoints(), population=2, generational=generational)
    seen = []
    for number in range(6):
        proposal: Any = strategy.ask(number)
        seen.append(proposal.genotype[0])
        strategy.tell(measured(number, 0.5, 1.0, proposal=proposal))
    assert sorted(seen[:3]) == [0, 1, 2]
    assert set(seen[3:]) <= {0, 1, 2}


def test_only_the_latest_points_are_remembered() -> None:
    strategy = nsga2(population=10, memory=25)
    for number in range(100):
        strategy.tell(measured(number, 0.5, 1.0, proposal=strategy.ask(number)))  # type: ignore[arg-type]
    assert len(strategy.state_dict()["seen"]) == 25 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": []}, "at least 1 item"),
        ({"objectives": [{"metric": "fitness", "direction": "minimize"}]}, "leave direction out here"),
        (
            {"objectives": [{"metric": "latency_ms"}]},
            "whether latency_ms is better large or small. set direction to maximize or minimize",
        ),
        ({"population": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NSGA2.Options.model_validate(options)


@pytest.mark.parametrize("generational", [False, True])
@pytest.mark.timing
def test_asks_and_tells_are_cheap_and_do_not_grow_with_the_trials_behind(generational: bool) -> None:
    strategy = nsga2(population=100, generational=generational)

    def two_objectives(proposal: Proposal, number: int) -> FinishedTrial:
        return measured(number, ToySpace.score(proposal.genotype), float(sum(proposal.genotype)), proposal=proposal)

    early, late = early_and_late_seconds(strategy, between=5_000, result=two_objectives)
    assert late < 100e-6
    assert late < 3 * early


def hypervolumes(table: LatencyTable, device: str, n_seeds: int) -> dict[str, list[float]]:
    """Shares of the true front's hypervolume after 500 distinct cells, for each strategy a value a seed."""
    found: dict[str, list[float]] = {"nsga2": [], "random_search": []}
    for seed in range(n_seeds):
        evolved = nsga2(table, seed=seed)
        random = RandomSearch(RandomSearch.Options(), space=table, seed=seed, full_fidelity=FULL)
        found["nsga2"].append(table.searched(evolved, device, n_cells=500))
        found["random_search"].append(table.searched(random, device, n_cells=500))
    return found


@pytest.mark.skipif(data_is_missing(), reason="the tables of accuracy and latency are not here")
def test_fronts_of_accuracy_and_latency_are_nearly_the_true_ones() -> None:
    found = hypervolumes(LatencyTable(), "pixel2", n_seeds=5)
    assert np.median(found["nsga2"]) >= 0.975
    assert np.median(found["nsga2"]) >= np.median(found["random_search"]) + 0.02


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(data_is_missing(), reason="the tables of accuracy and latency are not here")
@pytest.mark.parametrize("device", DEVICES)
def test_fronts_of_accuracy_and_latency_on_four_devices(device: str) -> None:
    """NAS-Bench-201, 200 epochs of CIFAR-10, validation; 50 seeds."""
    found = hypervolumes(LatencyTable(), device, n_seeds=50)
    assert np.median(found["nsga2"]) >= 0.975
    assert np.median(found["nsga2"]) >= np.median(found["random_search"]) + 0.02
