"""Genes of DeepNEAT: networks as numbered nodes and connections, and the operators on them; no state, no training.

After K. O. Stanley and R. Miikkulainen 2002, "Evolving Neural Networks through Augmenting Topologies", with layers as
nodes as in R. Miikkulainen et al. 2017, "Evolving Deep Neural Networks" (arXiv 1703.00548).

Everywhere the graph of all connections, disabled ones too, has no cycle, and each node is on a way from input to
output; the enabled connections alone lead from input to output. So an enabled connection never closes a cycle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from nord_hpc.descriptor import NeuralDescriptor

INPUT, OUTPUT = -2, -1
"""The numbers of the ends; they are no genes."""

FIELDS = ("out_channels", "dropout", "scale", "kernel_size", "pool")
"""What a node's values mean, in NORD's order."""

DISABLED_SHARE = 0.75
"""How often a connection that is disabled in one parent is disabled in the child; of the first paper."""

STEP_SHARE, STEP_SIZE = 0.7, 0.15
"""How often a number changes by a step and not to any other, and the step's standard deviation as a share of bounds."""

Value = int | float | bool
Values = tuple[Value, ...]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Kinds and inclusive bounds of the values of a node, in the order of `FIELDS`."""

    kinds: tuple[type, ...]
    low: Values
    high: Values

    def drawn(self, field: int, rng: np.random.Generator) -> Value:
        """A value, all alike; floats have three decimals."""
        return self._fitted(field, self.low[field] + rng.random() * self._width(field))

    def changed(self, field: int, value: Value, rng: np.random.Generator) -> Value:
        """Another value, near the old one or anywhere; the same where there is no other."""
        if rng.random() < STEP_SHARE and self.kinds[field] is not bool:
            step = rng.normal() * STEP_SIZE * self._width(field)
            near = self._fitted(field, value + step + (0.5 if self.kinds[field] is int else 0))
            if near != value:
                return near
        other = self.drawn(field, rng)
        if other != value:
            return other
        low, high = (self._fitted(field, bound[field]) for bound in (self.low, self.high))
        return high if value == low else low

    def contain(self, values: Sequence[Any]) -> bool:
        """Whether these are values of a node, by type too."""
        if len(values) != len(self.kinds) or any(
            type(v) is not kind for v, kind in zip(values, self.kinds, strict=True)
        ):
            return False
        return all(low <= v <= high for v, low, high in zip(values, self.low, self.high, strict=True))

    @property
    def open_fields(self) -> list[int]:
        """The fields that have more than one value."""
        return [field for field in range(len(self.kinds)) if self.low[field] < self.high[field]]

    def _width(self, field: int) -> float:
        whole = self.kinds[field] is not float
        return float(self.high[field]) - float(self.low[field]) + whole

    def _fitted(self, field: int, number: float) -> Value:
        low, high, kind = self.low[field], self.high[field], self.kinds[field]
        inside = min(max(number, low), high)
        return kind(round(inside, 3) if kind is float else int(inside))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class NodeGene:
    """A layer, of the values that `FIELDS` names."""

    innovation: int
    values: Values


@dataclass(frozen=True, slots=True)
class ConnectionGene:
    """A connection between two nodes or ends."""

    innovation: int
    source: int
    target: int
    enabled: bool = True


class Innovation:
    """Numbers of genes: structural changes that are the same have the same number, whoever makes them and when.

    A number follows from the change alone: a connection's from its ends, a node's from the connection that it splits,
    how often that has been split before in the same genome, and the generation. So no list of changes is shared.

    Attributes:
        generation: counts `new_generation`; a node that splits the same connection in another one is a different node.
    """

    def __init__(self) -> None:
        self.generation = 0

    def new_generation(self) -> None:
        """From now on, equal splits are not those of before."""
        self.generation += 1

    def connection(self, source: int, target: int) -> int:
        return _number("connection", source, target)

    def node(self, connection: int, copy: int) -> int:
        return _number("node", connection, copy, self.generation)


@dataclass(frozen=True, slots=True)
class Genes:
    """All genes of a network, each kind in the order of innovation numbers."""

    nodes: tuple[NodeGene, ...]
    connections: tuple[ConnectionGene, ...]

    @property
    def live(self) -> frozenset[int]:
        """Nodes on ways of enabled connections, and the ends; empty where there is no such way."""
        return _between(self.connections, enabled_only=True)

    @property
    def sound(self) -> bool:
        """Whether the graph is as the head of this file says."""
        numbers = {INPUT, OUTPUT, *(node.innovation for node in self.nodes)}
        if any(end not in numbers for gene in self.connections for end in (gene.source, gene.target)):
            return False
        if any(gene.source == OUTPUT or gene.target == INPUT for gene in self.connections):
            return False
        acyclic = len(order_of(numbers, self.connections)) == len(numbers)
        return acyclic and bool(self.live) and _between(self.connections, enabled_only=False) == numbers


def initial(innovation: Innovation) -> Genes:
    """The smallest network: input and output, connected."""
    return Genes((), (ConnectionGene(innovation.connection(INPUT, OUTPUT), INPUT, OUTPUT),))


def add_node(genes: Genes, bounds: Bounds, innovation: Innovation, rng: np.random.Generator) -> Genes:
    """Put a node into an enabled connection, which is disabled."""
    live = genes.live
    open_ones = [gene for gene in genes.connections if gene.enabled and gene.source in live and gene.target in live]
    split = _one_of(open_ones, rng)
    taken = {node.innovation for node in genes.nodes}
    copy = 0
    while innovation.node(split.innovation, copy) in taken:
        copy += 1
    number = innovation.node(split.innovation, copy)
    node = NodeGene(number, tuple(bounds.drawn(field, rng) for field in range(len(bounds.kinds))))
    ends = ((split.source, number), (number, split.target))
    connections = [ConnectionGene(innovation.connection(*pair), *pair) for pair in ends]
    kept = [replace(gene, enabled=False) if gene is split else gene for gene in genes.connections]
    return _sorted([*genes.nodes, node], [*kept, *connections])


def add_connection(genes: Genes, innovation: Innovation, rng: np.random.Generator) -> Genes | None:
    """Connect two nodes or ends that are not connected, along the direction of the others; None where all are."""
    numbers = order_of({INPUT, OUTPUT, *(node.innovation for node in genes.nodes)}, genes.connections)
    present = {(gene.source, gene.target) for gene in genes.connections}
    ahead = _reachable(genes.connections)
    pairs = [
        (source, target)
        for source in numbers
        for target in numbers
        if source not in (target, OUTPUT) and target != INPUT and (source, target) not in present
        if source not in ahead[target]
    ]
    if not pairs:
        return None
    pair = _one_of(pairs, rng)
    return _sorted(genes.nodes, [*genes.connections, ConnectionGene(innovation.connection(*pair), *pair)])


def toggle(genes: Genes, rng: np.random.Generator, *, least_live: int = 0) -> Genes | None:
    """Enable or disable a connection, so that a way with `least_live` nodes or more remains; None where none can be."""
    for place in _shuffled(len(genes.connections), rng):
        connections = list(genes.connections)
        connections[place] = replace(connections[place], enabled=not connections[place].enabled)
        changed = Genes(genes.nodes, tuple(connections))
        if len(changed.live) >= 2 + least_live:
            return changed
    return None


def change_values(genes: Genes, bounds: Bounds, rng: np.random.Generator) -> Genes | None:
    """Change one value of one node that is in use; None where there is no other value."""
    live = genes.live
    places = [place for place, node in enumerate(genes.nodes) if node.innovation in live]
    fields = bounds.open_fields
    if not places or not fields:
        return None
    place, field = _one_of(places, rng), _one_of(fields, rng)
    nodes = list(genes.nodes)
    values = list(nodes[place].values)
    values[field] = bounds.changed(field, values[field], rng)
    nodes[place] = replace(nodes[place], values=tuple(values))
    return Genes(tuple(nodes), genes.connections)


def crossover(
    first: Genes, second: Genes, rng: np.random.Generator, *, extra_share: float, max_nodes: int, least_live: int = 0
) -> Genes:
    """The genes of `first`, those with the same number in `second` taken from either, and some that only `second` has.

    Args:
        extra_share: chance of each connection that only `second` has, with the nodes at its ends; 0 where `first` is
            the fitter one.
        max_nodes: of the child.
        least_live: nodes in use; where fewer would be, connections are enabled as in `first`.
    """
    of_second = {node.innovation: node for node in second.nodes}
    nodes = {node.innovation: node for node in first.nodes}
    for number, node in nodes.items():
        twin = of_second.get(number, node)
        nodes[number] = _one_of((node, twin), rng)
    twins = {gene.innovation: gene for gene in second.connections}
    connections = {}
    for gene in first.connections:
        twin_gene = twins.pop(gene.innovation, gene)
        enabled = (gene.enabled and twin_gene.enabled) or bool(rng.random() >= DISABLED_SHARE)
        connections[gene.innovation] = replace(gene, enabled=enabled)
    for gene in twins.values():
        missing = [end for end in (gene.source, gene.target) if end not in nodes and end not in (INPUT, OUTPUT)]
        if rng.random() >= extra_share or len(nodes) + len(missing) > max_nodes:
            continue
        if gene.source in _reachable(connections.values()).get(gene.target, ()):
            continue
        nodes |= {end: of_second[end] for end in missing}
        connections[gene.innovation] = gene
    child = _without_loose_ends(nodes.values(), connections.values())
    if len(child.live) < 2 + least_live:
        enabled_in_first = {gene.innovation: gene.enabled for gene in first.connections}
        kept = [replace(gene, enabled=enabled_in_first.get(gene.innovation, False)) for gene in child.connections]
        child = Genes(child.nodes, tuple(kept))
    return child


def distance(first: Genes, second: Genes, bounds: Bounds, *, structure: float = 1.0, values: float = 0.4) -> float:
    """The compatibility distance of NEAT: the share of genes without a twin, and how far apart the twins are.

    structure x (genes that only one has) / (genes of the larger) + values x (mean difference of the values of nodes
    that both have, each as a share of its bounds). The paper tells excess genes from disjoint ones by age and weighs
    both alike; numbers that follow from the structure have no age. 0 for equal genes; symmetric.
    """
    numbers = [
        {node.innovation for node in genes.nodes} | {gene.innovation for gene in genes.connections}
        for genes in (first, second)
    ]
    unmatched = len(numbers[0] ^ numbers[1]) / max(map(len, numbers))
    twins = {node.innovation: node.values for node in second.nodes}
    pairs = [(node.values, twins[node.innovation]) for node in first.nodes if node.innovation in twins]
    fields = bounds.open_fields
    if not pairs or not fields:
        return structure * unmatched
    apart = sum(
        abs(one[field] - other[field]) / (bounds.high[field] - bounds.low[field])
        for one, other in pairs
        for field in fields
    )
    return structure * unmatched + values * apart / (len(pairs) * len(fields))


def to_descriptor(genes: Genes, *, dimensions: int, join: str = "add") -> NeuralDescriptor:
    """The network of the live genes: for each node a convolution, scaling, dropout, pooling and ReLU6.

    The convolution and the pooling have the node's kernel size, the latter as its stride too, and no padding. Scaling
    by 1, dropout of nothing and pooling of single values are left out. Names are those of NORD: "{number}in" to
    "{number}out", and "-2out" and "-1in" for the ends.
    """
    live = genes.live
    descriptor = NeuralDescriptor()
    for node in genes.nodes:
        if node.innovation in live:
            _add_layers(descriptor, node, dimensions=dimensions, join=join)
    descriptor.add_layer("Identity", None, f"{INPUT}out")
    descriptor.add_layer("Identity", None, f"{OUTPUT}in", join=join)
    descriptor.first_layer, descriptor.last_layer = f"{INPUT}out", f"{OUTPUT}in"
    for gene in genes.connections:
        if gene.enabled and gene.source in live and gene.target in live:
            descriptor.connect_layers(f"{gene.source}out", f"{gene.target}in")
    return descriptor


def order_of(numbers: Iterable[int], connections: Iterable[ConnectionGene]) -> list[int]:
    """Nodes and ends, each after those that feed it, else by number; those in or behind a cycle are left out."""
    targets: dict[int, list[int]] = {number: [] for number in sorted(numbers)}
    missing = dict.fromkeys(targets, 0)
    for gene in connections:
        targets[gene.source].append(gene.target)
        missing[gene.target] += 1
    ready = [number for number, n in missing.items() if n == 0]
    order = []
    while ready:
        number = ready.pop(0)
        order.append(number)
        for target in targets[number]:
            missing[target] -= 1
            if missing[target] == 0:
                ready.append(target)
    return order


def _add_layers(descriptor: NeuralDescriptor, node: NodeGene, *, dimensions: int, join: str) -> None:
    channels, dropout, scale, kernel, pool = node.values
    layers: list[tuple[str, str, Mapping[str, Any]]] = [
        ("in", f"Conv{dimensions}d", {"out_channels": int(channels), "kernel_size": int(kernel)})
    ]
    if scale != 1:
        layers.append(("scale", "ScaleLayer", {"scale": float(scale)}))
    if dropout:
        layers.append(("dout", "Dropout" if dimensions == 1 else f"Dropout{dimensions}d", {"p": float(dropout)}))
    if pool and kernel > 1:
        layers.append(("pool", f"MaxPool{dimensions}d", {"kernel_size": int(kernel), "stride": int(kernel)}))
    layers.append(("out", "ReLU6", {}))
    previous = None
    for suffix, kind, parameters in layers:
        name = descriptor.add_layer(kind, parameters, f"{node.innovation}{suffix}", join=join)
        if previous is not None:
            descriptor.connect_layers(previous, name)
        previous = name


def _between(connections: Iterable[ConnectionGene], *, enabled_only: bool) -> frozenset[int]:
    """Nodes on ways from input to output, and the ends; empty where there is no way."""
    forward: dict[int, list[int]] = {}
    backward: dict[int, list[int]] = {}
    for gene in connections:
        if gene.enabled or not enabled_only:
            forward.setdefault(gene.source, []).append(gene.target)
            backward.setdefault(gene.target, []).append(gene.source)
    return frozenset(_from(INPUT, forward) & _from(OUTPUT, backward))


def _reachable(connections: Iterable[ConnectionGene]) -> dict[int, set[int]]:
    """What each source leads to, itself included."""
    forward: dict[int, list[int]] = {OUTPUT: []}
    for gene in connections:
        forward.setdefault(gene.source, []).append(gene.target)
        forward.setdefault(gene.target, [])
    return {number: _from(number, forward) for number in forward}


def _from(start: int, neighbours: Mapping[int, Sequence[int]]) -> set[int]:
    seen = {start}
    waiting = [start]
    while waiting:
        for neighbour in neighbours.get(waiting.pop(), ()):
            if neighbour not in seen:
                seen.add(neighbour)
                waiting.append(neighbour)
    return seen


def _without_loose_ends(nodes: Iterable[NodeGene], connections: Iterable[ConnectionGene]) -> Genes:
    """The genes on ways from input to output, disabled ones included."""
    connections = list(connections)
    kept = _between(connections, enabled_only=False)
    return _sorted(
        [node for node in nodes if node.innovation in kept],
        [gene for gene in connections if gene.source in kept and gene.target in kept],
    )


def _sorted(nodes: Iterable[NodeGene], connections: Iterable[ConnectionGene]) -> Genes:
    return Genes(
        tuple(sorted(nodes, key=lambda gene: gene.innovation)),
        tuple(sorted(connections, key=lambda gene: gene.innovation)),
    )


def _number(*change: object) -> int:
    """A number of 48 bits, so that JSON keeps it in every language; never that of an end."""
    text = "/".join(map(str, change))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _one_of(items: Sequence[_Item], rng: np.random.Generator) -> _Item:
    return items[int(rng.random() * len(items))]


def _shuffled(n: int, rng: np.random.Generator) -> list[int]:
    keys = rng.random(n).tolist()
    return sorted(range(n), key=keys.__getitem__)
