"""Measures of a planned network by which two networks can be compared: layer masses and path lengths.

They are those of Kandasamy et al. 2018, "Neural Architecture Search with Bayesian Optimisation and Optimal Transport"
(arXiv 1802.07191), whose distance moves the mass of one network's layers to the other's. Parameters, multiply-adds and
depth stand in the plan itself. All is arithmetic on a plan, linear in layers and connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nord_hpc.builder.plan import NetworkPlan, Step

OUTER_SHARE = 0.1
"""Mass of each input and output layer, and of all decision layers together, as a share of that of all others."""

LEAST_OUTER_MASS = 100.0
"""That mass is at least this, so that it counts in small networks too; so it is in NORD."""

_WEIGHTED = ("Conv", "SeparableConv", "Linear", "Embedding", "PositionLinear", "RecurrentCell")
_OUTER_KINDS = ("Input", "Output")


class PathLengths(NamedTuple):
    """Connections on the ways between a layer and one end of the network.

    Attributes:
        shortest, longest: over all ways.
        random_walk: expected, where each step goes to one of the neighbours, all alike.
    """

    shortest: int
    longest: int
    random_walk: float


class Position(NamedTuple):
    """Where in a network a layer stands: the ways to it from the input, and from it to the output."""

    from_input: PathLengths
    to_output: PathLengths


def layer_masses(plan: NetworkPlan) -> dict[str, float]:
    """The mass of each layer of a network, by name: how much computation it stands for.

    - Convolutions, dense layers and custom layers with weights: incoming channels x channels of its own. The channels
      of all inputs are added up, as they arrive, whatever the join makes of them.
    - Poolings: incoming channels.
    - Activations, normalizations and all else without mixing weights: 0, as the paper counts them to the layer that
      they follow.
    - Layers that only stand for input and output: `OUTER_SHARE` of the sum of those above each, and at least
      `LEAST_OUTER_MASS`. Such are "Input", "Output", and a first layer that is an identity.
    - The dense layer that ends the head is a decision layer and has the mass of one outer layer.
    """
    steps = plan.steps
    masses = {}
    outer = []
    for index, step in enumerate(steps):
        if _is_outer(step, index) or _decides(step, index, n_steps=len(steps)):
            outer.append(step.layer)
            masses[step.layer] = 0.0
            continue
        incoming = sum(steps[adapter.source].output_shape[0] for adapter in step.inputs) or step.input_shape[0]
        if step.flatten:
            incoming = step.parameters["in_features"]
        masses[step.layer] = float(_channel_products(step, incoming))
    outer_mass = max(OUTER_SHARE * sum(masses.values()), LEAST_OUTER_MASS)
    return {layer: outer_mass if layer in outer else mass for layer, mass in masses.items()}


def positions(plan: NetworkPlan) -> dict[str, Position]:
    """Where each layer of a network stands, by name: the path lengths of the paper, counted in connections."""
    steps = plan.steps
    sources = [[adapter.source for adapter in step.inputs] for step in steps]
    readers: list[list[int]] = [[] for _ in steps]
    for index, inputs in enumerate(sources):
        for source in inputs:
            readers[source].append(index)
    from_input = _lengths(sources, order=range(len(steps)))
    to_output = _lengths(readers, order=range(len(steps) - 1, -1, -1))
    return {
        step.layer: Position(before, after) for step, before, after in zip(steps, from_input, to_output, strict=True)
    }


def _is_outer(step: Step, index: int) -> bool:
    return step.kind in _OUTER_KINDS or (step.kind == "Identity" and index == 0)


def _decides(step: Step, index: int, *, n_steps: int) -> bool:
    return index == n_steps - 1 and step.kind in ("Linear", "PositionLinear") and step.layer.startswith("head.")


def _channel_products(step: Step, incoming: int) -> int:
    custom = ":" in step.kind and step.n_parameters > 0
    if step.kind.startswith(_WEIGHTED) or custom:
        return incoming * step.output_shape[0]
    return incoming if "Pool" in step.kind else 0


def _lengths(neighbours: Sequence[Sequence[int]], *, order: Sequence[int]) -> list[PathLengths]:
    """Path lengths of each step to the one without neighbours; `order` has each step after its neighbours."""
    lengths = [PathLengths(0, 0, 0.0)] * len(neighbours)
    for index in order:
        found = [lengths[neighbour] for neighbour in neighbours[index]]
        if found:
            lengths[index] = PathLengths(
                1 + min(length.shortest for length in found),
                1 + max(length.longest for length in found),
                1 + sum(length.random_walk for length in found) / len(found),
            )
    return lengths
