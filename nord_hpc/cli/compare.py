"""`nord-hpc compare`: several searches over the same seeds, as a table, figures and files."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from nord_hpc import __version__
from nord_hpc.cli import wiring
from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    from nord_hpc.studies.comparison import Results, Row
    from nord_hpc.studies.variants import Comparison

OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where results go; goes on if they are there.")
]
SetOption = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option("-n", "--processes", min=1, help="Searches at a time; MPI ranks of each one that trains."),
]


def compare(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file with a section `compare`.")],
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=2, help="Seeds of each variant, in place of the file's.")
    ] = None,
    out: OutOption = None,
    processes: ProcessesOption = None,
    overrides: SetOption = [],  # noqa: B006
) -> int:
    """Compare strategies, or any fields of a job, fairly: same data, budget and seeds; with statistics."""
    from nord_hpc.studies import comparison as comparisons
    from nord_hpc.studies import variants

    comparison = variants.load(job, overrides=overrides, seeds=seeds)
    for variant in comparison.jobs.values():
        wiring.check(variant, n_workers=max(1, (processes or 1) - 1) if variants.trains(variant) else 0)
    folder = make_folder(out, comparison.name)
    console = Console(stderr=True)
    with stops_cleanly(f"nord-hpc compare {job} --out {folder}", console) as stopped:
        n_processes = processes or os.cpu_count() or 1
        results = comparisons.run(comparison, folder, processes=n_processes, on_result=Progress(console, "searches"))
    if stopped:
        return wiring.INTERRUPTED
    rows = comparisons.table(comparison, results)
    try:
        found = comparisons.ranks(comparison, results)
        average = dict(zip(comparison.variants, found.average_ranks, strict=True))
        ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in sorted(average.items(), key=lambda item: item[1]))
        said = f"average ranks over {len(comparison.problems)} problems: {ranks}; Friedman's test p = {found.p:.2g}"
    except BadInput as error:
        average, said = None, str(error)
    _write(folder, comparison, results, rows, average)
    _print(Console(), comparison, rows, said)
    Console().print(f"tables and figures: {folder}", highlight=False, soft_wrap=True)
    return wiring.DONE


def make_folder(out: Path | None, name: str) -> Path:
    """The folder of a study's results; it may be there already.

    Raises:
        BadInput: it cannot be made.
    """
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written: {error.strerror}") from error
    return folder


@contextmanager
def stops_cleanly(command: str, console: Console) -> Iterator[list[str]]:
    """Whoever asks to stop within is told how to go on; what is yielded is then not empty."""
    stopped: list[str] = []

    def stop() -> None:
        raise KeyboardInterrupt

    wiring.on_stop_signals(stop)
    try:
        yield stopped
    except KeyboardInterrupt:
        stopped.append(command)
        console.print(f"stopped; what is done is kept: {command} goes on", highlight=False, soft_wrap=True)


class Progress:
    """Says now and then how many are done."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what = what
        self._next = time.monotonic() + 5.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 10.0
            self._console.print(f"{done} of {total} {self._what}", highlight=False)


def _note(comparison: Comparison) -> str:
    return f"{comparison.settings.seeds} seeds for each variant; nord_hpc {__version__}"


def _write(
    folder: Path, comparison: Comparison, results: Results, rows: list[Row], average_ranks: dict[str, float] | None
) -> None:
    from nord_hpc.studies import curves
    from nord_hpc.studies.searches import file_name
    from nord_hpc.studies.variants import trains

    settings = comparison.settings
    metric = next(iter(comparison.jobs.values())).objective.metric
    data = {
        "nord_hpc": __version__,
        "seeds": settings.seeds,
        "reference": comparison.reference,
        "metric": metric,
        "scale": settings.scale,
        "rows": [asdict(row) for row in rows],
        "average_ranks": average_ranks,
        "published": settings.published,
    }
    (folder / "comparison.json").write_text(json.dumps(finite(data), indent=2), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head, lines = _cells(comparison, rows, plain=True)
        writer.writerow([*head, "nord_hpc"])
        writer.writerows([*line, __version__] for line in lines)
    for problem in comparison.problems:
        by_variant = {name: list(results.of((problem, name), settings.seeds).values()) for name in comparison.variants}
        simulated = not trains(comparison.jobs[problem, comparison.reference])
        for axis in curves.AXES:
            curves.draw(
                by_variant,
                folder / "_".join(["incumbent", *filter(None, [file_name(problem)]), axis]),
                axis=axis,
                metric=metric,
                scale=settings.scale,
                note=f"{problem + ': ' if problem else ''}{_note(comparison)}",
                simulated=simulated,
            )


def finite(value: object) -> object:
    """The same with None for what strict JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _cells(comparison: Comparison, rows: list[Row], *, plain: bool) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table: with mean and deviation in one cell for people, in two for files."""
    settings = comparison.settings
    problems = ["problem"] if len(comparison.problems) > 1 else []
    columns = ["best validation", *(f"test {metric}" for metric in settings.metrics)]
    measured = [name for column in columns for name in ([column, f"{column} deviation"] if plain else [column])]
    head = [*problems, "variant", "runs", "trials", *measured]
    head += [f"difference from {comparison.reference}", "95% interval"]
    head += ["p (Wilcoxon, Holm)", "effect", *(["published"] if settings.published else [])]
    digits = 4 if settings.scale == 1 else 2
    lines = []
    for row in rows:
        cells = [*([row.problem] if problems else []), row.name, str(row.n), f"{row.n_trials:.1f}"]
        for mean, deviation in [(row.mean, row.deviation), *row.test.values()]:
            both = [f"{mean:.6g}", f"{deviation:.6g}"] if plain else [f"{mean:.{digits}f} ± {deviation:.{digits}f}"]
            cells += both
        if row.against is None or row.p_holm is None:
            cells += ["", "", "", ""]
        else:
            paired = row.against
            low, high = (f"{value:+.{digits + 1}f}" for value in (paired.low, paired.high))
            cells += [f"{paired.difference:+.{digits + 1}f}", f"{low} to {high}"]
            cells += [f"{row.p_holm:.2g}", f"{paired.effect:+.2f}"]
        lines.append(cells + ([settings.published.get(row.name, "")] if settings.published else []))
    return head, lines


def _print(console: Console, comparison: Comparison, rows: list[Row], ranks: str) -> None:
    head, lines = _cells(comparison, rows, plain=False)
    print_table(console, f"{comparison.name}: {_note(comparison)}", head, lines)
    compared = comparison.settings.by or "best validation"
    console.print(
        f"± is the standard deviation over the runs. Differences are those of {compared}, paired by seed, larger is "
        f"better; effect is the matched-pairs rank-biserial correlation.\n{ranks}",
        highlight=False,
        soft_wrap=True,
    )


def print_table(console: Console, title: str, head: list[str], lines: list[list[str]]) -> None:
    """A table whose first column is text; wide where nobody's terminal limits it."""
    table = Table(title=title)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right")
    for line in lines:
        table.add_row(*line)
    (console if console.is_terminal else Console(width=200)).print(table)
