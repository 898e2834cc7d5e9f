"""Strategies of successive halving on made-up and recorded learning curves: what tests of asha and mo_asha share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from conformance.strategy_suite import ToySpace, finish

from nord_hpc.trial import Fidelity, FinishedTrial, Proposal, TrialState

CURVES = Path(__file__).parents[2].parent / "shared" / "data" / "spikenas_bench" / "spikenas_cifar10.npz"
RUNGS = [1, 3, 9]
NINE, HUNDRED = Fidelity(epochs=9), Fidelity(epochs=100)


class NumberedSpace(ToySpace):
    """Samples are numbered in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.n_samples = 0

    def sample(self, rng: Any) -> Any:
        self.n_samples += 1
        return [self.n_samples - 1]


class CurveSpace(ToySpace):
    """Cells whose learning curves are on record: validation accuracy, in percent, after each of 100 epochs.

    Attributes:
        accuracy_EN: by epoch and cell.
    """

    def __init__(self) -> None:
        super().__init__()
        with np.load(CURVES) as arrays:
            self.accuracy_EN = arrays["val_acc_x250"] / 250.0

    def sample(self, rng: Any) -> Any:
        return int(rng.random() * self.accuracy_EN.shape[1])


def ask(strategy: Any, number: int) -> Proposal:
    answer = strategy.ask(number)
    assert isinstance(answer, Proposal)
    return answer


def result(
    proposal: Any, number: int, score: float | None, *, full: Fidelity = NINE, runs: bool = True, **metrics: Any
) -> FinishedTrial:
    state = TrialState.FAILED if score is None else TrialState.COMPLETED
    finished = finish(proposal, number, state, score)
    trial = replace(finished.trial, fidelity=proposal.fidelity or full, reuses=None if runs else 0)
    return replace(finished, trial=trial, outcome=replace(finished.outcome, metrics=metrics))


def best_within(strategy: Any, space: CurveSpace, *, budget: int, in_flight: int = 1) -> float:
    """The best validation accuracy after 100 epochs of a search that may train for so many epochs in all."""
    trained: dict[int, int] = {}
    flying: list[tuple[int, Proposal]] = []
    best, used = 0.0, 0
    while True:
        while len(flying) < in_flight:
            number = len(trained)
            proposal = strategy.ask(number)
            epochs = (proposal.fidelity or HUNDRED).epochs
            used += epochs - (0 if proposal.continues is None else trained[proposal.continues])
            if used > budget:
                return best
            trained[number] = epochs
            flying.append((number, proposal))
        number, proposal = flying.pop(0)
        score = float(space.accuracy_EN[trained[number] - 1, proposal.genotype])
        if trained[number] == HUNDRED.epochs:
            best = max(best, score)
        strategy.tell(result(proposal, number, score, full=HUNDRED))


def best_of_random(space: CurveSpace, seed: int, n_trainings: int) -> float:
    """The best validation accuracy of so many full trainings of samples."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return max(float(space.accuracy_EN[-1, space.sample(rng)]) for _ in range(n_trainings))
