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


@pytest.mark.timeout(300)
def test_thirty_thousand_null_trials(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job.yaml",
        SYNTHETIC,
        strategy={"population": 50, "sample": 5},
        budget={"trials": TRIALS},
        resources={"shards": 1, "gang": 1},
        order={"mode": "virtual", "virtual_gangs": 64},
    )
    folder = tmp_path / "run"
    nord("run", job, "--out", folder, "-n", "5", cwd=tmp_path, timeout=250)
    found = status(folder)
    assert found["trials"]["completed"] == TRIALS
    attempts = [a for entry in RunFolder(folder).history().entries.values() for a in entry.attempts]
    seconds = max(a.finished_at or 0.0 for a in attempts) - min(a.started_at for a in attempts)
    rate = TRIALS / seconds
    print(
        f"{rate:.0f} trials a second, {found['master_seconds_per_trial'] * 1e6:.0f} us of the master's CPU per trial, "
        f"one fsync {fsync_milliseconds(tmp_path):.2f} ms"
    )
    assert rate >= 3000


def fsync_milliseconds(folder: Path) -> float:
    times = []
    with Journal(folder / "probe") as journal:
        for number in range(200):
            journal.append({"kind": "probe", "number": number})
            started = time.perf_counter()
            journal.sync()
            times.append(time.perf_counter() - started)
    return sorted(times)[100] * 1e3
