"""What every strategy must keep: the tests that each strategy's test file inherits and gives its own variants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import for_seeds, generator, make_space, text_of

from nord_hpc import registry
from nord_hpc.interfaces import Done, Wait
from nord_hpc.seeding import derived_seed
from nord_hpc.trial import FailureKind, Fidelity, FinishedTrial, Outcome, Proposal, Trial, TrialState

FULL = Fidelity(epochs=4)
ASK = -1
"""The event "ask" in a schedule; another number chooses which of the outstanding trials is told next."""


class ToySpace:
    """Words of `length` letters 0 .. 3; the more letters are their position's own, the better."""

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def sample(self, rng: np.random.Generator) -> Any:
        return [int(4 * u) for u in rng.random(self.length)]

    def mutate(self, genotype: Any, rng: np.random.Generator) -> Any:
        at, step = int(self.length * rng.random()), 1 + int(3 * rng.random())
        return [*genotype[:at], (genotype[at] + step) % 4, *genotype[at + 1 :]]

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        at = int(self.length * rng.random())
        return [*first[:at], *second[at:]]

    def contains(self, genotype: Any) -> bool:
        return isinstance(genotype, list) and len(genotype) == self.length and all(g in range(4) for g in genotype)

    def to_descriptor(self, genotype: Any) -> Any:
        raise NotImplementedError("toy words are no networks")

    @staticmethod
    def score(genotype: Any) -> float:
        return sum(letter == (7 * at + 2) % 4 for at, letter in enumerate(genotype)) / len(genotype)


class SinglePoint(ToySpace):
    """A space where no mutation leads anywhere."""

    def sample(self, rng: np.random.Generator) -> Any:
        return [0] * self.length

    def mutate(self, genotype: Any, rng: np.random.Generator) -> Any:
        return list(genotype)


def finish(proposal: Proposal, number: int, state: TrialState, score: float | None) -> FinishedTrial:
    """A finished trial of that proposal; the score counts only for completed ones."""
    trial = Trial(
        number=number,
        genotype=json.loads(text_of(proposal.genotype)),  # as it comes back from the journal
        parents=proposal.parents,
        descriptor={},
        descriptor_hash=text_of(proposal.genotype),
        fidelity=proposal.fidelity or FULL,
        seed=number,
        continues=proposal.continues,
    )
    if state is TrialState.COMPLETED:
        return FinishedTrial(trial, Outcome(state, fitness=score), score)
    failure = FailureKind.EXCEPTION if state is TrialState.FAILED else None
    return FinishedTrial(trial, Outcome(state, failure=failure, reason="drawn"), None)


def evaluate(proposal: Proposal, number: int, *, bad_share: float = 0.2) -> FinishedTrial:
    """A made-up result that depends on genotype and number alone; some are failed or infeasible, many scores tie."""
    drawn = generator(derived_seed(0, text_of(proposal.genotype), number)).random(2).tolist()
    if drawn[0] < bad_share:
        return finish(proposal, number, (TrialState.FAILED, TrialState.INFEASIBLE)[int(2 * drawn[1])], None)
    return finish(proposal, number, TrialState.COMPLETED, round(drawn[1], 1))


class Driver:
    """Asks and tells a strategy by a schedule, and keeps what it proposed."""

    def __init__(self, strategy: Any, evaluator: Callable[[Proposal, int], FinishedTrial] = evaluate) -> None:
        self.strategy = strategy
        self.evaluator = evaluator
        self.proposals: list[Proposal] = []
        self.outstanding: list[int] = []
        self.told: dict[int, FinishedTrial] = {}
        self.answers: list[Any] = []

    def ask(self) -> bool:
        """Whether there was a proposal."""
        answer = self.strategy.ask(len(self.proposals))
        self.answers.append(answer)
        if not isinstance(answer, Proposal):
            assert isinstance(answer, (Wait, Done)), answer
            return False
        self.outstanding.append(len(self.proposals))
        self.proposals.append(answer)
        return True

    def tell(self, which: int = 0) -> None:
        """Tell one of the outstanding trials; nothing where there is none."""
        if self.outstanding:
            number = self.outstanding.pop(which % len(self.outstanding))
            self.told[number] = self.evaluator(self.proposals[number], number)
            self.strategy.tell(self.told[number])

    def step(self, event: int) -> None:
        if event == ASK:
            self.ask()
        else:
            self.tell(event)

    def lines(self) -> list[str]:
        """The proposals as text, to be compared."""
        return [proposal_text(proposal) for proposal in self.proposals]


def proposal_text(proposal: Proposal) -> str:
    fidelity = proposal.fidelity and proposal.fidelity.to_json()
    return text_of([proposal.genotype, list(proposal.parents), fidelity, proposal.continues])


def schedule(seed: int, n_events: int, *, most_outstanding: int = 12) -> Iterator[int]:
    """Asks and tells at random, at most so many asks ahead of the tells."""
    rng = generator(seed)
    ahead = 0
    for u, which in zip(rng.random(n_events).tolist(), rng.integers(0, 1000, n_events).tolist(), strict=True):
        if ahead and (u < 0.5 or ahead == most_outstanding):
            ahead -= 1
            yield which
        else:
            ahead += 1
            yield ASK


class StrategySuite:
    """Inherit as `class TestMyStrategy(StrategySuite)` and set the attributes.

    Attributes:
        name: in the registry.
        variants: name of the case to options.
        spaces: the spaces that the strategy fits, "toy" among them, or names of the registry with options.
        learns: whether it claims to find better candidates than random search does.
        without_selection: variants in which nothing competes, so that they cannot learn.
        budget: trials within which it shows this on the toy space.
    """

    name: ClassVar[str]
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"toy": None, "conv_graph": {}}
    learns: ClassVar[bool] = True
    without_selection: ClassVar[frozenset[str]] = frozenset()
    budget: ClassVar[int] = 200

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", list(self.variants))
        if "space_name" in metafunc.fixturenames:
            metafunc.parametrize("space_name", list(self.spaces))

    @pytest.fixture
    def space(self, space_name: str) -> Any:
        options = self.spaces[space_name]
        return ToySpace() if options is None else make_space(space_name, options)

    def make(self, variant: str, space: Any, *, seed: int = 7) -> Any:
        cls = registry.resolve("strategy", self.name, folder=Path("."))
        options = cls.Options.model_validate(self.variants[variant])
        return cls(options, space=space, seed=seed, full_fidelity=FULL)

    def copy(self, strategy: Any, variant: str, space: Any) -> Any:
        """The same strategy in another process: through JSON, into an instance made with another seed."""
        state = json.loads(json.dumps(strategy.state_dict(), allow_nan=False))
        copied = self.make(variant, space, seed=12345)
        copied.load_state_dict(state)
        return copied

    def test_proposals_are_points_of_the_space_with_known_parents(self, variant: str, space: Any) -> None:
        def check(seed: int) -> None:
            driver = Driver(self.make(variant, space))
            for event in schedule(seed, 120):
                n_before = len(driver.proposals)
                driver.step(event)
                for proposal in driver.proposals[n_before:]:
                    assert space.contains(proposal.genotype)
                    assert json.loads(text_of(proposal.genotype)) == proposal.genotype
                    assert all(driver.told[parent].score is not None for parent in proposal.parents)
                    assert proposal.fidelity is None or 0 <= proposal.fidelity.epochs <= FULL.epochs
            assert len(driver.proposals) >= 10

        for_seeds(check, examples=20)

    def test_proposals_follow_from_seed_and_order(self, variant: str, space: Any) -> None:
        events = list(schedule(1, 200))
        runs = [Driver(self.make(variant, space, seed=seed)) for seed in (7, 7, 8)]
        for run in runs:
            for event in events:
                run.step(event)
        assert runs[0].lines() == runs[1].lines()
        assert runs[0].lines() != runs[2].lines()

    def test_many_asks_come_before_the_first_tell(self, variant: str, space: Any) -> None:
        driver = Driver(self.make(variant, space))
        while len(driver.answers) < 300 and driver.ask():
            pass
        assert driver.proposals
        for _ in range(len(driver.outstanding)):
            driver.tell()
        assert driver.ask() or isinstance(driver.answers[-1], Done)

    def test_resumes_to_the_bit_between_any_two_events(self, variant: str, space: Any) -> None:
        def check(seed: int) -> None:
            undisturbed, resumed = Driver(self.make(variant, space)), Driver(self.make(variant, space))
            for event in schedule(seed, 100):
                undisturbed.step(event)
                resumed.step(event)
                assert resumed.lines()[-1:] == undisturbed.lines()[-1:]
                resumed.strategy = self.copy(resumed.strategy, variant, space)
            assert resumed.lines() == undisturbed.lines()
            assert text_of(resumed.strategy.state_dict()) == text_of(undisturbed.strategy.state_dict())

        for_seeds(check, examples=8)

    def test_a_saved_state_stays_as_it_was(self, variant: str, space: Any) -> None:
        driver = Driver(self.make(variant, space))
        events = list(schedule(3, 160))
        for event in events[:80]:
            driver.step(event)
        state = driver.strategy.state_dict()
        text = text_of(state)
        assert text_of(driver.strategy.state_dict()) == text
        loaded = self.make(variant, space, seed=99)
        loaded.load_state_dict(state)
        for event in events[80:]:
            driver.step(event)
        assert text_of(state) == text
        for number in range(1000, 1040):
            loaded.ask(number)
        assert text_of(state) == text

    def test_failed_and_infeasible_trials_are_never_parents(self, variant: str, space: Any) -> None:
        def mostly_bad(proposal: Proposal, number: int) -> FinishedTrial:
            return evaluate(proposal, number, bad_share=0.8)

        driver = Driver(self.make(variant, space), mostly_bad)
        for event in schedule(5, 600):
            driver.step(event)
        good = {number for number, finished in driver.told.items() if finished.score is not None}
        assert {parent for proposal in driver.proposals for parent in proposal.parents} <= good
        assert len(driver.proposals) > 100

    @pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.INFEASIBLE])
    def test_goes_on_when_nothing_completes(self, variant: str, space: Any, state: TrialState) -> None:
        driver = Driver(self.make(variant, space), lambda proposal, number: finish(proposal, number, state, None))
        for event in schedule(6, 400):
            driver.step(event)
        assert len(driver.proposals) > 50 or isinstance(driver.answers[-1], Done)
        assert all(proposal.parents == () for proposal in driver.proposals)

    def test_scores_that_are_not_finite_rank_below_all_others(self, variant: str, space: Any) -> None:
        """Such scores cannot come from an outcome; a strategy that is handed one all the same must not follow it."""
        values = [math.nan, 0.9, 0.5, math.inf, 0.1, -math.inf]

        def not_finite(proposal: Proposal, number: int) -> FinishedTrial:
            return replace(finish(proposal, number, TrialState.COMPLETED, 0.0), score=values[number % len(values)])

        driver = Driver(self.make(variant, space), not_finite)
        for event in schedule(7, 400):
            driver.step(event)
        parents = {parent for proposal in driver.proposals for parent in proposal.parents}
        assert {values[parent % len(values)] for parent in parents} <= {0.9, 0.5, 0.1}
        text_of(driver.strategy.state_dict())

    def test_waits_only_for_results_and_is_done_for_ever(self, variant: str, space: Any) -> None:
        def check(seed: int) -> None:
            driver = Driver(self.make(variant, space))
            done = False
            for event in schedule(seed, 300):
                driver.step(event)
                if event == ASK:
                    assert not done or isinstance(driver.answers[-1], Done)
                    done = isinstance(driver.answers[-1], Done)
                    if isinstance(driver.answers[-1], Wait):
                        assert driver.outstanding, "it waits, and nothing is being evaluated"

        for_seeds(check, examples=10)

    def test_trials_that_it_never_asked_for_count_like_its_own(self, variant: str, space: Any) -> None:
        """As first candidates are told, from files or an earlier search; some of them failed."""
        rng = generator(11)
        foreign = [evaluate(Proposal(space.sample(rng)), 5000 + k, bad_share=0.3) for k in range(30)]

        def lines() -> list[str]:
            driver = Driver(self.make(variant, space))
            for finished in foreign:
                driver.told[finished.trial.number] = finished
                driver.strategy.tell(finished)
            driver.strategy = self.copy(driver.strategy, variant, space)
            for event in schedule(12, 200):
                driver.step(event)
            assert driver.proposals or isinstance(driver.answers[-1], Done)
            for proposal in driver.proposals:
                assert space.contains(proposal.genotype)
                assert all(driver.told[parent].score is not None for parent in proposal.parents)
            return driver.lines()

        assert lines() == lines()

    def test_a_dropped_proposal_may_be_followed_by_another_of_its_number(self, variant: str, space: Any) -> None:
        """As at the end of a simulated budget; the dropped one is never told."""
        driver = Driver(self.make(variant, space))
        for event in schedule(13, 120):
            if event == ASK and not isinstance(driver.strategy.ask(len(driver.proposals)), Proposal):
                continue
            driver.step(event)
        while driver.outstanding:
            driver.tell()
        assert driver.ask() or isinstance(driver.answers[-1], Done), "it waits for what was dropped"

    def test_independent_asks_are_the_same_early_and_late(self, variant: str, space: Any) -> None:
        """Asks that are promised to be independent give the same proposals, and leave the same state, before and
        after what is told."""
        checked = 0

        def check(seed: int) -> None:
            nonlocal checked
            driver = Driver(self.make(variant, space))
            for event in schedule(seed, seed % 60):
                driver.step(event)
            n_asks = min(driver.strategy.independent_asks(), 40)
            assert n_asks >= 0
            early, late = self.copy(driver.strategy, variant, space), self.copy(driver.strategy, variant, space)
            first = len(driver.proposals)
            proposals = [early.ask(first + k) for k in range(n_asks)]
            assert all(isinstance(proposal, Proposal) for proposal in proposals)
            results = [evaluate(driver.proposals[number], number) for number in driver.outstanding]
            rng = generator(seed)
            untold = list(results)
            for k, proposal in enumerate(proposals):
                while untold and rng.random() < 0.5:
                    late.tell(untold.pop(0))
                assert proposal_text(late.ask(first + k)) == proposal_text(proposal)
                untold.append(evaluate(proposal, first + k))
                results.append(untold[-1])
            for result in untold:
                late.tell(result)
            for result in results:
                early.tell(result)
            assert text_of(early.state_dict()) == text_of(late.state_dict())
            checked += n_asks

        for_seeds(check, examples=40)
        assert checked or self.make(variant, space).independent_asks() == 0

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        driver = Driver(self.make(variant, SinglePoint()))
        for event in schedule(8, 300):
            driver.step(event)
        assert {text_of(proposal.genotype) for proposal in driver.proposals} == {text_of([0] * 12)}

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        if not self.learns:
            pytest.skip("this strategy does not claim to learn")
        if variant in self.without_selection:
            pytest.skip("without competition there is no selection")
        seeds = range(12)
        found = [self._best(self.make(variant, ToySpace(), seed=seed), self.budget) for seed in seeds]
        cls = registry.resolve("strategy", "random_search", folder=Path("."))
        random = [
            self._best(cls(cls.Options(), space=ToySpace(), seed=seed, full_fidelity=FULL), self.budget)
            for seed in seeds
        ]
        assert np.mean(found) > np.mean(random) + 0.1
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 10

    @staticmethod
    def _best(strategy: Any, n_trials: int, *, in_flight: int = 4) -> float:
        """The best score of a search with so many trials in flight."""

        def toy(proposal: Proposal, number: int) -> FinishedTrial:
            return finish(proposal, number, TrialState.COMPLETED, ToySpace.score(proposal.genotype))

        driver = Driver(strategy, toy)
        while len(driver.told) < n_trials:
            asked = len(driver.outstanding) < in_flight and driver.ask()
            if not asked:
                driver.tell()
        return max(finished.score for finished in driver.told.values() if finished.score is not None)
