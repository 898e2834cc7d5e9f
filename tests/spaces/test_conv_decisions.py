"""Graphs of convolutions as decisions: every graph can be decided, every decision gives a graph, and skips are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance.space_suite import for_seeds, generator, make_space
from conformance.strategy_suite import FULL, finish

from nord_hpc.strategies.reinforce import Reinforce
from nord_hpc.trial import TrialState

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "chains": {"skip": False, "max_layers": 4},
    "one_size": {"min_layers": 3, "max_layers": 3, "kernels": [1, 3], "max_poolings": 1},
}
FIELDS = ("channels", "kernel", "activation", "normalization", "pooling")
CHOICES: dict[str, tuple[Any, ...]] = {
    "channels": (8, 16, 32),
    "kernel": (1, 3, 3, 5),
    "activation": ("relu",),
    "normalization": ("batch",),
    "pooling": ("none", "max", "avg"),
}
"""The defaults of the space."""


def random_choices(space: Any, seed: int) -> list[int]:
    draws = generator(seed).random(len(space.decisions())).tolist()
    return [int(n * u) for n, u in zip(space.decisions(), draws, strict=True)]


def test_decisions_of_a_small_space() -> None:
    space = make_space("conv_graph", {"min_layers": 1, "max_layers": 3, "channels": [4, 8], "kernels": [3]})
    of_a_layer = (2, 1, 1, 1, 3)
    assert space.decisions() == (3, *of_a_layer, *of_a_layer, 2, 2, *of_a_layer, 2, 2, 2)
    # The input ends at 0, the first layer at 5, the second, with its skips, at 12.
    of_none = (None,) * 5
    assert space.skips() == (None, *of_none, *of_none, 0, 5, *of_none, 0, 5, 12)


def test_every_choice_gives_a_point() -> None:
    spaces = [make_space("conv_graph", options) for options in OPTIONS.values()]

    def check(seed: int) -> None:
        for space in spaces:
            assert space.contains(space.from_decisions(random_choices(space, seed)))

    for_seeds(check)


def test_every_point_can_be_decided() -> None:
    space = make_space("conv_graph", {})

    def check(seed: int) -> None:
        genotype = space.sample(generator(seed))
        choices = [len(genotype) - 2]
        for index, layer in enumerate(genotype):
            choices += [CHOICES[field].index(layer[field]) for field in FIELDS]
            choices += [int(source in layer["inputs"]) for source in range(-1, index)] if index else []
        choices += [0] * (len(space.decisions()) - len(choices))
        assert space.from_decisions(choices) == genotype

    for_seeds(check)


def test_what_cannot_be_is_mended() -> None:
    space = make_space("conv_graph", {"min_layers": 3, "max_layers": 3, "max_poolings": 1})
    pooling = [0, 0, 0, 0, 1]
    layers = space.from_decisions([0, *pooling, *pooling, 0, 0, *pooling, 0, 0, 0])
    assert [layer["pooling"] for layer in layers] == ["max", "none", "none"]
    # Layers that read nothing read the input, and those that nobody reads are read by the last one.
    assert [layer["inputs"] for layer in layers] == [[-1], [-1], [-1, 0, 1]]


def goodness(layers: list[Any]) -> float:
    """Better with large kernels and many connections."""
    return float(np.mean([layer["kernel"] == 5 for layer in layers])) + 0.1 * sum(len(x["inputs"]) for x in layers)


@pytest.mark.parametrize(("policy", "lr"), [("factorized", 0.1), ("lstm", 0.02)])
def test_policies_learn_on_it(policy: str, lr: float) -> None:
    space = make_space("conv_graph", {"max_layers": 4})
    untaught = np.mean([goodness(space.from_decisions(random_choices(space, seed))) for seed in range(300)])
    options = Reinforce.Options.model_validate({"policy": policy, "lr": lr, "units": 12, "layers": 1})
    strategy = Reinforce(options, space=space, seed=1, full_fidelity=FULL)
    scores = []
    for number in range(500):
        proposal = strategy.ask(number)
        scores.append(goodness(proposal.genotype))
        strategy.tell(finish(proposal, number, TrialState.COMPLETED, scores[-1]))
    assert untaught < 0.9
    assert np.mean(scores[-50:]) > 1.5  # of 2
