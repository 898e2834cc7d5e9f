"""`nord-hpc proxies`: how well cheap evaluations rank networks, as a table, a figure and files."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nord_hpc import __version__
from nord_hpc.cli import wiring
from nord_hpc.cli.compare import OutOption, Progress, SetOption, finite, make_folder, print_table, stops_cleanly

if TYPE_CHECKING:
    from nord_hpc.studies.fidelities import Row, Scores, Study

HEAD = ["proxy", "networks", "Kendall's tau", "95% interval", "Spearman's rho", "95% interval", "speed-up"]


def proxies(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file with a section `proxies`.")],
    out: OutOption = None,
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="MPI ranks of what trains, the master included.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
) -> int:
    """Say how well cheap evaluations (few epochs, less data, zero-cost scores) rank networks, and what they save."""
    from nord_hpc.studies import fidelities

    study = fidelities.load(job, overrides=overrides)
    for fidelity in study.jobs.values():
        wiring.check(fidelity)
    folder = make_folder(out, study.name)
    console = Console(stderr=True)
    with stops_cleanly(f"nord-hpc proxies {job} --out {folder}", console) as stopped:
        scores = fidelities.evaluate(study, folder, ranks=ranks or 1, on_result=Progress(console, "fidelities"))
    if stopped:
        return wiring.INTERRUPTED
    rows = fidelities.rows(study, scores)
    note = f"{len(study.genotypes)} networks; nord_hpc {__version__}"
    _write(folder, study, scores, rows, note)
    print_table(Console(), f"{study.name}: {note}", HEAD, [_cells(row) for row in rows])
    Console().print(f"table and figures: {folder}", highlight=False, soft_wrap=True)
    return wiring.DONE


def _cells(row: Row) -> list[str]:
    if row.agreement is None:
        return [row.name, "", "not known", "", "", "", ""]
    found = row.agreement
    intervals = [f"{low:+.3f} to {high:+.3f}" for low, high in (found.tau_interval, found.rho_interval)]
    speed_up = "costs nothing" if row.speed_up is None else f"{row.speed_up:.1f}"
    return [row.name, str(found.n), f"{found.tau:+.3f}", intervals[0], f"{found.rho:+.3f}", intervals[1], speed_up]


def _write(folder: Path, study: Study, scores: dict[str, Scores], rows: list[Row], note: str) -> None:
    from nord_hpc.report.figures import save_figure
    from nord_hpc.report.ranking import Ranking, ranking_figure

    data = {"nord_hpc": __version__, "networks": len(study.genotypes), "rows": [asdict(row) for row in rows]}
    (folder / "proxies.json").write_text(json.dumps(finite(data), indent=2), encoding="utf-8")
    with (folder / "proxies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*HEAD[:3], "low", "high", HEAD[4], "low", "high", HEAD[6], "nord_hpc"])
        for row in rows:
            found = row.agreement
            if found is not None:
                values = [found.n, found.tau, *found.tau_interval, found.rho, *found.rho_interval, row.speed_up]
                writer.writerow([row.name, *values, __version__])
    with (folder / "networks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "descriptor_hash", "n_parameters", "multiply_adds", *scores])
        for number in range(len(study.genotypes)):
            trial = scores["full"].trials.get(number)
            known = ["", "", ""] if trial is None else [trial.descriptor_hash, trial.n_parameters, trial.multiply_adds]
            writer.writerow([number, *known, *(of_fidelity.values.get(number) for of_fidelity in scores.values())])
    rankings = [
        Ranking(row.name, row.agreement.tau, *row.agreement.tau_interval, row.speed_up)
        for row in rows
        if row.agreement is not None
    ]
    for kind in ("png", "svg", "pdf"):
        save_figure(ranking_figure(rankings, note=note), folder / f"proxies.{kind}")
