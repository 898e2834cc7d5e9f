"""Zero-cost scores: what an untrained network and one batch tell of a network's worth. Ranking is left to the caller.

This file knows the names alone and imports no torch; the measures are made in `measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from nord_hpc.builder.network import Network

NAMES = ("grad_norm", "jacob_cov", "naswot", "snip", "synflow")
"""The scores; larger is taken to be better in all of them."""

SIZES = ("n_parameters", "multiply_adds")
"""What is given beside every score: the baselines that a score has to beat."""


def score_network(
    network: Network, x: torch.Tensor, y: torch.Tensor, names: Sequence[str] = NAMES, seed: int = 0
) -> dict[str, float]:
    """Scores of an untrained network on one batch, with its size beside them.

    The network is left as it was, its buffers included, and so is the global random state. Equal arguments give equal
    scores on one machine.

    Args:
        network: with its initial weights.
        x: [N, *input_shape], on the network's device.
        y: [N] classes, or [N, outputs] numbers.
        names: any of `NAMES`, each computed once.
        seed: of the noise inside the network, such as dropout.

    Returns:
        `names`, then `SIZES`. A score can be infinite where a network is so deep that numbers overflow.

    Raises:
        ValueError: a name is unknown.
        Infeasible: a score is not defined for this network or these data.
    """
    from nord_hpc.proxies.measures import MEASURES, Example, without_trace

    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ValueError(f"unknown score {unknown[0]!r}: set any of {', '.join(NAMES)}")
    example = Example(x, y)
    scores = {}
    for name in dict.fromkeys(names):
        with without_trace(network, seed=seed) as copy:
            scores[name] = MEASURES[name](copy, example)
    sizes = {"n_parameters": network.plan.n_parameters, "multiply_adds": network.plan.multiply_adds}
    return {**scores, **{name: float(size) for name, size in sizes.items()}}
