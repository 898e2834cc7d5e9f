"""MO-ASHA: the conformance suite, and the order of a rung by fronts and epsilon-nets."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.strategy_suite import StrategySuite
from halving_runs import NINE, RUNGS, NumberedSpace, ask, result

from nord_hpc.strategies.mo_asha import ByFronts, MoAsha, epsilon_net
from nord_hpc.strategies.objectives import Objective
from nord_hpc.trial import Fidelity, Proposal

LATENCY = {"metric": "latency_ms", "direction": "minimize"}
TWO = [{"metric": "fitness"}, LATENCY]


class TestMoAsha(StrategySuite):
    name = "mo_asha"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "nsga2": {"eta": 2, "strategy": {"name": "nsga2", "population": 8}},
    }
    learns = False  # on words whose score needs no training


def filled(points: list[tuple[float | None, float]]) -> MoAsha:
    """The first results of the lowest rung, of score and latency."""
    options = MoAsha.Options.model_validate({"rungs": RUNGS, "objectives": TWO})
    strategy = MoAsha(options, space=NumberedSpace(), seed=0, full_fidelity=NINE)
    proposals = [ask(strategy, number) for number in range(len(points))]
    for number, (proposal, (score, latency)) in enumerate(zip(proposals, points, strict=True)):
        strategy.tell(result(proposal, number, score, latency_ms=latency))
    return strategy


def test_the_first_front_goes_on_before_what_is_good_in_one_objective() -> None:
    strategy = filled([(0.9, 9.0), (0.5, 1.0), (0.85, 9.5), (0.8, 9.9), (0.4, 1.5), (0.3, 8.0)])
    first, second = ask(strategy, 6), ask(strategy, 7)
    assert first == Proposal([0], parents=(0,), fidelity=Fidelity(3), continues=0)
    assert second.continues == 1
    assert ask(strategy, 8).continues is None


def test_of_a_front_the_farthest_from_those_before_goes_on() -> None:
    strategy = filled([(0.9, 9.0), (0.89, 8.9), (0.88, 8.8), (0.1, 1.0), (0.87, 8.7), (0.5, 5.0), *[(None, 1.0)] * 3])
    assert [ask(strategy, number).continues for number in (9, 10, 11, 12)] == [0, 3, 5, None]


def test_what_lacks_an_objective_does_not_go_on() -> None:
    strategy = filled([(0.9, float("nan")), (0.1, 1.0), (0.8, float("inf"))])
    assert ask(strategy, 3).continues == 1


def test_epsilon_nets_measure_in_widths_of_the_front() -> None:
    values = np.array([[0.0, 1000.0], [0.4, 500.0], [1.0, 0.0], [0.1, 950.0], [0.7, 250.0]])
    assert epsilon_net(values) == [0, 2, 1, 4, 3]
    assert epsilon_net(values[:, :1]) == [0, 2, 1, 4, 3]
    assert epsilon_net(np.ones((3, 2))) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_does_not_depend_on_who_came_first(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    points = rng.integers(0, 5, (30, 2)).tolist()
    orders = []
    for permutation in (range(30), rng.permutation(30).tolist()):
        ranking = ByFronts([Objective(metric="fitness"), Objective.model_validate(LATENCY)])
        for number in permutation:
            score, latency = points[number]
            assert ranking.add(result(Proposal([number]), number, float(score), latency_ms=latency))
        order = []
        while (best := ranking.candidate(len(ranking))) is not None:
            ranking.set_waiting(best, False)
            order.append(best)
        orders.append(order)
    assert orders[0] == orders[1] and len(orders[0]) == 30
