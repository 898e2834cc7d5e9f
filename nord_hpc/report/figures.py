"""Figures without global state, and as SVG that takes its colours from the page; what they show is left to others."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1f2329",
    "muted": "#6b7480",
    "rule": "#d5dae0",
    "panel": "#f4f6f8",
    "paper": "#fffffe",
    "accent": "#1766c2",
    "conv": "#2f7fd6",
    "dense": "#8a56c9",
    "pool": "#c77714",
    "other": "#7a8590",
}
"""Role to colour on a light page. No two are equal, so that the SVG can name the roles instead."""

DARK_COLOURS = {
    "ink": "#e6e9ed",
    "muted": "#98a2ad",
    "rule": "#3a424c",
    "panel": "#20262d",
    "paper": "#15191e",
    "accent": "#6cb0ff",
    "conv": "#5aa7f5",
    "dense": "#b78af0",
    "pool": "#eda54a",
    "other": "#98a2ad",
}
"""The same roles on a dark page."""

METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""File types, and what matplotlib would write into them of times and versions: nothing."""

EITHER = "#8794a3"
"""A grey that can be seen on both pages, for what is drawn as pixels."""


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that belongs to no window and no global state.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(
            "pictures need matplotlib, which is not installed; set up with: pip install 'nord_hpc[report]'"
        ) from error
    return Figure(figsize=(width_inches, height_inches), dpi=100, facecolor=COLOURS["paper"])


def save_figure(figure: Figure, path: Path, *, dots_per_inch: float = 100) -> Path:
    """Write a figure as PNG, SVG or PDF, as the end of the name says; equal figures give equal files. Needs no window.

    Returns:
        The path.

    Raises:
        BadInput: the name ends otherwise.
    """
    import matplotlib

    kind = path.suffix.lower().lstrip(".")
    if kind not in METADATA:
        raise BadInput(f"{path}: a figure is written as .png, .svg or .pdf; set a name that ends so")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "nord_hpc"}):
            figure.savefig(part, format=kind, dpi=dots_per_inch, metadata=METADATA[kind])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def to_svg(figure: Figure, *, key: str, title: str) -> str:
    """The figure as an <svg> element for a page that defines --ink, --muted and so on; equal figures give equal text.

    Args:
        key: tells the figures of one page apart, so that their identifiers do.
        title: said aloud in place of the picture.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}), warnings.catch_warnings():
        # The page's own font will have the letters that matplotlib's has not.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Groups are numbered from 1 in each figure; nothing refers to them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    width, height = figure.get_size_inches()
    head = (
        f'<svg viewBox="0 0 {72 * width:g} {72 * height:g}" style="--width: {96 * width:.0f}px" '
        f'role="img" aria-label="{escape(title)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + text[text.index(">") + 1 :].strip()
