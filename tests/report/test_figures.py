"""Figures as SVG: repeatable, coloured by the page, and a plain word where matplotlib is missing."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from nord_hpc.errors import BadInput
from nord_hpc.report.figures import COLOURS, DARK_COLOURS, new_figure, to_svg


def drawn(text: str = "x") -> str:
    figure = new_figure(4, 2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=COLOURS["accent"], marker="o")
    axes.set_title(text, parse_math=False)
    return to_svg(figure, key="test", title=f"a <title> & {text}")


def test_equal_figures_give_equal_svg() -> None:
    assert drawn() == drawn()


def test_colours_are_those_of_the_page_and_the_size_is_told() -> None:
    svg = drawn()
    assert "var(--accent)" in svg
    assert not [colour for colour in COLOURS.values() if colour in svg]
    assert svg.startswith('<svg viewBox="0 0 288 144" style="--width: 384px"')
    assert set(COLOURS) == set(DARK_COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_svg_is_well_formed_and_has_no_repeated_identifiers() -> None:
    root = ElementTree.fromstring(drawn('<b> "quoted" $unfinished & 漢字'))
    assert root.attrib["aria-label"] == 'a <title> & <b> "quoted" $unfinished & 漢字'
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert '<b> "quoted" $unfinished & 漢字' in texts
    identifiers = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(identifiers) == len(set(identifiers)) > 0


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BadInput) as caught:
        new_figure(1, 1)
    assert str(caught.value) == (
        "pictures need matplotlib, which is not installed; set up with: pip install 'nord_hpc[report]'"
    )


def test_importing_the_report_imports_no_matplotlib_and_no_torch() -> None:
    code = "import sys, nord_hpc.report.html; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
