"""The drawing of a network: which layers share a box, where boxes and lanes lie, that nothing covers anything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.report.architecture import Block, architecture_figure, blocks_of, layer_text
from nord_hpc.report.edges import lanes_of
from nord_hpc.spaces.conv_graph import ConvGraph


def network(*layers: tuple[str, str, list[str]], join: str = "add") -> dict[str, Any]:
    descriptor = NeuralDescriptor()
    for name, kind, _ in layers:
        descriptor.add_layer(kind, {"out_channels": 8, "kernel_size": 3} if kind == "Conv2d" else {}, name, join=join)
    for name, _, inputs in layers:
        for source in inputs:
            descriptor.connect_layers(source, name)
    return descriptor.to_json()


RESIDUAL = network(
    ("input", "Identity", []),
    ("a", "Conv2d", ["input"]),
    ("norm", "BatchNorm2d", ["a"]),
    ("relu", "ReLU", ["norm"]),
    ("b", "Conv2d", ["relu"]),
    ("unused", "Conv2d", ["a"]),
    ("c", "Conv2d", ["b", "relu"]),
    ("end", "ReLU", ["c"]),
)


def names(blocks: list[Block]) -> list[list[str]]:
    return [[layer["name"] for layer in block.layers] for block in blocks]


def random_network(seed: int, **options: Any) -> dict[str, Any]:
    space = ConvGraph(ConvGraph.Options.model_validate(options))
    return space.to_descriptor(space.sample(np.random.default_rng(seed))).to_json()


def test_light_layers_share_the_box_of_the_one_they_follow_and_unused_ones_are_left_out() -> None:
    blocks = blocks_of(RESIDUAL)
    assert names(blocks) == [["input"], ["a", "norm", "relu"], ["b"], ["c", "end"]]
    assert [block.inputs for block in blocks] == [[], [0], [1], [2, 1]]
    assert [block.column for block in blocks] == [0, 1, 2, 3]
    assert [block.join for block in blocks] == [None, None, None, "add"]
    assert blocks[1].lines == ["Conv2d 3×3 · 8", "BatchNorm2d", "ReLU"]  # noqa: RUF001


def test_a_layer_that_others_read_ends_its_box() -> None:
    read_twice = network(
        ("a", "Conv2d", []), ("relu", "ReLU", ["a"]), ("pool", "MaxPool2d", ["a"]), ("end", "ReLU", ["relu", "pool"])
    )
    assert names(blocks_of(read_twice)) == [["a"], ["relu"], ["pool"], ["end"]]


def test_long_edges_of_one_source_share_a_lane_and_lanes_do_not_overlap() -> None:
    for seed in range(30):
        blocks = blocks_of(random_network(seed, min_layers=15, max_layers=25))
        lanes = lanes_of(blocks)
        far = {(s, t) for t, b in enumerate(blocks) for s in b.inputs if b.column - blocks[s].column > 1}
        assert {(lane.source, target) for lane in lanes for target in lane.targets} == far
        assert len({lane.source for lane in lanes}) == len(lanes)
        for one, other in itertools.combinations(lanes, 2):
            if (one.side, one.place) == (other.side, other.place):
                spans = [(blocks[k.source].column, blocks[k.targets[-1]].column) for k in (one, other)]
                assert spans[0][1] <= spans[1][0] or spans[1][1] <= spans[0][0]


@pytest.mark.parametrize("options", [{}, {"min_layers": 50, "max_layers": 50, "max_poolings": 5}, {"skip": False}])
def test_no_box_covers_another_and_all_is_inside_the_figure(options: dict[str, Any]) -> None:
    figure = architecture_figure(random_network(5, **options))
    axes = figure.axes[0]
    width, height = figure.get_size_inches()
    assert (axes.get_xlim()[1], np.ptp(axes.get_ylim())) == pytest.approx((width, height))
    boxes = [patch.get_bbox() for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
    assert len(boxes) == len(blocks_of(random_network(5, **options)))
    for one, other in itertools.combinations(boxes, 2):
        assert one.x1 < other.x0 or other.x1 < one.x0 or one.y1 < other.y0 or other.y1 < one.y0
    for patch in axes.patches:
        extents = patch.get_path().get_extents(patch.get_patch_transform())
        assert extents.x0 >= 0 and extents.x1 <= width
        assert axes.get_ylim()[0] <= extents.y0 and extents.y1 <= axes.get_ylim()[1]


def test_lines_run_beside_boxes_and_never_through_them() -> None:
    for seed in range(6):
        axes = architecture_figure(random_network(seed, min_layers=20, max_layers=20)).axes[0]
        boxes = [patch.get_bbox() for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
        lines = [patch.get_path().vertices for patch in axes.patches if type(patch).__name__ == "PathPatch"]
        for vertices in lines:
            steps = np.linspace(0, 1, 50)[:, None]
            points = np.concatenate([a + steps * (b - a) for a, b in itertools.pairwise(vertices)])
            for box in boxes:
                inside_x = (points[:, 0] > box.x0 + 1e-9) & (points[:, 0] < box.x1 - 1e-9)
                inside_y = (points[:, 1] > box.y0) & (points[:, 1] < box.y1)
                assert not np.any(inside_x & inside_y)


def test_texts_fit_into_their_boxes() -> None:
    figure = architecture_figure(random_network(3, channels=[1024], activations=["leaky_relu"]))
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
    for text in axes.texts:
        if "Conv2d" in text.get_text() or "LeakyReLU" in text.get_text():
            extent = text.get_window_extent()
            assert any(box.get_window_extent().contains(extent.x1, (extent.y0 + extent.y1) / 2) for box in boxes)


def test_joins_and_unused_layers_are_told() -> None:
    texts = [text.get_text() for text in architecture_figure(RESIDUAL).axes[0].texts]
    assert texts[-1] == "+ inputs are added   1 layer without effect not drawn"
    assert texts.count("+") == 1
    assert "head" in texts
    joined = network(("a", "Conv2d", []), ("b", "Conv2d", ["a"]), ("c", "Conv2d", ["a", "b"]), join="concat")
    assert [text.get_text() for text in architecture_figure(joined).axes[0].texts][-1] == "‖ inputs are concatenated"


def test_a_single_layer_can_be_drawn() -> None:
    only = network(("only", "Linear", []))
    assert names(blocks_of(only)) == [["only"]]
    assert [text.get_text() for text in architecture_figure(only).axes[0].texts] == ["Linear", "head", ""]


@pytest.mark.parametrize(
    ("kind", "parameters", "text"),
    [
        ("Conv2d", {"out_channels": 16, "kernel_size": 5, "padding": 2, "bias": False}, "Conv2d 5x5 · 16"),
        ("Conv1d", {"out_channels": 4, "kernel_size": [7], "stride": 2}, "Conv1d 7 · 4, stride 2"),
        ("Conv2d", {"out_channels": 4, "kernel_size": [1, 3], "stride": 1}, "Conv2d 1x3 · 4"),
        ("MaxPool2d", {"kernel_size": 2, "stride": 2}, "MaxPool2d 2x2"),
        ("MaxPool2d", {"kernel_size": 3, "stride": 1}, "MaxPool2d 3x3 · stride 1"),
        ("Linear", {"out_features": 10}, "Linear · 10"),
        ("Dropout", {"p": 0.5}, "Dropout · p 0.5"),
        ("layers.py:Swish", {}, "Swish"),
    ],
)
def test_layers_are_told_in_a_few_words(kind: str, parameters: dict[str, Any], text: str) -> None:
    assert layer_text(kind, parameters).replace("\N{MULTIPLICATION SIGN}", "x") == text
