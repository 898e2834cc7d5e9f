"""The plan of a network: every step with its shapes and costs, inferred from a descriptor without torch.

A plan is what `network.build` executes, and what the master judges a candidate by before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nord_hpc.builder import custom
from nord_hpc.builder.heads import Head
from nord_hpc.builder.joins import Adapter, SizePolicy, join_inputs
from nord_hpc.builder.operations import OPERATIONS
from nord_hpc.builder.shapes import Inferred, Shape, Site, describe
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.trial import Json

_BYTES_PER_VALUE = 4
_COPIES_OF_PARAMETERS = 4
"""Value, gradient, and two moments of the optimizer."""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of the network, with all that is needed to make and run it.

    Attributes:
        layer: its name in the descriptor; "head. ..." in the head.
        kind: as in the descriptor.
        factory: the class that makes it, as "module:Class" or "file.py:Class".
        parameters: that the class is made with; input widths are those of the data.
        inputs: in canonical order, or in their own order where they are concatenated; empty for the first step.
        join: "add", "mean" or "concat"; None for fewer than two inputs.
        flatten: whether the joined input is flattened before the layer.
        input_shape: joined, without the batch: (C,), (C, L), (C, H, W) or (C, D, H, W).
        output_shape: without the batch.
        n_parameters: trainable ones of the layer itself.
        multiply_adds: of one sample in the layer itself, forward.
        note: what the layer does differently from what was asked, by rule.
        n_inner_values: numbers of one sample that the backward pass keeps inside the layer.
    """

    layer: str
    kind: str
    factory: str
    parameters: Mapping[str, Json]
    inputs: tuple[Adapter, ...]
    join: str | None
    flatten: bool
    input_shape: Shape
    output_shape: Shape
    n_parameters: int
    multiply_adds: int
    note: str | None
    n_inner_values: int = 0


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """A network for one data set.

    Attributes:
        steps: in canonical order, then those of the head.
        input_shape, output_shape: of the network, without the batch.
        n_parameters: trainable, projections at the joins included.
        multiply_adds: of one sample, forward, in convolutions, dense layers and projections.
        n_values: numbers of one sample that the backward pass may keep: input, results of steps and on the way to them.
        depth: steps on the longest way from input to output.
        smallest_batch: samples that a training step needs: 2 where batch normalization sees one value a channel.
        notes: what is done differently from what was asked, one line for each layer.
    """

    steps: tuple[Step, ...]
    input_shape: Shape
    output_shape: Shape
    n_parameters: int
    multiply_adds: int
    n_values: int
    depth: int
    smallest_batch: int
    notes: tuple[str, ...]

    @property
    def n_layers(self) -> int:
        """Steps, those of the head included."""
        return len(self.steps)

    def memory_bytes(self, batch_per_rank: int) -> int:
        """Estimated peak of training: value, gradient and two moments of each parameter, and all results of a batch."""
        values = _COPIES_OF_PARAMETERS * self.n_parameters + self.n_values * batch_per_rank
        return values * _BYTES_PER_VALUE


def plan(
    descriptor: NeuralDescriptor,
    *,
    input_shape: Sequence[int],
    n_outputs: int | None,
    head: Head | Mapping[str, Json] | None = None,
    size_policy: SizePolicy = "smallest",
    folder: Path = Path("."),
) -> NetworkPlan:
    """Infer the network that a descriptor stands for on data of one shape. Linear in layers and connections.

    Args:
        input_shape: of one sample: (C,), (C, L), (C, H, W) or (C, D, H, W).
        n_outputs: width of the network's output; None for a network without head, whatever it gives.
        head: the dense part; by default average pooling and one dense layer.
        size_policy: to which size maps are scaled where they meet.
        folder: where relative files of custom layers are looked for.

    Raises:
        Infeasible: names the layer, and the shapes where shapes are the matter.
        BadInput: a custom layer's class cannot be imported, or the head is wrong.
    """
    form = descriptor.canonical_form()
    layers = descriptor.layers
    planner = _Planner(tuple(input_shape), size_policy, folder)
    for name, sources in zip(form.order, form.inputs, strict=True):
        layer = layers[name]
        planner.add(name, layer.kind, layer.parameters, sources, layer.join)
    if n_outputs is None:
        return planner.finish()
    if head is None:
        head = Head()
    elif not isinstance(head, Head):
        head = Head.from_json(head)
    features = planner.steps[-1].output_shape
    for name, kind, parameters in head.operations(features, n_outputs):
        planner.add(name, kind, parameters, (len(planner.steps) - 1,), "add")
    last, wanted = planner.steps[-1], head.output_shape(features, n_outputs)
    if last.output_shape != wanted:
        Site(last.layer, last.kind).refuse(
            f"is the last one and gives {describe(last.output_shape)}, not of {'x'.join(map(str, wanted))}"
        )
    if head.tied:
        _check_tied(last, planner.steps[0])
    return planner.finish()


def _check_tied(last: Step, first: Step) -> None:
    """Refuse to tie what is no embedding, or is of another shape."""
    if first.kind != "Embedding":
        Site(last.layer, last.kind).refuse(f"is tied, but the first layer is a {first.kind} and no Embedding")
    if first.parameters["embedding_dim"] != last.parameters["in_features"]:
        Site(last.layer, last.kind).refuse(
            f"is tied, but gets {last.parameters['in_features']} features, and the embedding has "
            f"{first.parameters['embedding_dim']}"
        )


class _Planner:
    """Steps so far, and their sums."""

    def __init__(self, input_shape: Shape, size_policy: SizePolicy, folder: Path) -> None:
        self.steps: list[Step] = []
        self._input_shape = input_shape
        self._size_policy = size_policy
        self._folder = folder
        self._depths: list[int] = []

    def add(self, name: str, kind: str, parameters: Mapping[str, Json], sources: Sequence[int], join: str) -> None:
        site = Site(name, kind)
        steps = self.steps
        adapters: tuple[Adapter, ...] = ()
        shape = self._input_shape
        depth = 0
        if len(sources) == 1:
            shape = steps[sources[0]].output_shape
            adapters = (Adapter(sources[0], shape),)
            depth = self._depths[sources[0]]
        elif sources:
            shapes = [steps[source].output_shape for source in sources]
            adapters, shape = join_inputs(site, sources, shapes, join=join, policy=self._size_policy)
            depth = max([self._depths[source] for source in sources])
        factory, inferred = self._infer(site, parameters, shape)
        self._depths.append(depth + 1)
        steps.append(
            Step(
                layer=name,
                kind=kind,
                factory=factory,
                parameters=inferred.parameters,
                inputs=adapters,
                join=join if len(sources) > 1 else None,
                flatten=inferred.flatten,
                input_shape=shape,
                output_shape=inferred.output_shape,
                n_parameters=inferred.n_parameters,
                multiply_adds=inferred.multiply_adds,
                note=inferred.note,
                n_inner_values=inferred.n_inner_values,
            )
        )

    def _infer(self, site: Site, parameters: Mapping[str, Json], shape: Shape) -> tuple[str, Inferred]:
        operation = OPERATIONS.get(site.kind)
        if operation is None:
            factory = custom.factory_of(site)
            return factory, custom.infer(site, factory, parameters, shape, folder=self._folder)
        if not operation.accepts.issuperset(parameters):
            unknown = min(parameters.keys() - operation.accepts)
            site.refuse(f"has no parameter {unknown!r}: set any of {', '.join(sorted(operation.accepts)) or 'none'}")
        return operation.factory, operation.rule(site, parameters, shape)

    def finish(self) -> NetworkPlan:
        n_parameters = multiply_adds = 0
        n_values = prod(self._input_shape)
        smallest_batch = 1
        for step in self.steps:
            n_parameters += step.n_parameters
            multiply_adds += step.multiply_adds
            n_values += prod(step.output_shape) + step.n_inner_values
            if step.join is not None:
                n_values += prod(step.input_shape)
                for adapter in step.inputs:
                    n_parameters += adapter.n_parameters
                    multiply_adds += adapter.multiply_adds
                    n_values += adapter.n_values
            if step.kind.startswith("BatchNorm") and prod(step.input_shape[1:]) == 1:
                smallest_batch = 2
        return NetworkPlan(
            steps=tuple(self.steps),
            input_shape=self._input_shape,
            output_shape=self.steps[-1].output_shape,
            n_parameters=n_parameters,
            multiply_adds=multiply_adds,
            n_values=n_values,
            depth=self._depths[-1],
            smallest_batch=smallest_batch,
            notes=tuple(f"layer {step.layer!r} ({step.kind}): {step.note}" for step in self.steps if step.note),
        )
