"""Cells as descriptors and back: one canonical hash for each cell, as the benchmark's own hash has it."""

from __future__ import annotations

from itertools import product

import pytest
from nasbench101_example import DOCUMENTED, DOCUMENTED_HASH, matrix_of

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench101 import CONV1X1, CONV3X3, INPUT, MAXPOOL3X3, OPERATIONS, OUTPUT, ModelSpec, spec_of
from nord_hpc.nasbench101.descriptors import to_descriptor
from nord_hpc.nasbench101.spec import kept_vertices


def test_a_descriptor_has_a_layer_for_each_vertex() -> None:
    descriptor = to_descriptor(ModelSpec(matrix_of(4, "0-1 0-3 1-2 2-3"), [INPUT, CONV1X1, MAXPOOL3X3, OUTPUT]))
    assert [(name, layer.kind) for name, layer in descriptor.layers.items()] == [
        ("input", "input"),
        ("1", "conv1x1-bn-relu"),
        ("2", "maxpool3x3"),
        ("output", "output"),
    ]
    assert descriptor.connections == [("input", "1"), ("1", "2"), ("input", "output"), ("2", "output")]
    assert spec_of(to_descriptor(DOCUMENTED)).module_hash == DOCUMENTED_HASH


def test_a_descriptor_by_hand_in_any_order() -> None:
    edges = [("in", "first"), ("in", "out"), ("first", "second"), ("second", "out"), ("second", "dead")]
    kinds = {"in": "input", "first": CONV3X3, "second": MAXPOOL3X3, "dead": CONV1X1, "out": "output"}
    specs = []
    for reverse in (False, True):
        d = NeuralDescriptor()
        for name in sorted(kinds, reverse=reverse):
            d.add_layer(kinds[name], None, name)
        for source, target in sorted(edges, reverse=reverse):
            d.connect_layers(source, target)
        d.first_layer, d.last_layer = "in", "out"
        specs.append(spec_of(d))
    assert specs[0] == specs[1]
    assert specs[0].operations == (INPUT, CONV3X3, MAXPOOL3X3, OUTPUT)
    assert [list(row) for row in specs[0].matrix] == matrix_of(4, "0-1 0-3 1-2 2-3")


@pytest.mark.parametrize(("vertices", "expected"), [((2, 3, 4), 91), ((2, 3, 4, 5), 2532)])
def test_distinct_cells_have_distinct_ids(vertices: tuple[int, ...], expected: int) -> None:
    """All drawings of all cells without dead vertices; both hashes tell the same ones apart."""
    canonical: dict[str, str] = {}
    for n in vertices:
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        for bits in product((0, 1), repeat=len(pairs)):
            matrix = [[0] * n for _ in range(n)]
            for (i, j), bit in zip(pairs, bits, strict=True):
                matrix[i][j] = bit
            if sum(bits) > 9 or len(kept_vertices(matrix)) < n:
                continue
            for inner in product(OPERATIONS, repeat=n - 2):
                spec = ModelSpec(matrix, [INPUT, *inner, OUTPUT])
                seen = canonical.setdefault(to_descriptor(spec).canonical_hash(), spec.module_hash)
                assert seen == spec.module_hash
    assert len(canonical) == expected
    assert len(set(canonical.values())) == expected


def test_other_descriptors_are_no_cells() -> None:
    d = NeuralDescriptor()
    d.add_layer("input", None, "in")
    d.add_layer_sequential("Conv2d", {"out_channels": 8, "kernel_size": 3}, "conv")
    d.add_layer_sequential("output", None, "out")
    with pytest.raises(
        Infeasible, match=r"layer 'conv' \(Conv2d\) is no vertex of NAS-Bench-101; set one of input, conv3"
    ):
        spec_of(d)
    long = NeuralDescriptor()
    for kind in ("input", *[CONV3X3] * 6, "output"):
        long.add_layer_sequential(kind)
    with pytest.raises(Infeasible, match="the cell has 8 vertices, more than 7"):
        spec_of(long)
    endless = NeuralDescriptor()
    endless.add_layer_sequential("input")
    endless.add_layer_sequential(CONV3X3)
    with pytest.raises(Infeasible, match="the cell goes from 'input' to 'conv3x3-bn-relu'"):
        spec_of(endless)
