"""What asks and tells cost, early in a search and with many trials behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from conformance.strategy_suite import ToySpace, finish

from nord_hpc.trial import FinishedTrial, Proposal, TrialState

BLOCK = 500
BLOCKS = 4


def scored(proposal: Proposal, number: int) -> FinishedTrial:
    """A completed trial with the toy space's score."""
    return finish(proposal, number, TrialState.COMPLETED, ToySpace.score(proposal.genotype))


def early_and_late_seconds(
    strategy: Any, *, between: int, result: Callable[[Proposal, int], FinishedTrial] = scored
) -> tuple[float, float]:
    """CPU seconds of an ask and its tell, each the least of four blocks of 500: at first, and `between` trials later.

    The CPU time of this process alone, as other work on the machine is not the strategy's cost.
    """
    number = 0

    def seconds_per_trial(n_trials: int) -> float:
        nonlocal number
        spent = 0.0
        for _ in range(n_trials):
            before = time.process_time()
            proposal = strategy.ask(number)
            spent += time.process_time() - before
            assert isinstance(proposal, Proposal)
            finished = result(proposal, number)
            before = time.process_time()
            strategy.tell(finished)
            spent += time.process_time() - before
            number += 1
        return spent / n_trials

    early = min(seconds_per_trial(BLOCK) for _ in range(BLOCKS))
    seconds_per_trial(between)
    return early, min(seconds_per_trial(BLOCK) for _ in range(BLOCKS))
