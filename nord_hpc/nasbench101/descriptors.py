"""Cells of NAS-Bench-101 as descriptors, one layer a vertex with its label as the kind, and back."""

from __future__ import annotations

from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench101.spec import INPUT, MAX_VERTICES, OPERATIONS, OUTPUT, ModelSpec

_LAYERS = {label: Layer(label, {}) for label in (INPUT, *OPERATIONS, OUTPUT)}


def to_descriptor(spec: ModelSpec) -> NeuralDescriptor:
    """The cell as a descriptor; isomorphic cells have one canonical hash."""
    descriptor = NeuralDescriptor()
    names = [INPUT, *(str(vertex) for vertex in range(1, spec.n_vertices - 1)), OUTPUT]
    for j, (name, label) in enumerate(zip(names, spec.operations, strict=True)):
        descriptor.add_made_layer(name, _LAYERS[label], [names[i] for i in range(j) if spec.matrix[i][j]])
    return descriptor


def spec_of(descriptor: NeuralDescriptor) -> ModelSpec:
    """The cell that a descriptor of such layers describes: its vertices in canonical order, whatever their names.

    Raises:
        Infeasible: a layer is of another kind, or the cell is outside the space.
    """
    form = descriptor.canonical_form()
    layers = descriptor.layers
    operations = [layers[name].kind for name in form.order]
    for name, kind in zip(form.order, operations, strict=True):
        if kind not in _LAYERS:
            known = ", ".join(_LAYERS)
            raise Infeasible(f"layer {name!r} ({kind}) is no vertex of NAS-Bench-101; set one of {known}", layer=name)
    if len(operations) > MAX_VERTICES:
        raise Infeasible(f"the cell has {len(operations)} vertices, more than {MAX_VERTICES}")
    matrix = [[0] * len(operations) for _ in operations]
    for j, sources in enumerate(form.inputs):
        for i in sources:
            matrix[i][j] = 1
    return ModelSpec(matrix, operations)
