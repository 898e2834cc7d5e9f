"""Figures as SVG: repeatable, coloured by the page, and a plain word where matplotlib is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nord_hpc.errors import BadInput
from nord_hpc.report.figures import COLOURS, DARK_COLOURS, new_figure, save_figure, to_svg


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


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml"), ("c.pdf", b"%PDF")])
def test_figures_are_saved_by_the_end_of_their_name(tmp_path: Path, name: str, begin: bytes) -> None:
    contents = []
    for folder in ("first", "second"):
        figure = new_figure(2, 1)
        figure.add_axes((0, 0, 1, 1)).text(0.1, 0.5, "layer", color=COLOURS["ink"])
        path = save_figure(figure, tmp_path / folder / name)
        contents.append(path.read_bytes())
        assert [file.name for file in path.parent.iterdir()] == [name]
    assert contents[0].startswith(begin) and contents[0] == contents[1]


def test_other_names_and_broken_disks_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = new_figure(2, 1)
    with pytest.raises(BadInput, match=r"a\.jpg: a figure is written as \.png, \.svg or \.pdf; set a name that ends"):
        save_figure(figure, tmp_path / "a.jpg")

    def full(*arguments: Any, **options: Any) -> None:
        Path(arguments[0]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
