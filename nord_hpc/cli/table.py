"""`nord-hpc table`: finished runs as a table that other searches, and comparisons, look candidates up in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nord_hpc.errors import BadInput

FOLDERS = typer.Argument(metavar="DIR...", help="Run folders with the same data, evaluator, training and objective.")


def table(
    folders: Annotated[list[Path], FOLDERS],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table, a file whose name ends in .h5.")],
) -> None:
    """Turn finished runs into a table for `evaluator: {name: table, path: FILE}`, which predicts other networks."""
    if out.suffix != ".h5":
        raise BadInput(f"--out {out}: set a name that ends in .h5")
    from nord_hpc.studies.record_table import record

    made = record(folders, out)
    console = Console()
    lines = [f"{out}: {len(made.recordings)} trainings of {len(made.networks)} networks"]
    error = made.facts.error
    if error is None:
        lines.append("too few networks to predict others; set evaluator.unknown to infeasible")
    else:
        lines.append(
            f"predictions for networks that are not in it ({error['networks']} networks, cross-validated): "
            f"{made.facts.metric} with a mean absolute error of {error['mean_absolute']:.4f} (root mean square "
            f"{error['root_mean_square']:.4f}), Kendall's tau {error['kendall_tau']:.2f}, time within a factor of "
            f"{error['seconds_factor']:.2f}"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
