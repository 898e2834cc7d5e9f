"""REINFORCE: the suite of all strategies for both policies, their chances and gradients, and what a result is worth."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conformance.space_suite import generator
from conformance.strategy_suite import FULL, StrategySuite, ToySpace, finish
from spaces_of_decisions import Chains, Words, with_decisions

from nord_hpc.strategies.adam import Adam, from_text, to_text
from nord_hpc.strategies.factorized_policy import FactorizedPolicy
from nord_hpc.strategies.lstm_policy import LstmPolicy
from nord_hpc.strategies.reinforce import Reinforce
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

CELL = {"blocks": 2, "repeats": 1, "stages": 2}


class TestFactorized(StrategySuite):
    name = "reinforce"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"toy": None, "nasnet_cell": CELL}
    budget = 400

    def make(self, variant: str, space: Any, *, seed: int = 7) -> Any:
        return super().make(variant, with_decisions(space), seed=seed)


class TestLstm(StrategySuite):
    name = "reinforce"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"lstm": {"policy": "lstm", "units": 6, "layers": 1}}
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"toy": None}
    learns = False  # shown below, on decisions with skips

    def make(self, variant: str, space: Any, *, seed: int = 7) -> Any:
        return super().make(variant, with_decisions(space), seed=seed)


def reinforce(space: Any, *, seed: int = 1, **options: Any) -> Reinforce:
    made = Reinforce.Options.model_validate(options)
    return Reinforce(made, space=space, seed=seed, full_fidelity=FULL)


def completed(proposal: Proposal, number: int, score: float) -> FinishedTrial:
    return finish(proposal, number, TrialState.COMPLETED, score)


class Recorded:
    """A policy of one parameter whose gradient is 1, and that keeps what is asked of it."""

    def __init__(self) -> None:
        self.parameters = np.zeros(1)
        self.learned: list[list[int]] = []

    def sample(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(0, 4, 12).tolist()

    def gradient(self, choices: Any) -> Any:
        self.learned.append(list(choices))
        return np.ones(1)


class Steps:
    """In place of Adam: keeps the gradients."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def ascend(self, values: Any, gradient: Any) -> None:
        self.taken.append(float(gradient[0]))


def recording(**options: Any) -> tuple[Reinforce, Recorded, Steps]:
    strategy, policy, steps = reinforce(Words(), **options), Recorded(), Steps()
    strategy._policy, strategy._adam = policy, steps  # type: ignore[assignment]
    return strategy, policy, steps


def test_the_advantage_is_the_score_less_the_moving_average_with_it() -> None:
    strategy, _, steps = recording(baseline=0.9)
    scores = [0.5, 0.9, 0.1]
    for number, score in enumerate(scores):
        strategy.tell(completed(strategy.ask(number), number, score))
    averages = []
    for k in range(len(scores)):
        weights = [0.1 * 0.9 ** (k - j) for j in range(k + 1)]
        averages.append(sum(w * s for w, s in zip(weights, scores[: k + 1], strict=True)) / sum(weights))
    assert steps.taken == pytest.approx([score - mean for score, mean in zip(scores, averages, strict=True)])
    assert steps.taken[0] == 0


def test_failures_teach_nothing_and_trials_of_others_move_the_average_alone() -> None:
    strategy, policy, steps = recording(baseline=0.5)
    strategy.tell(finish(strategy.ask(0), 0, TrialState.FAILED, None))
    strategy.tell(completed(Proposal([0] * 12), 900, 0.25))
    assert policy.learned == []
    proposal = strategy.ask(1)
    strategy.tell(completed(proposal, 1, 1.0))
    assert policy.learned == [proposal.genotype]
    average = (0.25 * 0.25 + 0.5 * 1.0) / 0.75
    assert steps.taken == pytest.approx([1 - average])
    strategy.tell(finish(strategy.ask(2), 2, TrialState.INFEASIBLE, None))
    assert len(steps.taken) == 1


def test_results_teach_the_choices_that_they_are_of_whatever_their_order() -> None:
    strategy, policy, _ = recording()
    proposals = [strategy.ask(number) for number in range(5)]
    for number in (3, 0, 4, 1, 2):
        strategy.tell(completed(proposals[number], number, number / 10))
    assert policy.learned == [proposals[number].genotype for number in (3, 0, 4, 1, 2)]


def test_adam_is_torchs_and_goes_on_from_its_state_to_the_bit() -> None:
    rng = generator(0)
    values = rng.normal(size=7)
    theirs = torch.tensor(values, requires_grad=True)
    ours, torchs = Adam(7, lr=0.03), torch.optim.Adam([theirs], lr=0.03)
    for step in range(40):
        gradient = rng.normal(size=7)
        theirs.grad = torch.tensor(-gradient)  # torch descends
        torchs.step()
        ours.ascend(values, gradient)
        if step == 20:
            state = json.loads(json.dumps(ours.state_dict()))
            ours = Adam(7, lr=0.03)
            ours.load_state_dict(state)
    assert values == pytest.approx(theirs.detach().numpy(), abs=1e-12)
    assert from_text(to_text(values)).tobytes() == values.tobytes()


def test_the_factorized_gradient_is_that_of_independent_softmaxes() -> None:
    decisions = (3, 5, 1, 2)
    policy = FactorizedPolicy(decisions, rng=generator(0))
    policy.parameters += generator(1).normal(size=len(policy.parameters))
    choices = [2, 0, 0, 1]
    parameters = torch.tensor(policy.parameters, requires_grad=True)
    rows = torch.split(parameters, decisions)
    torch.stack([torch.log_softmax(row, 0)[c] for row, c in zip(rows, choices, strict=True)]).sum().backward()
    assert parameters.grad is not None
    assert policy.gradient(choices) == pytest.approx(parameters.grad.numpy(), abs=1e-12)
    for row, n, found in zip(rows, decisions, policy.probabilities(), strict=True):
        assert found[:n] == pytest.approx(torch.softmax(row, 0).detach().numpy())
        assert found[n:].sum() == 0


def test_the_factorized_policy_draws_by_its_chances() -> None:
    policy = FactorizedPolicy((2, 3), rng=generator(0))
    policy.parameters[:] = [0.0, 1.0, -0.5, 0.0, 0.7]
    rng = generator(1)
    drawn = np.array([policy.sample(rng) for _ in range(6000)])
    for at, n in enumerate((2, 3)):
        shares = np.bincount(drawn[:, at], minlength=n) / len(drawn)
        assert shares == pytest.approx(policy.probabilities()[at, :n], abs=4 * (0.25 / len(drawn)) ** 0.5)


COUNTS = (2, 3, 2, 2, 2, 2)
SKIPS = (None, None, 0, None, 0, 2)
"""Layers of one decision: the first; the second with a skip from it; the third with skips from both."""


def lstm(decisions: tuple[int, ...], skips: Any = None, *, layers: int = 2) -> LstmPolicy:
    policy = LstmPolicy(decisions, skips=skips, layers=layers, units=5, rng=generator(0))
    policy.parameters *= 20  # so that chances are not all alike
    return policy


def chance(policy: LstmPolicy, choices: Any) -> float:
    return math.exp(policy.log_probability(choices))


@pytest.mark.parametrize("skips", [None, SKIPS])
def test_the_chances_of_all_sequences_add_up_to_one_and_are_drawn_by(skips: Any) -> None:
    policy = lstm(COUNTS, skips)
    sequences = list(product(*(range(n) for n in COUNTS)))
    chances = [chance(policy, sequence) for sequence in sequences]
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    assert max(chances) > 2 * min(chances)
    rng = generator(2)
    n_drawn = 2000
    counts = dict.fromkeys(sequences, 0)
    for _ in range(n_drawn):
        counts[tuple(policy.sample(rng))] += 1
    for sequence, expected in zip(sequences, chances, strict=True):
        assert abs(counts[sequence] - n_drawn * expected) < 5 * (n_drawn * expected * (1 - expected)) ** 0.5 + 1


@pytest.mark.parametrize("skips", [None, SKIPS])
def test_the_gradient_is_that_of_the_chance(skips: Any) -> None:
    policy = lstm(COUNTS, skips)
    choices = [1, 2, 1, 0, 0, 1]
    gradient = policy.gradient(choices)
    step = 1e-5
    for at in range(len(policy.parameters)):
        kept = policy.parameters[at]
        policy.parameters[at] = kept + step
        above = policy.log_probability(choices)
        policy.parameters[at] = kept - step
        below = policy.log_probability(choices)
        policy.parameters[at] = kept
        assert gradient[at] == pytest.approx((above - below) / (2 * step), abs=1e-7), at
    assert np.count_nonzero(gradient) > len(gradient) / 2


def test_the_lstm_is_torchs() -> None:
    policy = lstm((3, 4, 2))
    named = {name: torch.tensor(values) for name, values in policy._named.items()}
    module = torch.nn.LSTM(5, 5, 2, dtype=torch.float64)
    order = [0, 1, 3, 2]  # torch has the candidates before the gate of the output
    with torch.no_grad():
        for layer in range(2):
            weight, bias = (named[f"{part} {layer}"].view(4, 5, -1)[order].flatten(0, 1) for part in ("weight", "bias"))
            getattr(module, f"weight_ih_l{layer}").copy_(weight[:, :5])
            getattr(module, f"weight_hh_l{layer}").copy_(weight[:, 5:])
            getattr(module, f"bias_ih_l{layer}").copy_(bias[:, 0])
            getattr(module, f"bias_hh_l{layer}").zero_()
        choices = [2, 1, 0]
        inputs = torch.stack([named["start"], named["embedding 0"][2], named["embedding 1"][1]])
        outputs, _ = module(inputs)
        expected = 0.0
        for at, (output, choice) in enumerate(zip(outputs, choices, strict=True)):
            logits = named[f"head {at}"] @ output + named[f"head bias {at}"]
            expected += float(torch.log_softmax(logits, 0)[choice])
    assert policy.log_probability(choices) == pytest.approx(expected, abs=1e-12)


def test_a_skip_is_decided_by_the_outputs_at_the_ends_of_its_two_layers() -> None:
    """Two layers without a choice: the chance of the skip between them by the formula of Zoph and Le."""
    policy = lstm((1, 1, 2), (None, None, 0), layers=1)
    named = policy._named
    hidden, cell, outputs = np.zeros(5), np.zeros(5), []
    for x in (named["start"], named["embedding 0"][0], named["embedding 1"][0]):
        sums = named["weight 0"] @ np.concatenate([x, hidden]) + named["bias 0"]
        inward, forget, outward = (1 / (1 + np.exp(-sums[5 * k : 5 * k + 5])) for k in range(3))
        cell = forget * cell + inward * np.tanh(sums[15:])
        hidden = outward * np.tanh(cell)
        outputs.append(hidden)
    mixed = named["previous"] @ outputs[0] + named["current"] @ outputs[2]
    expected = 1 / (1 + math.exp(-float(named["v"] @ np.tanh(mixed))))
    assert chance(policy, [0, 0, 1]) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - 0.5) > 0.01


def test_later_decisions_depend_on_earlier_ones() -> None:
    policy = lstm(COUNTS, SKIPS)

    def share(prefix: list[int]) -> float:
        """The chance of choice 0 behind these choices."""
        at = len(prefix)
        first = sum(chance(policy, [*prefix, 0, *rest]) for rest in product(*(range(n) for n in COUNTS[at + 1 :])))
        return first / sum(chance(policy, [*prefix, *rest]) for rest in product(*(range(n) for n in COUNTS[at:])))

    assert abs(share([0]) - share([1])) > 1e-3
    assert abs(share([0, 1]) - share([0, 2])) > 1e-3


@pytest.mark.parametrize(
    ("skips", "text"),
    [
        ((None, None), "skips() has 2 values for 3 decisions"),
        ((None, 0, None), "decision 1 has 3 alternatives and comes from decision 0; a skip has 2, and comes from an e"),
        ((None, None, 2), "decision 2 has 2 alternatives and comes from decision 2; a skip has 2, and comes from an e"),
    ],
)
def test_skips_that_are_none_are_refused(skips: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        LstmPolicy((2, 3, 2), skips=skips, rng=generator(0))


def test_the_controller_learns_layers_and_skips_and_goes_on_elsewhere() -> None:
    space = Chains()
    options = {"policy": "lstm", "units": 16, "layers": 1}
    strategy = reinforce(space, **options)
    scores = []
    for number in range(500):
        proposal = strategy.ask(number)
        assert space.contains(proposal.genotype)
        scores.append(space.goodness(proposal.genotype))
        strategy.tell(completed(proposal, number, scores[-1]))
        if number == 250:
            state = json.loads(json.dumps(strategy.state_dict()))
            strategy = reinforce(space, seed=99, **options)
            strategy.load_state_dict(state)
    assert np.mean(scores[:50]) < 0.6
    assert np.mean(scores[-50:]) > 0.85


def test_learning_rates_of_the_policies() -> None:
    assert reinforce(Words())._adam._lr == 0.1
    assert reinforce(Words(), policy="lstm")._adam._lr == 0.01
    assert reinforce(Words(), lr=0.02)._adam._lr == 0.02


def test_a_space_without_decisions_is_refused() -> None:
    text = "sequences of decisions, and ToySpace has no decisions() and no from_decisions(); set another strategy or"
    with pytest.raises(ValueError, match=re.escape(text)):
        reinforce(ToySpace())


def test_the_process_that_searches_needs_no_torch() -> None:
    code = "import sys, nord_hpc.strategies.reinforce; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
