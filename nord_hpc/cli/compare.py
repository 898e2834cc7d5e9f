"""`nord-hpc compare`: several searches over the same seeds, as a table, figures and files."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from nord_hpc import __version__
from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    from nord_hpc.studies.comparison import Comparison, Results, Row

FIGURES = ("trials", "seconds", "spent")


def compare(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file with a section `compare`.")],
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=2, help="Seeds of each variant, in place of the file's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where results go; goes on if they are there.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("-n", "--processes", min=1, help="Searches at a time; ranks of each one that trains.")
    ] = None,
    overrides: Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")] = [],  # noqa: B006
) -> int:
    """Compare strategies, or any fields of a job, fairly: same data, budget and seeds; with statistics."""
    from nord_hpc.studies import comparison as comparisons  # scipy takes long to import

    comparison = comparisons.load(job, overrides=overrides, seeds=seeds)
    folder = out or Path("runs") / f"{comparison.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written: {error.strerror}") from error
    console = Console(stderr=True)
    shown = _Shown(console)
    try:
        results = comparisons.run(comparison, folder, processes=processes or os.cpu_count() or 1, on_result=shown)
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is kept: nord-hpc compare {job} --out {folder} goes on", highlight=False)
        return 3
    rows = comparisons.table(comparison, results)
    _write(folder, comparison, results, rows)
    _print(Console(), comparison, rows)
    Console().print(f"tables and figures: {folder}", highlight=False, soft_wrap=True)
    return 0


class _Shown:
    """Says now and then how many searches are done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic() + 5.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 10.0
            self._console.print(f"{done} of {total} searches", highlight=False)


def _note(comparison: Comparison) -> str:
    return f"{comparison.settings.seeds} seeds for each variant; nord_hpc {__version__}"


def _write(folder: Path, comparison: Comparison, results: Results, rows: list[Row]) -> None:
    from nord_hpc.studies import curves

    scale = comparison.settings.scale
    metric = next(iter(comparison.jobs.values())).objective.metric
    data = {
        "nord_hpc": __version__,
        "seeds": comparison.settings.seeds,
        "reference": comparison.reference,
        "metric": metric,
        "scale": scale,
        "rows": [asdict(row) for row in rows],
        "published": comparison.settings.published,
    }
    (folder / "comparison.json").write_text(json.dumps(_finite(data), indent=2), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head, lines = _cells(comparison, rows, plain=True)
        writer.writerow(head)
        writer.writerows(lines)
    by_variant = {
        name: [results.found[name, seed] for seed in range(comparison.settings.seeds) if (name, seed) in results.found]
        for name in comparison.jobs
    }
    for axis in FIGURES:
        curves.draw(by_variant, folder, axis=axis, metric=metric, scale=scale, note=_note(comparison))


def _finite(value: object) -> object:
    """Strict JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _cells(comparison: Comparison, rows: list[Row], *, plain: bool) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table: with mean and deviation in one cell for people, in two for files."""
    settings = comparison.settings
    columns = ["best validation", *(f"test {metric}" for metric in settings.metrics)]
    measured = [name for column in columns for name in ([column, f"{column} deviation"] if plain else [column])]
    head = ["variant", "runs", "trials", *measured, f"difference from {comparison.reference}", "95% interval"]
    head += ["p (Wilcoxon, Holm)", "effect", *(["published"] if settings.published else [])]
    lines = []
    for row in rows:
        cells = [row.name, str(row.n), f"{row.n_trials:.1f}"]
        for mean, deviation in [(row.mean, row.deviation), *row.test.values()]:
            cells += [f"{mean:.4f}", f"{deviation:.4f}"] if plain else [f"{mean:.2f} ± {deviation:.2f}"]
        if row.against is None or row.p_holm is None:
            cells += ["", "", "", ""]
        else:
            paired = row.against
            cells += [f"{paired.difference:+.3f}", f"{paired.low:+.3f} to {paired.high:+.3f}"]
            cells += [f"{row.p_holm:.2g}", f"{paired.effect:+.2f}"]
        lines.append(cells + ([settings.published.get(row.name, "")] if settings.published else []))
    return head, lines


def _print(console: Console, comparison: Comparison, rows: list[Row]) -> None:
    head, lines = _cells(comparison, rows, plain=False)
    table = Table(title=f"{comparison.name}: {_note(comparison)}")
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right")
    for line in lines:
        table.add_row(*line)
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print(
        "± is the standard deviation over the runs. Differences are paired by seed, larger is better; effect is the "
        "matched-pairs rank-biserial correlation.",
        highlight=False,
    )
