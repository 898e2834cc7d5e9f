"""Cells of NAS-Bench-201 as descriptors, an edge's operation as a layer, and back.

The descriptor has a layer for each of the six edges, named "source-target", whatever it does, so that the cell can be
read from it. What is connected is what the cell computes: zeros and what they alone feed are left out, a skip is a
connection, sums of sums are one sum, and what a sum has more than once is scaled. The canonical hash is that of this
graph, so that cells which compute the same function of the same weights have one hash.
"""

from __future__ import annotations

import functools

from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201.cell import EDGES, N_CELLS, N_NODES, NONE, OPERATIONS, SKIP, Cell, cell_of_index

INPUT = "input"
OUTPUT = "output"
SUM = "sum"

EDGE_NAMES = tuple(f"{source}-{target}" for source, target in EDGES)

_SCALES = {n: Layer("ScaleLayer", {"scale": n}) for n in range(2, 5)}


def to_descriptor(cell: Cell) -> NeuralDescriptor:
    """The cell as a descriptor from a layer of kind "input" to one of kind "output".

    A cell that computes nothing is a layer of kind "none" between them. Cells of other benchmarks that have the same
    edges are drawn alike: all operations but "none" and "skip_connect" may have other names.
    """
    descriptor = NeuralDescriptor()
    descriptor.add_made_layer(INPUT, _layer(INPUT))
    operations = dict(zip(EDGES, cell, strict=True))
    # For each node the layers whose sum it is, with the number of times; none where it is zero.
    terms: list[dict[str, int]] = [{INPUT: 1}]
    values: list[str | None] = [INPUT]
    for target in range(1, N_NODES):
        sums: dict[str, int] = {}
        for source in range(target):
            operation, value = operations[source, target], values[source]
            name = f"{source}-{target}"
            descriptor.add_made_layer(name, _layer(operation), () if value is None else (value,))
            if operation == NONE or value is None:
                continue
            for term, times in terms[source].items() if operation == SKIP else ((name, 1),):
                sums[term] = sums.get(term, 0) + times
        terms.append(sums)
        values.append(_add_node(descriptor, target, sums))
    return descriptor


def from_descriptor(descriptor: NeuralDescriptor) -> Cell:
    """The cell of a descriptor: its own, where it has the six edges; else the first that computes the same.

    Raises:
        Infeasible: it is no cell of this space.
    """
    layers = descriptor.layers
    if all(name in layers for name in EDGE_NAMES):
        cell = tuple([layers[name].kind for name in EDGE_NAMES])
        if set(cell) <= set(OPERATIONS) and to_descriptor(cell).canonical_hash() == descriptor.canonical_hash():
            return cell
    index = _first_with_hash().get(descriptor.canonical_hash())
    if index is None:
        kinds = ", ".join(sorted({layer.kind for layer in layers.values()}))
        raise Infeasible(f"a network of {kinds} is no cell of NAS-Bench-201")
    return cell_of_index(index)


def _add_node(descriptor: NeuralDescriptor, node: int, sums: dict[str, int]) -> str | None:
    """Add the layer of a node where it needs one; returns the layer that has its value, None for zero."""
    is_output = node == N_NODES - 1
    if not sums:
        if not is_output:
            return None
        descriptor.add_made_layer("zero", _layer(NONE), (INPUT,))
        sums = {"zero": 1}
    sources = []
    for term, times in sums.items():
        scaled = term if times == 1 else f"{times} x {term}"
        if scaled not in descriptor.layers:
            descriptor.add_made_layer(scaled, _SCALES[times], (term,))
        sources.append(scaled)
    if is_output:
        descriptor.add_made_layer(OUTPUT, _layer(OUTPUT), sources)
        return OUTPUT
    if len(sources) == 1:
        return sources[0]
    descriptor.add_made_layer(f"{SUM} {node}", _layer(SUM), sources)
    return f"{SUM} {node}"


@functools.cache
def _layer(kind: str) -> Layer:
    return Layer(kind, {})


@functools.cache
def _first_with_hash() -> dict[str, int]:
    """Canonical hash to the lowest number of a cell with it; made in a second or two."""
    found: dict[str, int] = {}
    for index in range(N_CELLS):
        found.setdefault(to_descriptor(cell_of_index(index)).canonical_hash(), index)
    return found
