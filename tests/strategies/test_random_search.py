"""Random search: the conformance suite, and that its samples are the space's own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from conformance.space_suite import generator
from conformance.strategy_suite import FULL, StrategySuite, ToySpace
from pydantic import ValidationError

from nord_hpc.strategies.random_search import RandomSearch


class TestRandomSearch(StrategySuite):
    name = "random_search"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    learns = False


def test_candidates_are_samples_of_the_space_in_order() -> None:
    space, rng = ToySpace(), generator(3)
    strategy = RandomSearch(RandomSearch.Options(), space=space, seed=3, full_fidelity=FULL)
    proposals = [strategy.ask(number) for number in range(20)]
    assert [proposal.genotype for proposal in proposals] == [space.sample(rng) for _ in range(20)]
    assert {proposal.parents for proposal in proposals} == {()}


def test_all_asks_are_independent_however_many_were_made() -> None:
    strategy = RandomSearch(RandomSearch.Options(), space=ToySpace(), seed=3, full_fidelity=FULL)
    for number in range(100):
        strategy.ask(number)
    assert strategy.independent_asks() == 2**31


def test_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="population"):
        RandomSearch.Options.model_validate({"population": 16})
