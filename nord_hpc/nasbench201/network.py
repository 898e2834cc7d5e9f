"""The whole network of a cell, as the benchmark trained it: a descriptor of ordinary layers, and its size.

A stem, three stages of five equal cells, a residual block that halves the map and doubles the channels between stages,
batch normalization and ReLU; the head, pooling and one dense layer, is the builder's default one. Convolutions come
behind a ReLU and before a batch normalization, and have no bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201.cell import AVG_POOL_3X3, CONV_1X1, CONV_3X3, EDGES, N_NODES, NONE, OPERATIONS, SKIP, Cell

STEM_CHANNELS = 16
STAGES = 3
CELLS = 5

_KERNELS = {CONV_1X1: 1, CONV_3X3: 3}
_SCALES = {NONE: 0, SKIP: 1}


def network_descriptor(
    cell: Cell, *, stem_channels: int = STEM_CHANNELS, stages: int = STAGES, cells: int = CELLS
) -> NeuralDescriptor:
    """The network of a cell, all but its head, as layers that the builder knows.

    Every edge is there, "none" as a scale of 0 and a skip as one of 1: the network has the benchmark's parameters, also
    where a convolution gets nothing or nothing reads it.

    Args:
        stem_channels: of the stem and the first stage.
        stages: channels double and maps are halved from one to the next.
        cells: of each stage.
    """
    writer = _Writer()
    stem = {"out_channels": stem_channels, "kernel_size": 3, "padding": 1, "bias": False}
    end = writer.layer("stem.norm", "BatchNorm2d", {}, [writer.layer("stem.conv", "Conv2d", stem, [])])
    for stage in range(stages):
        channels = stem_channels << stage
        if stage:
            end = writer.reduction(f"{stage}.reduction", end, channels)
        for number in range(cells):
            end = writer.cell(f"{stage}.{number}", cell, end, channels)
    writer.layer("relu", "ReLU", {}, [writer.layer("norm", "BatchNorm2d", {}, [end])])
    return writer.descriptor


def from_network(
    descriptor: NeuralDescriptor, *, stem_channels: int = STEM_CHANNELS, stages: int = STAGES, cells: int = CELLS
) -> Cell:
    """The cell whose network `network_descriptor` made.

    Raises:
        Infeasible: it is no such network.
    """
    operations = []
    for source, target in EDGES:
        name = f"0.0.{source}-{target}"
        operations.append(next((op for op in OPERATIONS if f"{name}.{op}" in descriptor.layers), NONE))
    cell = tuple(operations)
    if network_descriptor(cell, stem_channels=stem_channels, stages=stages, cells=cells) != descriptor:
        raise Infeasible(
            f"this is no network of NAS-Bench-201 with {stem_channels} channels in the stem, {stages} stages and "
            f"{cells} cells in each"
        )
    return cell


def count_parameters(
    cell: Cell,
    *,
    n_outputs: int = 10,
    image_channels: int = 3,
    stem_channels: int = STEM_CHANNELS,
    stages: int = STAGES,
    cells: int = CELLS,
) -> int:
    """Trainable parameters of the network with its head, by arithmetic alone."""
    total = _convolution_parameters(3, image_channels, stem_channels)
    channels = stem_channels
    for stage in range(stages):
        if stage:
            total += _convolution_parameters(3, channels, 2 * channels) + _convolution_parameters(
                3, *[2 * channels] * 2
            )
            total += 2 * channels * channels
            channels *= 2
        total += cells * sum(_convolution_parameters(_KERNELS[op], channels, channels) for op in cell if op in _KERNELS)
    return total + 2 * channels + (channels + 1) * n_outputs


def count_multiply_adds(
    cell: Cell,
    *,
    image_size: int = 32,
    n_outputs: int = 10,
    image_channels: int = 3,
    stem_channels: int = STEM_CHANNELS,
    stages: int = STAGES,
    cells: int = CELLS,
) -> int:
    """Multiply-adds of the convolutions and of the dense layer, its bias included, for one sample.

    Args:
        image_size: of one side.
    """
    area, channels = image_size * image_size, stem_channels
    total = area * 9 * image_channels * channels
    for stage in range(stages):
        if stage:
            # Each side of an odd map is rounded up.
            image_size = (image_size + 1) // 2
            area = image_size * image_size
            total += area * (9 * channels * 2 * channels + 9 * 4 * channels * channels + 2 * channels * channels)
            channels *= 2
        total += cells * area * channels * channels * sum(_KERNELS[op] ** 2 for op in cell if op in _KERNELS)
    return total + (channels + 1) * n_outputs


def _convolution_parameters(kernel: int, n_inputs: int, n_outputs: int) -> int:
    """Of a convolution without bias and the batch normalization behind it."""
    return kernel * kernel * n_inputs * n_outputs + 2 * n_outputs


class _Writer:
    """A descriptor that grows by layers, and by what belongs together."""

    def __init__(self) -> None:
        self.descriptor = NeuralDescriptor()

    def layer(self, name: str, kind: str, parameters: Mapping[str, object], inputs: Sequence[str]) -> str:
        self.descriptor.add_layer(kind, parameters, name)
        for source in inputs:
            self.descriptor.connect_layers(source, name)
        return name

    def convolution(self, name: str, source: str, *, channels: int, kernel: int, stride: int = 1) -> str:
        """ReLU, convolution, batch normalization; returns the last, which has that name."""
        parameters = {
            "out_channels": channels,
            "kernel_size": kernel,
            "stride": stride,
            "padding": kernel // 2,
            "bias": False,
        }
        relu = self.layer(f"{name}.relu", "ReLU", {}, [source])
        return self.layer(name, "BatchNorm2d", {}, [self.layer(f"{name}.conv", "Conv2d", parameters, [relu])])

    def reduction(self, name: str, source: str, channels: int) -> str:
        """A residual block of stride 2, whose side is pooled and mixed."""
        first = self.convolution(f"{name}.first", source, channels=channels, kernel=3, stride=2)
        second = self.convolution(f"{name}.second", first, channels=channels, kernel=3)
        pooled = self.layer(f"{name}.pool", "AvgPool2d", {"kernel_size": 2, "stride": 2}, [source])
        side = {"out_channels": channels, "kernel_size": 1, "bias": False}
        return self.layer(name, "Identity", {}, [second, self.layer(f"{name}.side", "Conv2d", side, [pooled])])

    def cell(self, name: str, cell: Cell, source: str, channels: int) -> str:
        """A cell behind the layer `source`; returns its output."""
        nodes = [source]
        for target in range(1, N_NODES):
            results = [
                self.operation(f"{name}.{start}-{end}.{op}", op, nodes[start], channels)
                for (start, end), op in zip(EDGES, cell, strict=True)
                if end == target
            ]
            nodes.append(self.layer(f"{name}.{target}", "Identity", {}, results))
        return nodes[-1]

    def operation(self, name: str, operation: str, source: str, channels: int) -> str:
        if operation in _KERNELS:
            return self.convolution(name, source, channels=channels, kernel=_KERNELS[operation])
        if operation == AVG_POOL_3X3:
            pooling = {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
            return self.layer(name, "AvgPool2d", pooling, [source])
        return self.layer(name, "ScaleLayer", {"scale": _SCALES[operation]}, [source])
