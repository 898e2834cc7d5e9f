"""NeuralNet: a descriptor as a network for data of one shape, with its dense part; drawing is left to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nord_hpc import seeding
from nord_hpc.builder.heads import Head
from nord_hpc.builder.joins import SizePolicy
from nord_hpc.builder.network import Network, build
from nord_hpc.builder.plan import NetworkPlan, plan
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.scripting.dense_parts import DensePart, make_dense_part
from nord_hpc.scripting.sizes import KeepDimensions, with_kept_sizes

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]
    from matplotlib.figure import Figure

Dense = str | DensePart | Head | Mapping[str, Any] | None


class NeuralNet(nn.Module):
    """The network of a descriptor. It never raises for a descriptor that cannot be built; see `functional`.

    Args:
        net_descriptor: it is not changed, and later changes of it do not matter.
        num_classes: width of the output.
        input_shape: of one sample without channels: (length,), (height, width), (depth, height, width); () for vectors.
        input_channels: of the samples; the first layers take these, whatever widths they were given.
        sort: put the depth of each layer before its name in `layers` and `to_networkx`.
        untrained: the descriptor's layers keep their random weights; the dense part alone can be trained.
        keep_dimensions: see `nord_hpc.scripting.sizes`; None lets maps shrink as their layers say.
        dense_part: a head of the builder or its JSON form; the name "dense_net" or "dense_batch_net"; a callable from
            the number of features to layers by name; or a module. None for average pooling of large maps and one dense
            layer.
        size_policy: to which size maps are scaled where they meet.
        seed: of the weights; None for one from torch's generator.
        folder: that files of custom layers are relative to.

    Attributes:
        functional: whether it could be built.
        reason: why not; None if it could.
        descriptor: a copy of what was given.
        plan: shapes and costs of the layers; None where it could not be built.
    """

    def __init__(
        self,
        net_descriptor: NeuralDescriptor,
        num_classes: int,
        input_shape: Sequence[int],
        input_channels: int,
        sort: bool = False,
        untrained: bool = False,
        keep_dimensions: KeepDimensions = None,
        dense_part: Dense = None,
        *,
        size_policy: SizePolicy = "smallest",
        seed: int | None = None,
        folder: Path = Path("."),
    ) -> None:
        super().__init__()
        self.descriptor = net_descriptor.copy()
        self.num_classes = num_classes
        self.input_shape = (input_channels, *input_shape)
        self.functional = True
        self.reason: str | None = None
        self.plan: NetworkPlan | None = None
        self.body: Network | None = None
        self.dense: nn.Module | None = None
        self._built = self.descriptor
        self._sort = sort
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        try:
            self._build(keep_dimensions, dense_part, size_policy=size_policy, seed=seed, folder=folder)
        except Infeasible as error:
            self.functional, self.reason = False, error.reason
            self.plan = self.body = self.dense = None
            return
        if untrained:
            self._freeze_layers()

    def _build(
        self, keep_dimensions: KeepDimensions, dense_part: Dense, *, size_policy: SizePolicy, seed: int, folder: Path
    ) -> None:
        descriptor = self._built = with_kept_sizes(self.descriptor, keep_dimensions)
        has_head = dense_part is None or isinstance(dense_part, (Head, Mapping))
        if has_head:
            head = Head(features="auto") if dense_part is None else dense_part
        self.plan = plan(
            descriptor,
            input_shape=self.input_shape,
            n_outputs=self.num_classes if has_head else None,
            head=head if has_head else None,  # type: ignore[arg-type]
            size_policy=size_policy,
            folder=folder,
        )
        self._n_layers = len(descriptor.canonical_order())
        self.body = build(self.plan, seed=seed, folder=folder)
        if not has_head:
            n_features = 1
            for size in self.plan.output_shape:
                n_features *= size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.derived_seed(seed, "dense part"))
                self.dense = make_dense_part(
                    dense_part,  # type: ignore[arg-type]
                    input_size=n_features,
                    output_size=self.num_classes,
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, ...] to [N, num_classes].

        Raises:
            Infeasible: the network could not be built.
        """
        if self.body is None:
            raise Infeasible(f"this network could not be built: {self.reason}")
        features: torch.Tensor = self.body(x)
        if self.dense is None:
            return features
        outputs: torch.Tensor = self.dense(features.flatten(1))
        return outputs

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers between the first and the last one and those of the head, by name, in the order they run in."""
        if self.body is None:
            return {}
        return {name: self.body.get_submodule(f"layer{index}") for index, name in enumerate(self._names())}

    @property
    def n_parameters(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def to_networkx(self) -> networkx.DiGraph:
        """The network as it is built: nodes with `kind`, `shape` of the output and `n_parameters`, and connections.

        Where it could not be built: the graph of the descriptor.
        """
        if self.plan is None:
            return self.descriptor.to_networkx()
        import networkx

        graph, names = networkx.DiGraph(), self._names()
        for name, step in zip(names, self.plan.steps, strict=True):
            graph.add_node(name, kind=step.kind, shape=step.output_shape, n_parameters=step.n_parameters)
            graph.add_edges_from((names[adapter.source], name) for adapter in step.inputs)
        return graph

    def plot(self, title: str | None = None) -> Figure:
        """The network as specified and, below it in the same places, as it is built. Opens no window.

        Where it could not be built, the specification alone.
        """
        from nord_hpc.report.networks import both_figure, specification_figure

        if self.plan is None:
            return specification_figure(self.descriptor, title=title)
        return both_figure(self._built, self.plan, title=title)

    def _names(self) -> list[str]:
        """A name for each step, in their order."""
        assert self.plan is not None
        if not self._sort:
            return [step.layer for step in self.plan.steps]
        depths: list[int] = []
        for step in self.plan.steps:
            depths.append(1 + max((depths[adapter.source] for adapter in step.inputs), default=0))
        return [f"{depth:03d}_{step.layer}" for depth, step in zip(depths, self.plan.steps, strict=True)]

    def _freeze_layers(self) -> None:
        assert self.body is not None
        for name, parameter in self.body.named_parameters():
            module = name.partition(".")[0]
            index = int(module.removeprefix("layer").partition("_")[0])
            if index < self._n_layers:
                parameter.requires_grad_(False)
