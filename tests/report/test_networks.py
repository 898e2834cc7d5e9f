"""Pictures of specification and realization: what is in them, equal places, nothing covered."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nord_hpc.builder import plan
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.report.networks import cells_of, realization_figure, specification_figure
from nord_hpc.spaces.conv_graph import ConvGraph

ROOT = Path(__file__).parents[2]


def network(*edges: tuple[str, str], **kinds: tuple[str, dict[str, Any]]) -> NeuralDescriptor:
    descriptor = NeuralDescriptor()
    for name, (kind, parameters) in kinds.items():
        descriptor.add_layer(kind, parameters, name)
    for source, target in edges:
        descriptor.connect_layers(source, target)
    return descriptor


def conv(channels: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "Conv2d", {"out_channels": channels, "kernel_size": 3, "padding": 1, **more}


def branched(**names: str) -> NeuralDescriptor:
    """Two branches that meet, and a layer that leads nowhere; layers may be called otherwise."""
    descriptor = network(
        ("in", "a"), ("in", "b"), ("in", "dead"), ("a", "relu"), ("relu", "end"), ("b", "end"), ("in", "end"),
        **{"in": ("Identity", {})}, a=conv(16), relu=("ReLU", {}), b=conv(32, stride=2), dead=conv(8), end=conv(64),
    )  # fmt: skip
    value = descriptor.to_json()
    for layer in value["layers"]:
        layer["name"] = names.get(layer["name"], layer["name"])
        layer["inputs"] = [names.get(source, source) for source in layer["inputs"]]
    value["first"], value["last"] = names.get("in", "in"), names.get("end", "end")
    return NeuralDescriptor.from_json(value)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Left side, middle from the upper edge, width and height of each box, in inches."""
    top = figure.axes[0].get_ylim()[1]
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    return [
        (box.get_x(), top - box.get_y() - box.get_height() / 2, box.get_width(), box.get_height()) for box in patches
    ]


def places(figure: Figure) -> list[tuple[float, float]]:
    return [(round(x, 6), round(y, 6)) for x, y, _, _ in boxes(figure)]


def extents_of_texts(figure: Figure) -> list[tuple[str, Any]]:
    """Each text and where it is, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in figure.axes[0].texts]


def sampled(seed: int, **options: Any) -> NeuralDescriptor:
    space = ConvGraph(ConvGraph.Options.model_validate(options))
    return space.to_descriptor(space.sample(np.random.default_rng(seed)))


def test_the_specification_is_what_is_written() -> None:
    shown = texts(specification_figure(branched()))
    assert shown.count("Conv2d 3×3 · 16") == shown.count("Conv2d 3×3 · 8") == 1  # noqa: RUF001
    start = shown.index("Conv2d 3×3 · 32,")  # noqa: RUF001
    assert shown[start + 1] == "  stride 2"
    assert shown[-2:] == ["specification: 6 layers", "+ inputs are added"]
    assert not any("not built" in text or "→" in text for text in shown)


def test_the_realization_has_what_was_inferred() -> None:
    descriptor = branched()
    planned = plan(descriptor, input_shape=(3, 16, 16), n_outputs=10)
    shown = texts(realization_figure(descriptor, planned))
    for text in [
        "Conv2d 3×3 3→16",  # noqa: RUF001
        "16×16×16 · 448 par.",  # noqa: RUF001
        "Conv2d 3×3 3→32 /2×2",  # noqa: RUF001
        "Conv2d 3×3 32→64",  # noqa: RUF001
        "relu: 16→32, 16×16↓8×8",  # noqa: RUF001
        "in: 3→32, 16×16↓8×8",  # noqa: RUF001
        "AdaptiveAvgPool2d",
        "Linear 64→10",
        "10 · 650 par.",
    ]:
        assert text in shown, text
    # 9 x 32 x 64 + 64 of the layer, (16 + 3) x 32 of its projections
    assert "64×8×8 · 19,104 par." in shown  # noqa: RUF001
    assert shown[shown.index("not built") - 1] == "Conv2d"
    assert shown[-1] == "+ inputs are added   grey: without effect on the output"
    assert shown[-2] == (
        f"realization: 3×16×16 to 10, {planned.n_parameters:,} parameters, "  # noqa: RUF001
        f"{planned.multiply_adds:,} multiply-adds, depth 7"
    )
    largest = plan(descriptor, input_shape=(3, 16, 16), n_outputs=10, size_policy="largest")
    assert "b: ↑16×16" in texts(realization_figure(descriptor, largest))  # noqa: RUF001


def test_clamped_windows_are_told() -> None:
    descriptor = network(("a", "pool"), a=conv(4), pool=("MaxPool2d", {"kernel_size": 5}))
    shown = texts(realization_figure(descriptor, plan(descriptor, input_shape=(1, 3, 3), n_outputs=2)))
    assert "MaxPool2d 3×3 /5×5" in shown and "kernel 5×5" not in shown  # noqa: RUF001
    assert shown[shown.index("kernel 5x5,") + 1] == "  clamped to 3x3"


def test_a_layer_is_at_one_place_in_both_pictures() -> None:
    for descriptor in [branched(), *(sampled(seed, max_layers=20) for seed in range(10))]:
        planned = plan(descriptor, input_shape=(3, 32, 32), n_outputs=10)
        specified, realized = places(specification_figure(descriptor)), places(realization_figure(descriptor, planned))
        assert realized[: len(specified)] == specified and len(realized) == len(specified) + 1


def test_places_do_not_follow_from_names() -> None:
    other = branched(a="z", b="0", relu="first", end="last", **{"in": "x"})
    first, second = specification_figure(branched()), specification_figure(other)
    assert places(first) == places(second) and texts(first) == texts(second)


def test_networks_that_begin_alike_look_alike_there() -> None:
    short = network(("a", "b"), a=conv(8), b=conv(16))
    longer = network(("a", "b"), ("b", "c"), ("c", "d"), a=conv(8), b=conv(16), c=conv(32), d=conv(8))
    assert places(specification_figure(longer))[:2] == places(specification_figure(short))


@pytest.mark.parametrize("options", [{}, {"min_layers": 50, "max_layers": 50, "max_poolings": 5}, {"skip": False}])
def test_no_box_covers_another_and_all_text_is_inside(options: dict[str, Any]) -> None:
    descriptor = sampled(3, **options)
    planned = plan(descriptor, input_shape=(3, 32, 32), n_outputs=10)
    for figure in (specification_figure(descriptor), realization_figure(descriptor, planned)):
        width, height = figure.get_size_inches()
        found = boxes(figure)
        for (x, y, w, h), (u, v, s, t) in itertools.combinations(found, 2):
            assert x + w <= u or u + s <= x or abs(y - v) >= (h + t) / 2
        assert all(x > 0 and x + w < width and y - h / 2 > 0 and y + h / 2 < height for x, y, w, h in found)
        edge = figure.bbox
        for text, extent in extents_of_texts(figure):
            assert edge.x0 <= extent.x0 and extent.x1 <= edge.x1, text
            assert edge.y0 <= extent.y0 and extent.y1 <= edge.y1, text


def test_text_stays_inside_its_box() -> None:
    kinds = {
        "a": conv(1024, dilation=2, groups=16, padding_mode="reflect", stride=2),
        "norm": ("BatchNorm2d", {"momentum": 0.01, "eps": 1e-3, "affine": False}),
        "act": ("LeakyReLU", {"negative_slope": 0.123456}),
        "pool": ("AvgPool2d", {"kernel_size": [2, 1], "stride": 1}),
    }
    descriptor = network(("a", "norm"), ("norm", "act"), ("act", "pool"), **kinds)
    planned = plan(descriptor, input_shape=(1024, 64, 64), n_outputs=10)
    for figure in (specification_figure(descriptor), realization_figure(descriptor, planned)):
        patches = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
        extents = [patch.get_window_extent() for patch in patches]
        for text, place in extents_of_texts(figure)[:-2]:
            assert any(
                box.x0 <= place.x0 and place.x1 <= box.x1 and box.y0 <= place.y0 and place.y1 <= box.y1
                for box in extents
            ), text


def test_what_cannot_be_built_is_drawn_as_it_is_written() -> None:
    cycle = network(("a", "b"), ("b", "c"), ("c", "b"), a=conv(8), b=conv(8), c=conv(8))
    shown = texts(specification_figure(cycle))
    assert shown.count("Conv2d 3×3 · 8") == 3 and "1 connection that go back not drawn" in shown[-1]  # noqa: RUF001
    apart = network(a=conv(8), b=conv(16))
    assert [cell.column for cell in cells_of(apart)] == [0, 0] and not any(cell.dead for cell in cells_of(apart))
    assert len(boxes(specification_figure(apart))) == 2


def test_a_title_of_ones_own() -> None:
    assert texts(specification_figure(branched(), title="mine"))[-2] == "mine"


def test_the_pictures_of_the_documentation_are_made_without_a_window(tmp_path: Path) -> None:
    """And are those that the script makes now, as far as their sizes tell."""
    script = (ROOT / "docs" / "make_pictures.py").read_text()
    copy = tmp_path / "make_pictures.py"
    copy.write_text(script)
    done = subprocess.run(
        [sys.executable, str(copy)], env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    made = {path.name: path for path in (tmp_path / "pictures").iterdir()}
    kept = {path.name: path for path in (ROOT / "docs" / "pictures").glob("*_*.png")}
    assert made.keys() == kept.keys() and len(made) == 6
    for name, path in made.items():
        assert path.read_bytes()[16:24] == kept[name].read_bytes()[16:24]  # width and height
        assert kept[name].stat().st_size < 200_000
