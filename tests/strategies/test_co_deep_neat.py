"""CoDeepNEAT: the conformance suite on its space, new and living parts, credit, parents and generations."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import generator, make_space
from conformance.strategy_suite import FULL, Driver, StrategySuite, ToySpace, finish, schedule
from pydantic import ValidationError

from nord_hpc.interfaces import Wait
from nord_hpc.spaces.co_deep_neat import CoDeepNeat as Space
from nord_hpc.strategies.co_deep_neat import CoDeepNeat
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

SMALL: dict[str, Any] = {"population": 10, "blueprints": 6, "modules": 8}


class SinglePart:
    """Operators that lead nowhere, around the parts of the real space."""

    def __init__(self, space: Any, genotype: Any) -> None:
        self.genotype = genotype
        self.distance = space.distance

    def sample(self, rng: np.random.Generator) -> Any:
        return self.genotype

    def mutate(self, genotype: Any, rng: np.random.Generator) -> Any:
        return genotype

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        return first


def score_of(genotype: Any) -> float:
    """Better with more blueprint nodes, more of them of species 2, and larger, wider and stronger modules; up to 1."""
    nodes = genotype["blueprint"]["nodes"]
    share = sum(node["module"] == 2 for node in nodes) / len(nodes)
    modules = [module["nodes"] for module in genotype["modules"].values()]
    inner = [node for module in modules for node in module]
    widths = np.mean([node["out_channels"] for node in inner]) / 64
    scales = np.mean([node["scale"] for node in inner]) / 1.5
    return float((len(nodes) / 6 + share + np.mean([len(module) for module in modules]) / 4 + widths + scales) / 5)


# Each ask makes and crosses graphs, which takes milliseconds, and the suite makes thousands of asks: it is for the long
# run. What it asks for is tested in short below and in test_every_strategy_on_every_space.py.
@pytest.mark.slow
class TestCoDeepNeat(StrategySuite):
    name = "co_deep_neat"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "steady": SMALL,
        "generations": {**SMALL, "generational": True, "tournament": 1},
    }
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"co_deep_neat": {"max_nodes": 3, "modules": {"max_nodes": 2}}}

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        space = make_space("co_deep_neat", {})
        blueprint, modules = space.parts(space.sample(generator(1)))
        space.blueprints = SinglePart(space.blueprints, blueprint)
        space.modules = SinglePart(space.modules, modules[min(modules)])
        driver = Driver(self.make(variant, space))
        for event in schedule(8, 200):
            driver.step(event)
        assert len({str(proposal.genotype) for proposal in driver.proposals}) == 1

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        space = make_space("co_deep_neat", {})
        found = [_best(self.make(variant, space, seed=seed)) for seed in range(5)]
        options = RandomSearch.Options()
        random = [_best(RandomSearch(options, space=space, seed=seed, full_fidelity=FULL)) for seed in range(5)]
        assert np.mean(found) > np.mean(random) + 0.05
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 4


def _best(strategy: Any, n_trials: int = 150) -> float:
    def scored(proposal: Proposal, number: int) -> FinishedTrial:
        return finish(proposal, number, TrialState.COMPLETED, score_of(proposal.genotype))

    driver = Driver(strategy, scored)
    while len(driver.told) < n_trials:
        if not (len(driver.outstanding) < 4 and driver.ask()):
            driver.tell()
    return max(finished.score for finished in driver.told.values() if finished.score is not None)


def space(options: Any = None) -> Space:
    made: Space = make_space("co_deep_neat", options or {})
    return made


def begun(n: int, of_space: Any = None, **options: Any) -> tuple[CoDeepNeat, dict[int, Proposal]]:
    """A strategy whose first samples have completed, with rising scores; and these."""
    given = CoDeepNeat.Options.model_validate({"population": n, **options})
    strategy = CoDeepNeat(given, space=space(of_space), seed=3, full_fidelity=FULL)
    proposals = {number: ask(strategy, number) for number in range(n)}
    for number, proposal in proposals.items():
        strategy.tell(finish(proposal, number, TrialState.COMPLETED, (number + 1) / n))
    return strategy, proposals


def ask(strategy: CoDeepNeat, number: int) -> Proposal:
    answer = strategy.ask(number)
    assert isinstance(answer, Proposal)
    return answer


def living(strategy: CoDeepNeat, kind: str) -> list[list[Any]]:
    """[key, genotype, trial, total, count] of all parts of a kind."""
    return [part for group in strategy.state_dict()[kind]["groups"] for part in group]


def test_samples_make_the_first_parts() -> None:
    strategy, proposals = begun(6, modules=100)
    made = space()
    networks = [made.parts(proposal.genotype) for proposal in proposals.values()]
    first: dict[str, list[Any]] = {}  # genotype, first trial, sum and number of the scores of a blueprint
    for number, (blueprint, _) in enumerate(networks):
        entry = first.setdefault(str(blueprint), [blueprint, number, 0.0, 0])
        entry[2:] = [entry[2] + (number + 1) / 6, entry[3] + 1]
    assert [part[1:] for part in living(strategy, "blueprints")] == list(first.values())
    modules = {str(module) for _, named in networks for module in named.values()}
    assert {str(part[1]) for part in living(strategy, "modules")} == modules
    assert all(proposal.parents == () for proposal in proposals.values())


def test_a_score_counts_for_all_parts_of_its_network() -> None:
    strategy, _ = begun(6, blueprint_rate=0.0, module_rate=0.0, mutation=1.0)
    before = {part[0]: part for part in living(strategy, "blueprints")}
    proposal = ask(strategy, 6)
    strategy.tell(finish(proposal, 6, TrialState.COMPLETED, 0.25))
    used = [part for part in living(strategy, "blueprints") if part[1] == proposal.genotype["blueprint"]]
    assert len(used) == 1
    key, _, trial, total, count = used[0]
    assert (total, count) == (before[key][3] + 0.25, 2)
    assert trial in proposal.parents
    # With an old blueprint one module is new, and came up in this trial.
    assert sum(part[2] == 6 for part in living(strategy, "modules")) == 1


@pytest.mark.parametrize(("blueprint_rate", "module_rate"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_what_is_new_follows_the_rates(blueprint_rate: float, module_rate: float) -> None:
    # With several nodes a module hardly ever comes up twice.
    grown = {"modules": {"sample_nodes": 4}}
    strategy, _ = begun(12, grown, blueprint_rate=blueprint_rate, module_rate=module_rate, modules=100)
    for number in range(12, 40):
        old = {str(part[1]) for kind in ("blueprints", "modules") for part in living(strategy, kind)}
        proposal = ask(strategy, number)
        new_blueprint = str(proposal.genotype["blueprint"]) not in old
        new_modules = [str(module) not in old for module in proposal.genotype["modules"].values()]
        assert new_blueprint == (blueprint_rate == 1.0)
        assert sum(new_modules) == (len(new_modules) if module_rate else blueprint_rate == 0.0)
        assert proposal.parents and set(proposal.parents) <= set(range(12))


def test_failed_networks_change_nothing() -> None:
    strategy, _ = begun(6)
    before = strategy.state_dict()
    strategy.tell(finish(ask(strategy, 6), 6, TrialState.FAILED, None))
    after = strategy.state_dict()
    assert {key: after[key] for key in ("blueprints", "modules")} == {
        key: before[key] for key in ("blueprints", "modules")
    }
    assert after["pending"] == []


def test_no_more_parts_live_than_may() -> None:
    strategy, _ = begun(10, blueprints=4, modules=7)
    for number in range(10, 60):
        strategy.tell(finish(ask(strategy, number), number, TrialState.COMPLETED, number % 7 / 7))
        assert len(living(strategy, "blueprints")) == 4
        assert len(living(strategy, "modules")) == 7
        assert all(strategy.state_dict()["modules"]["groups"])


def test_a_generation_waits_and_its_results_count_together() -> None:
    strategy, _ = begun(3, generational=True)
    assert living(strategy, "blueprints") == []
    children = {number: ask(strategy, number) for number in range(3, 6)}
    assert len(living(strategy, "blueprints")) == 3
    assert isinstance(strategy.ask(6), Wait)
    for number, proposal in children.items():
        strategy.tell(finish(proposal, number, TrialState.COMPLETED, 0.5))
    assert {part[2] for part in living(strategy, "blueprints")} == {0, 1, 2}
    ask(strategy, 6)
    counts = [part[4] for part in living(strategy, "blueprints")]
    assert sum(counts) == 6


def test_spaces_without_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="evolves blueprints and modules, and ToySpace has no blueprints"):
        CoDeepNeat(CoDeepNeat.Options(), space=ToySpace(), seed=0, full_fidelity=FULL)
    with pytest.raises(ValueError, match=r"2 modules are too few for 3 species; set strategy.modules to 3 or more"):
        CoDeepNeat(CoDeepNeat.Options(modules=2), space=space(), seed=0, full_fidelity=FULL)


@pytest.mark.parametrize("options", [{"population": 1}, {"blueprints": 1}, {"module_rate": 2}, {"tournament": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        CoDeepNeat.Options.model_validate(options)
