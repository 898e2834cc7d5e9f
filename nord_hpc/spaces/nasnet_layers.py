"""How NASNet's cells become layers: operations, the widths and sizes that cells meet with, and the stack of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.trial import Json

Size = tuple[int, int]

RELU = Layer("ReLU", {})
IDENTITY = Layer("Identity", {})
CONCATENATION = Layer("Identity", {}, "concat")
SUM = Layer("Identity", {}, "add")
HALVING = Layer("AvgPool2d", {"kernel_size": 2, "stride": 2, "ceil_mode": True})


@dataclass(frozen=True, slots=True)
class Convolutions:
    """Convolutions one after the other, each of ReLU, convolution and batch normalization; the first has the stride.

    Attributes:
        kernels: height and width of each window.
        separable: depthwise, then 1x1.
        dilation: of each.
    """

    kernels: tuple[Size, ...]
    separable: bool = False
    dilation: int = 1


@dataclass(frozen=True, slots=True)
class Pooling:
    """The largest or the mean value of each window."""

    kind: str
    size: int


OPERATIONS: dict[str, Convolutions | Pooling | None] = {
    "identity": None,
    "conv_1x1": Convolutions(((1, 1),)),
    "conv_3x3": Convolutions(((3, 3),)),
    "conv_1x3_3x1": Convolutions(((1, 3), (3, 1))),
    "conv_1x7_7x1": Convolutions(((1, 7), (7, 1))),
    "dil_conv_3x3": Convolutions(((3, 3),), dilation=2),
    "sep_conv_3x3": Convolutions(((3, 3), (3, 3)), separable=True),
    "sep_conv_5x5": Convolutions(((5, 5), (5, 5)), separable=True),
    "sep_conv_7x7": Convolutions(((7, 7), (7, 7)), separable=True),
    "avg_pool_3x3": Pooling("AvgPool2d", 3),
    "max_pool_3x3": Pooling("MaxPool2d", 3),
    "max_pool_5x5": Pooling("MaxPool2d", 5),
    "max_pool_7x7": Pooling("MaxPool2d", 7),
}
"""The thirteen of the paper, separable convolutions twice as there. An identity with stride 2 is a 1x1 convolution."""

DEFAULT_OPERATIONS = (
    "identity",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "avg_pool_3x3",
    "max_pool_3x3",
    "conv_1x3_3x1",
)

_POINT = Convolutions(((1, 1),))


@dataclass(frozen=True, slots=True)
class Stack:
    """The network around the cells; see `nasnet_cell.NasNetCell.Options`."""

    filters: int
    repeats: int
    stages: int
    stem_filters: int
    batch_norm_momentum: float


class State(NamedTuple):
    """The output of a cell: the layer that gives it, its channels, and how often its maps were halved."""

    layer: str
    channels: int
    halvings: int


class CellWriter:
    """Writes the network of two cells into a new descriptor."""

    def __init__(self, stack: Stack, *, normal: Sequence[Json], reduction: Sequence[Json]) -> None:
        self._stack = stack
        self._blocks = {"normal": normal, "reduction": reduction}
        self._norm = _batch_norm(stack.batch_norm_momentum)
        self._descriptor = NeuralDescriptor()

    def write(self) -> NeuralDescriptor:
        """The network: its last layer is a ReLU behind the last cell."""
        stack = self._stack
        add = self._descriptor.add_made_layer
        add("stem.conv", _convolution((3, 3), stack.stem_filters, separable=False, dilation=1, stride=(1, 1)))
        add("stem.norm", self._norm, ["stem.conv"])
        before = last = State("stem.norm", stack.stem_filters, 0)
        number = 0
        for stage in range(stack.stages):
            for kind in ["reduction"] * (stage > 0) + ["normal"] * stack.repeats:
                cell = self._cell(f"cell{number}_{kind}", kind, before, last, filters=stack.filters << stage)
                before, last = last, cell
                number += 1
        add("relu", RELU, [last.layer])
        return self._descriptor

    def _cell(self, name: str, kind: str, before: State, last: State, *, filters: int) -> State:
        blocks = self._blocks[kind]
        reads = {source for block in blocks for source in block[:2]}
        states = [
            self._fitted(f"{name}.input{place}", state, filters=filters, halvings=last.halvings)
            if place in reads
            else ""
            for place, state in enumerate((before, last))
        ]
        for b, block in enumerate(blocks):
            states.append(self._block(f"{name}.block{b}", block, states, kind=kind, filters=filters))
        unread = [state for place, state in enumerate(states) if place > 1 and place not in reads]
        output = unread[0]
        if len(unread) > 1:
            output = f"{name}.output"
            self._descriptor.add_made_layer(output, CONCATENATION, unread)
        return State(output, len(unread) * filters, last.halvings + (kind == "reduction"))

    def _fitted(self, name: str, state: State, *, filters: int, halvings: int) -> str:
        """An input of a cell with the cell's filters, and maps of the size of the cell's other input."""
        layer = state.layer
        if state.halvings < halvings:
            layer = self._add(f"{name}.halved", HALVING, layer)
        return self._convolutions(name, _POINT, layer, filters=filters, stride=1, end=f"{name}.norm")

    def _block(self, name: str, block: Json, states: Sequence[str], *, kind: str, filters: int) -> str:
        results = []
        for place, source, operation in zip(("first", "second"), block[:2], block[2:4], strict=True):
            stride = 2 if kind == "reduction" and source < 2 else 1
            # What the operation was, and what it read, stands in the name: so a network tells its cells.
            end = f"{name}.{place}={operation}@{source}"
            results.append(self._operation(end, operation, states[source], filters=filters, stride=stride))
        joined = f"{name}.{block[4]}"
        self._descriptor.add_made_layer(joined, SUM if block[4] == "add" else CONCATENATION, results)
        if block[4] == "add":
            return joined
        # Every state of a cell has its filters, whatever its block concatenates.
        return self._convolutions(
            f"{name}.narrowed", _POINT, joined, filters=filters, stride=1, end=f"{name}.narrowed.norm"
        )

    def _operation(self, end: str, name: str, source: str, *, filters: int, stride: int) -> str:
        operation = OPERATIONS[name]
        if operation is None and stride == 1:
            return self._add(end, IDENTITY, source)
        if isinstance(operation, Pooling):
            return self._add(end, _pooling(operation.kind, operation.size, stride), source)
        return self._convolutions(end, operation or _POINT, source, filters=filters, stride=stride, end=end)

    def _convolutions(
        self, name: str, operation: Convolutions, source: str, *, filters: int, stride: int, end: str
    ) -> str:
        """Convolutions behind `source`; the last normalization is called `end`."""
        last = len(operation.kernels) - 1
        layer = source
        for place, kernel in enumerate(operation.kernels):
            made = _convolution(
                kernel,
                filters,
                separable=operation.separable,
                dilation=operation.dilation,
                stride=_stride(kernel, stride, is_first=place == 0),
            )
            layer = self._add(f"{name}.relu{place}", RELU, layer)
            layer = self._add(f"{name}.conv{place}", made, layer)
            layer = self._add(end if place == last else f"{name}.norm{place}", self._norm, layer)
        return layer

    def _add(self, name: str, layer: Layer, source: str) -> str:
        self._descriptor.add_made_layer(name, layer, [source])
        return name


def _stride(kernel: Size, stride: int, *, is_first: bool) -> Size:
    """A row and a column halve one dimension each; of two equal windows the first one halves both."""
    height, width = kernel
    if height == width:
        return (stride, stride) if is_first else (1, 1)
    return (stride if height > 1 else 1, stride if width > 1 else 1)


@cache
def _convolution(kernel: Size, filters: int, *, separable: bool, dilation: int, stride: Size) -> Layer:
    """Padded so that maps of n become maps of n / stride, rounded up."""
    parameters = {
        "out_channels": filters,
        "kernel_size": list(kernel),
        "stride": list(stride),
        "padding": [dilation * (side // 2) for side in kernel],
        "dilation": dilation,
        "bias": False,
    }
    return Layer("SeparableConv2d" if separable else "Conv2d", parameters)


@cache
def _pooling(kind: str, size: int, stride: int) -> Layer:
    parameters = {"kernel_size": size, "stride": stride, "padding": size // 2}
    return Layer(kind, parameters | ({"count_include_pad": False} if kind == "AvgPool2d" else {}))


@cache
def _batch_norm(momentum: float) -> Layer:
    return Layer("BatchNorm2d", {"momentum": momentum})
