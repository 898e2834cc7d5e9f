"""The same history on any number of ranks, with any backend, at any speed; another seed gives another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import DIGITS, SYNTHETIC, mpirun, needs_mpirun, nord, status, trials, write_job

pytestmark = [pytest.mark.mpi, needs_mpirun]


def recomputed(rows: list[dict[str, Any]]) -> str:
    """The digest of a history from `nord-hpc trials --json` alone."""
    digest = hashlib.sha256()
    for row in sorted((row for row in rows if row["commit"] is not None), key=lambda row: row["commit"]):
        keys = ("number", "parents", "descriptor_hash", "fidelity", "seed", "state", "fitness")
        line = json.dumps([row[key] for key in keys], separators=(",", ":"), sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def run(tmp_path: Path, job: Path, name: str, *options: str) -> dict[str, Any]:
    nord("run", job, "--out", tmp_path / name, *options, cwd=tmp_path)
    found = status(tmp_path / name)
    assert found["state"] == "finished"
    assert found["history_sha256"] == recomputed(trials(tmp_path / name))
    return found


SOME = ((2, "horovod"), (3, "torch_ddp"), (5, "horovod"))
ALL = tuple((n, backend) for n in (2, 3, 5) for backend in ("horovod", "torch_ddp"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("worlds", [SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_digits_trained_on_1_2_3_and_5_ranks_by_both_backends(
    tmp_path: Path, worlds: tuple[tuple[int, str], ...]
) -> None:
    job = write_job(tmp_path / "job.yaml", DIGITS)
    alone = run(tmp_path, job, "alone", "-n", "1")
    assert alone["best"]["test"]["accuracy"] > 0.2
    for n, backend in worlds:
        name = f"{backend}-{n}"
        found = run(tmp_path, job, name, "-n", str(n), "--set", f"resources.backend={backend}")
        assert found["history_sha256"] == alone["history_sha256"], name
        assert found["best"] == alone["best"]
        assert found["ranks"] == n
        gang = 2 if n >= 3 else 1
        for row in trials(tmp_path / name):
            assert row["provenance"]["gang"] == gang
            assert row["provenance"]["backend"] == (backend if gang == 2 else "single")
            assert len(row["ranks"]) == gang


def test_random_delays_change_nothing_and_another_seed_does(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    calm = run(tmp_path, job, "calm", "-n", "1")
    for attempt in range(2):
        delayed = run(tmp_path, job, f"delayed{attempt}", "-n", "5", "--set", "evaluator.sleep_jitter_seconds=0.2")
        assert delayed["history_sha256"] == calm["history_sha256"]
    assert run(tmp_path, job, "other", "-n", "1", "--set", "seed=1")["history_sha256"] != calm["history_sha256"]


def test_under_a_bare_mpirun(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    done = mpirun(3, "run", job, "--out", tmp_path / "bare", cwd=tmp_path)
    assert "synthetic finished: 20 completed, 0 failed" in done.stdout
    found = status(tmp_path / "bare")
    assert found["ranks"] == 3 and found["gangs"] == 1
    assert found["history_sha256"] == run(tmp_path, job, "alone", "-n", "1")["history_sha256"]
    again = mpirun(3, "run", job, "--out", tmp_path / "bare", cwd=tmp_path, expect=2)
    assert again.stderr.count(f"already holds a run; continue it with: nord-hpc resume {tmp_path / 'bare'}") == 1


def test_hash_seeds_change_nothing(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    digests = set()
    for seed in ("0", "1", "4242"):
        nord("run", job, "--out", tmp_path / seed, cwd=tmp_path, PYTHONHASHSEED=seed)
        digests.add(status(tmp_path / seed)["history_sha256"])
    assert len(digests) == 1
