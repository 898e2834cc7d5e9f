"""Null trials through five ranks, with the journal on: what the search itself costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mpi.commands import SYNTHETIC, needs_mpirun, nord, status, write_job

from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import RunFolder

pytestmark = [pytest.mark.mpi, pytest.mark.slow, needs_mpirun]

TRIALS = 30_000


@pytest.mark.timeout(600)
def test_thirty_thousand_null_trials(tmp_path: Path) -> None:
    """At least 3,000 a second; on a machine that others use too, the best of up to three runs counts."""
    job = write_job(
        tmp_path / "job.yaml",
        SYNTHETIC,
        strategy={"population": 50, "sample": 5},
        budget={"trials": TRIALS},
        resources={"shards": 1, "gang": 1},
        order={"mode": "virtual", "virtual_gangs": 64},
    )
    rates: list[float] = []
    while len(rates) < 3 and max(rates, default=0.0) < 3000:
        rates.append(rate_of(job, tmp_path / f"run{len(rates)}"))
    assert max(rates) >= 3000, rates


def rate_of(job: Path, folder: Path) -> float:
    """Trials a second from the first start to the last result of a run; prints what it cost."""
    nord("run", job, "--out", folder, "-n", "5", cwd=folder.parent, timeout=180)
    found = status(folder)
    assert found["trials"]["completed"] == TRIALS
    attempts = [a for entry in RunFolder(folder).history().entries.values() for a in entry.attempts]
    rate = TRIALS / (max(a.finished_at or 0.0 for a in attempts) - min(a.started_at for a in attempts))
    print(
        f"{rate:.0f} trials a second, {found['master_seconds_per_trial'] * 1e6:.0f} us of the master's CPU per trial, "
        f"{found['fsyncs']} fsyncs of {fsync_milliseconds(folder):.2f} ms"
    )
    return rate


def fsync_milliseconds(folder: Path) -> float:
    times = []
    with Journal(folder / "probe") as journal:
        for number in range(200):
            journal.append({"kind": "probe", "number": number})
            started = time.perf_counter()
            journal.sync()
            times.append(time.perf_counter() - started)
    return sorted(times)[100] * 1e3
