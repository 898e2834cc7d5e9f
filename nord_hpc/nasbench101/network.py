"""The whole network of a cell, as the benchmark trained it: a descriptor of ordinary layers, and its parameter count.

A stem, three stacks of three equal cells, halved maps and doubled channels between stacks; the head, pooling and one
dense layer, is the builder's default one. Convolutions have no bias, and each is followed by batch normalization and
ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.nasbench101.spec import CONV1X1, CONV3X3, MAXPOOL3X3, ModelSpec

STEM_CHANNELS = 128
STACKS = 3
CELLS = 3
BATCH_NORM_MOMENTUM = 0.003
"""Weight of the newest batch; the benchmark keeps 0.997 of the old statistics."""

BATCH_NORM_EPSILON = 1e-5

_KERNELS = {CONV1X1: 1, CONV3X3: 3}


def vertex_channels(spec: ModelSpec, *, in_channels: int, out_channels: int) -> tuple[int, ...]:
    """Channels of each vertex's output, by the benchmark's rule.

    The output's channels are shared out among the vertices that it concatenates, the first ones getting one more where
    they do not divide; every other inner vertex has as many as the widest that it feeds, which cut off what is too
    much.
    """
    matrix, last = spec.matrix, spec.n_vertices - 1
    channels = [0] * (last + 1)
    channels[0], channels[last] = in_channels, out_channels
    concatenated = [v for v in range(1, last) if matrix[v][last]]
    for place, vertex in enumerate(concatenated):
        share, rest = divmod(out_channels, len(concatenated))
        channels[vertex] = share + (place < rest)
    for vertex in range(last - 1, 0, -1):
        if not matrix[vertex][last]:
            channels[vertex] = max(channels[target] for target in range(vertex + 1, last) if matrix[vertex][target])
    return tuple(channels)


def network_descriptor(
    spec: ModelSpec,
    *,
    stem_channels: int = STEM_CHANNELS,
    stacks: int = STACKS,
    cells: int = CELLS,
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM,
) -> NeuralDescriptor:
    """The network of a cell, all but its head, as layers that the builder knows.

    Where channels do not divide evenly, which vertex gets one more depends on the order of the vertices, so that
    isomorphic drawings of a cell can differ in a few parameters.

    Args:
        stem_channels: of the stem and the first stack.
        stacks: of cells; channels double and maps are halved from one to the next.
        cells: of each stack.
        batch_norm_momentum: weight of the newest batch in the running statistics, torch's convention.
    """
    writer = _Writer(batch_norm_momentum)
    end = writer.convolution("stem", CONV3X3, [], stem_channels)
    channels = stem_channels
    for stack in range(stacks):
        out_channels = stem_channels << stack
        if stack:
            # Odd maps are padded at the far side, as "same" padding does.
            pooling = {"kernel_size": 2, "stride": 2, "ceil_mode": True}
            end = writer.layer(f"{stack}.pool", "MaxPool2d", pooling, [end])
        for cell in range(cells):
            end = _write_cell(writer, f"{stack}.{cell}", spec, end, in_channels=channels, out_channels=out_channels)
            channels = out_channels
    return writer.descriptor


def count_parameters(
    spec: ModelSpec,
    *,
    n_outputs: int = 10,
    image_channels: int = 3,
    stem_channels: int = STEM_CHANNELS,
    stacks: int = STACKS,
    cells: int = CELLS,
) -> int:
    """Trainable parameters of the network with its head, by arithmetic alone."""
    total = _convolution_parameters(3, image_channels, stem_channels)
    channels = stem_channels
    for stack in range(stacks):
        out_channels = stem_channels << stack
        for _ in range(cells):
            total += _cell_parameters(spec, in_channels=channels, out_channels=out_channels)
            channels = out_channels
    return total + channels * n_outputs + n_outputs


def _cell_parameters(spec: ModelSpec, *, in_channels: int, out_channels: int) -> int:
    channels = vertex_channels(spec, in_channels=in_channels, out_channels=out_channels)
    last = spec.n_vertices - 1
    total = 0
    for vertex, label in enumerate(spec.operations):
        if vertex and spec.matrix[0][vertex]:
            total += _convolution_parameters(1, in_channels, channels[vertex])
        if 0 < vertex < last and label != MAXPOOL3X3:
            total += _convolution_parameters(_KERNELS[label], channels[vertex], channels[vertex])
    return total


def _convolution_parameters(kernel: int, n_inputs: int, n_outputs: int) -> int:
    """Of a convolution without bias and the batch normalization behind it."""
    return kernel * kernel * n_inputs * n_outputs + 2 * n_outputs


class _Writer:
    """A descriptor that grows by layers and by convolutions with all that belongs to them."""

    def __init__(self, batch_norm_momentum: float) -> None:
        self.descriptor = NeuralDescriptor()
        self._norm = {"momentum": batch_norm_momentum, "eps": BATCH_NORM_EPSILON}

    def layer(
        self, name: str, kind: str, parameters: Mapping[str, object], inputs: Sequence[str], *, join: str = "add"
    ) -> str:
        self.descriptor.add_layer(kind, parameters, name, join=join)
        for source in inputs:
            self.descriptor.connect_layers(source, name)
        return name

    def convolution(self, name: str, label: str, inputs: Sequence[str], channels: int) -> str:
        """Convolution of the sum of `inputs`, batch normalization, ReLU; returns the name of the last."""
        kernel = _KERNELS[label]
        parameters = {"out_channels": channels, "kernel_size": kernel, "padding": kernel // 2, "bias": False}
        self.layer(f"{name}.conv", "Conv2d", parameters, inputs)
        self.layer(f"{name}.norm", "BatchNorm2d", self._norm, [f"{name}.conv"])
        return self.layer(f"{name}.relu", "ReLU", {}, [f"{name}.norm"])

    def first_channels(self, source: str, channels: int) -> str:
        """The first of a layer's channels; made once for all that want as many."""
        name = f"{source}.first{channels}"
        if name in self.descriptor.layers:
            return name
        return self.layer(name, "FirstChannels", {"channels": channels}, [source])


def _write_cell(writer: _Writer, name: str, spec: ModelSpec, start: str, *, in_channels: int, out_channels: int) -> str:
    """Append a cell behind the layer `start`; returns the name of its output."""
    channels = vertex_channels(spec, in_channels=in_channels, out_channels=out_channels)
    matrix, last = spec.matrix, spec.n_vertices - 1
    ends = {0: start}
    for vertex in range(1, last):
        inputs = []
        for source in range(1, vertex):
            if matrix[source][vertex]:
                cut = channels[source] > channels[vertex]
                inputs.append(writer.first_channels(ends[source], channels[vertex]) if cut else ends[source])
        if matrix[0][vertex]:
            inputs.append(writer.convolution(f"{name}.in{vertex}", CONV1X1, [start], channels[vertex]))
        label = spec.operations[vertex]
        if label == MAXPOOL3X3:
            pooling = {"kernel_size": 3, "stride": 1, "padding": 1}
            ends[vertex] = writer.layer(f"{name}.{vertex}.pool", "MaxPool2d", pooling, inputs)
        else:
            ends[vertex] = writer.convolution(f"{name}.{vertex}", label, inputs, channels[vertex])
    outputs = [ends[vertex] for vertex in range(1, last) if matrix[vertex][last]]
    if len(outputs) > 1:
        outputs = [writer.layer(f"{name}.concat", "Identity", {}, outputs, join="concat")]
    if matrix[0][last]:
        outputs.append(writer.convolution(f"{name}.in{last}", CONV1X1, [start], out_channels))
    return outputs[0] if len(outputs) == 1 else writer.layer(f"{name}.add", "Identity", {}, outputs)
