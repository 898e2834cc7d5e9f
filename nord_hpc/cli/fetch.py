"""`nord-hpc fetch`: gets the data of a job where there is a network, so that a cluster's nodes find them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from nord_hpc import job as jobs
from nord_hpc.cli import wiring
from nord_hpc.cluster import parts
from nord_hpc.datasets.download import ALLOWED


def fetch(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job.")
    ] = [],  # noqa: B006
) -> int:
    """Download and check the data of a job, on the login node of a cluster; searches then find them in the cache."""
    os.environ[ALLOWED] = "1"
    loaded = jobs.load(job, overrides=[*overrides, "dataset.stage=null"])  # of a node that this is not
    evaluator = parts.make_evaluator(loaded, loaded.folder)
    print(evaluator.describe())
    return wiring.DONE
