"""Canonical form of a labelled directed acyclic graph with one way in and one way out; knows nothing of networks.

Two graphs get one form exactly when they are isomorphic with their labels, where only nodes on a path from `first` to
`last` count, the order of a node's inputs counts where its join is ordered, and the join of a single input does not.

Nodes are sorted by their longest distance from `first`, then by label and inputs. Where that leaves ties, colour
refinement splits them; what it cannot split falls into independent components; and inside a component one node after
the other is singled out, with the automorphisms found on the way sparing the equivalent ones. Everything is sorted and
compared by value, so the result is the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import NamedTuple

from nord_hpc.errors import Infeasible

ORDERED_JOINS = frozenset({"concat"})
"""Joins whose result depends on the order of the inputs."""

Automorphism = dict[int, int]
Certificate = tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]


class CanonicalForm(NamedTuple):
    """The canonical form of a graph.

    Attributes:
        order: names of the live nodes, first to last, in a topological order that does not depend on names.
        inputs: for each of them the positions in `order` of its live inputs: ascending, or in their own order where
            the join is ordered.
        sha256: digest in hexadecimal; equal exactly for isomorphic graphs.
    """

    order: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    sha256: str


def canonical_form(
    *,
    first: str,
    last: str,
    labels: Mapping[str, str],
    joins: Mapping[str, str],
    inputs: Mapping[str, Collection[str]],
) -> CanonicalForm:
    """The canonical form of a graph.

    Args:
        first: the node that is the way in.
        last: the node that is the way out.
        labels: of every node; text without line breaks and tabulators.
        joins: of every node: how several inputs become one.
        inputs: of every node, in their own order, each at most once.

    Raises:
        Infeasible: no path leads from `first` to `last`, or a cycle lies on one.
    """
    levels, live_inputs = _levels(first, last, inputs)
    texts = {
        name: f"{labels[name]}\t{joins[name]}" if len(sources) > 1 else labels[name]
        for name, sources in live_inputs.items()
    }
    position: dict[str, int] = {}
    tied = False
    start = 0
    for level in levels:
        if len(level) == 1:
            position[level[0]] = start
        else:
            tied |= _rank_level(level, start, texts, joins, live_inputs, position)
        start += len(level)
    if tied:
        order = _break_ties(position, joins, live_inputs)
        position = {name: place for place, name in enumerate(order)}
    else:
        order = sorted(position, key=position.__getitem__)
    rows = []
    places = []
    for name in order:
        sources = [position[source] for source in live_inputs[name]]
        if len(sources) > 1 and joins[name] not in ORDERED_JOINS:
            sources.sort()
        places.append(tuple(sources))
        rows.append(f"{texts[name]}\t{','.join(map(str, sources))}\n")
    digest = hashlib.sha256("".join(rows).encode()).hexdigest()
    return CanonicalForm(tuple(order), tuple(places), digest)


def _levels(
    first: str, last: str, inputs: Mapping[str, Collection[str]]
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """The live nodes by longest distance from `first`, and their live inputs."""
    outputs: dict[str, list[str]] = {last: []}
    pending = [last]
    while pending:
        name = pending.pop()
        for source in inputs[name]:
            if source in outputs:
                outputs[source].append(name)
            else:
                outputs[source] = [name]
                pending.append(source)
    if first not in outputs:
        raise Infeasible(f"no path from {first!r} to {last!r}")
    live = {first}
    pending = [first]
    while pending:
        for target in outputs[pending.pop()]:
            if target not in live:
                live.add(target)
                pending.append(target)
    live_inputs = {name: [source for source in inputs[name] if source in live] for name in live}
    waiting = {name: len(sources) for name, sources in live_inputs.items()}
    levels = []
    level = [first] if not waiting[first] else []
    n_placed = 0
    while level:
        levels.append(level)
        n_placed += len(level)
        following = []
        for name in level:
            for target in outputs[name]:
                waiting[target] -= 1
                if not waiting[target]:
                    following.append(target)
        level = following
    if n_placed < len(live):
        raise Infeasible(f"a cycle: {_describe_cycle(live_inputs, waiting)}")
    return levels, live_inputs


def _describe_cycle(live_inputs: Mapping[str, list[str]], waiting: Mapping[str, int]) -> str:
    """One cycle among the nodes that still wait, beginning with its smallest name."""
    name = min(name for name, count in waiting.items() if count)
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = min(source for source in live_inputs[name] if waiting[source])
    cycle = path[path.index(name) :][::-1]
    least = cycle.index(min(cycle))
    cycle = cycle[least:] + cycle[: least + 1]
    return " -> ".join(map(repr, cycle))


def _rank_level(
    level: list[str],
    start: int,
    texts: Mapping[str, str],
    joins: Mapping[str, str],
    live_inputs: Mapping[str, list[str]],
    position: dict[str, int],
) -> bool:
    """Give the nodes of a level colours, equal ones where they look alike so far; return whether any are equal."""
    keyed = []
    for name in level:
        colours = [position[source] for source in live_inputs[name]]
        if joins[name] not in ORDERED_JOINS:
            colours.sort()
        keyed.append((texts[name], colours, name))
    keyed.sort()
    tied = False
    colour = start
    previous: tuple[str, list[int]] | None = None
    for offset, (text, colours, name) in enumerate(keyed):
        if previous == (text, colours):
            tied = True
        else:
            colour = start + offset
            previous = (text, colours)
        position[name] = colour
    return tied


def _break_ties(
    position: Mapping[str, int], joins: Mapping[str, str], live_inputs: Mapping[str, list[str]]
) -> list[str]:
    names = sorted(position, key=position.__getitem__)
    index = {name: node for node, name in enumerate(names)}
    graph = _Graph(len(names))
    for name in names:
        sources = live_inputs[name]
        ordered = len(sources) > 1 and joins[name] in ORDERED_JOINS
        for place, source in enumerate(sources, 1):
            graph.add_edge(index[source], index[name], place if ordered else 0)
    colour = {node: position[name] for node, name in enumerate(names)}
    return [names[node] for node in _solve(graph, colour, thorough=True).order]


class _Graph:
    """A directed graph over 0 .. n - 1 whose edges carry an integer mark: the place among ordered inputs, else 0."""

    def __init__(self, n_nodes: int) -> None:
        self.sources: list[dict[int, int]] = [{} for _ in range(n_nodes)]
        self.targets: list[dict[int, int]] = [{} for _ in range(n_nodes)]

    def add_edge(self, source: int, target: int, mark: int) -> None:
        self.sources[target][source] = mark
        self.targets[source][target] = mark

    def certificate(self, order: list[int], colour: Mapping[int, int]) -> Certificate:
        """All that can be seen of the nodes in this order: their colours, and the edges between their places."""
        place = {node: index for index, node in enumerate(order)}
        edges = [
            (place[source], index, mark)
            for index, node in enumerate(order)
            for source, mark in self.sources[node].items()
            if source in place
        ]
        return tuple(colour[node] for node in order), tuple(sorted(edges))


class _Solution(NamedTuple):
    """Nodes in an order, what is seen of them in it, and automorphisms of them that keep all colours."""

    order: list[int]
    certificate: Certificate
    automorphisms: list[Automorphism]


def _solve(graph: _Graph, colour: Mapping[int, int], *, thorough: bool) -> _Solution:
    """Order the coloured nodes, topologically and by colour.

    Edges to nodes that are not in `colour` are the same for all nodes of a colour, and do not count. A colour is the
    first of as many integers as it has nodes, and an edge leads from a smaller colour to a larger one.

    Args:
        thorough: find the order with the smallest certificate, which isomorphic graphs have in common. Otherwise
            some order, quickly, in which isomorphic graphs may differ.
    """
    refined, cells = _refine(graph, colour)
    parts = [_solve_part(graph, part, refined, thorough=thorough) for part in _components(graph, refined, cells)]
    parts.sort(key=lambda part: part.certificate)
    automorphisms = [automorphism for part in parts for automorphism in part.automorphisms]
    rank: dict[int, int] = {}
    for part in parts:
        for node in part.order:
            rank[node] = len(rank)
    for part, following in pairwise(parts):
        if part.certificate == following.certificate:
            there = dict(zip(part.order, following.order, strict=True))
            automorphisms.append(there | {target: source for source, target in there.items()})
    order = sorted(refined, key=lambda node: (refined[node], rank.get(node, 0)))
    return _Solution(order, graph.certificate(order, refined), automorphisms)


def _refine(graph: _Graph, colour: Mapping[int, int]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Split colours until all nodes of one have equally many neighbours of each other one; also the nodes by colour."""
    refined = dict(colour)
    cells: dict[int, list[int]] = {}
    for node, value in refined.items():
        cells.setdefault(value, []).append(node)
    settled = False
    while not settled:
        settled = True
        for neighbours, backwards in ((graph.sources, False), (graph.targets, True)):
            for value in sorted((value for value, cell in cells.items() if len(cell) > 1), reverse=backwards):
                settled &= not _split(cells, value, refined, neighbours)
    return refined, cells


def _split(cells: dict[int, list[int]], value: int, colour: dict[int, int], neighbours: list[dict[int, int]]) -> bool:
    """Split one colour by the colours of its neighbours; return whether it fell apart."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for node in cells[value]:
        seen = sorted((colour[other], mark) for other, mark in neighbours[node].items() if other in colour)
        groups.setdefault(tuple(seen), []).append(node)
    if len(groups) == 1:
        return False
    for _, group in sorted(groups.items()):
        cells[value] = group
        for node in group:
            colour[node] = value
        value += len(group)
    return True


def _components(graph: _Graph, colour: Mapping[int, int], cells: Mapping[int, list[int]]) -> list[list[int]]:
    """The nodes that share their colour, in groups such that between two groups the colours alone tell the edges.

    Between two colours one relation (no edge, or an edge with some mark) is the most frequent; nodes belong together
    where theirs is another one.
    """
    parent = {node: node for cell in cells.values() if len(cell) > 1 for node in cell}
    edges: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for target in parent:
        for source, mark in graph.sources[target].items():
            if source in parent:
                edges.setdefault((colour[source], colour[target]), []).append((source, target, mark))
    for (lower, upper), between in edges.items():
        for source, target in _exceptions(cells[lower], cells[upper], between):
            parent[_root(parent, source)] = _root(parent, target)
    groups: dict[int, list[int]] = {}
    for node in parent:
        groups.setdefault(_root(parent, node), []).append(node)
    return list(groups.values())


def _exceptions(lower: list[int], upper: list[int], between: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The pairs of two colours whose relation is not the most frequent one."""
    counts: dict[int, int] = {}
    for _, _, mark in between:
        counts[mark] = counts.get(mark, 0) + 1
    most = min(counts, key=lambda mark: (-counts[mark], mark))
    if 2 * counts[most] <= len(lower) * len(upper):
        return [(source, target) for source, target, _ in between]
    usual = {(source, target) for source, target, mark in between if mark == most}
    return [(source, target) for source in lower for target in upper if (source, target) not in usual]


def _root(parent: dict[int, int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def _solve_part(graph: _Graph, part: list[int], colour: Mapping[int, int], *, thorough: bool) -> _Solution:
    """Order one component, by singling out the nodes of its smallest shared colour one after the other."""
    own = {node: colour[node] for node in part}
    cells: dict[int, list[int]] = {}
    for node, value in own.items():
        cells.setdefault(value, []).append(node)
    shared = [(len(cell), value) for value, cell in cells.items() if len(cell) > 1]
    if not shared:
        order = sorted(part, key=own.__getitem__)
        return _Solution(order, graph.certificate(order, own), [])
    value = min(shared)[1]
    candidates = cells[value]
    if not thorough:
        return _with_colours(graph, _solve(graph, _single_out(own, candidates, 0), thorough=False), own)
    return _least(graph, own, candidates)


def _least(graph: _Graph, colour: Mapping[int, int], candidates: list[int]) -> _Solution:
    """The least solution over all ways to single out one candidate; of equivalent candidates one is tried."""
    automorphisms: list[Automorphism] = []
    parent = {node: node for node in colour}
    quick: dict[Certificate, list[int]] = {}
    best: _Solution | None = None
    tried: set[int] = set()

    def learn(automorphism: Automorphism) -> None:
        automorphisms.append(automorphism)
        for node, image in automorphism.items():
            parent[_root(parent, node)] = _root(parent, image)

    for index, candidate in enumerate(candidates):
        if any(_root(parent, candidate) == _root(parent, other) for other in tried):
            continue
        singled = _single_out(colour, candidates, index)
        attempt = _solve(graph, singled, thorough=False)
        known = quick.get(attempt.certificate)
        if known is not None:
            learn(dict(zip(known, attempt.order, strict=True)))
            continue
        quick[attempt.certificate] = attempt.order
        solution = _solve(graph, singled, thorough=True)
        for automorphism in solution.automorphisms:
            learn(automorphism)
        if best is not None and solution.certificate == best.certificate:
            learn(dict(zip(best.order, solution.order, strict=True)))
        elif best is None or solution.certificate < best.certificate:
            best = solution
        tried.add(candidate)
    assert best is not None
    return _with_colours(graph, best._replace(automorphisms=automorphisms), colour)


def _single_out(colour: Mapping[int, int], candidates: list[int], index: int) -> dict[int, int]:
    """The colours with one candidate before the others of its colour."""
    singled = dict(colour)
    for place, node in enumerate(candidates):
        singled[node] += place != index
    return singled


def _with_colours(graph: _Graph, solution: _Solution, colour: Mapping[int, int]) -> _Solution:
    """The solution as seen with coarser colours, so that components can be compared."""
    return solution._replace(certificate=graph.certificate(solution.order, colour))
