"""AgEBO on Fashion-MNIST through real ranks: gangs of one and of two in one search, and networks that have learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi.commands import ROOT, needs_mpirun, nord, status, trials

FOLDER = Path("/usr/share/datasets/fashion-mnist")

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.slow,
    needs_mpirun,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist"),
]


@pytest.mark.timeout(600)
def test_the_job_of_the_repository_trains_with_gangs_of_1_and_2(tmp_path: Path) -> None:
    job = ROOT / "jobs" / "agebo_fashion_mnist.yaml"
    folder = tmp_path / "run"
    overrides = ["--set", f"dataset.path={FOLDER}"]
    nord("run", job, *overrides, "--out", folder, "-n", "3", cwd=tmp_path, timeout=500)
    rows = trials(folder)
    assert [row["state"] for row in rows] == ["completed"] * 20
    for row in rows:
        settings = row["settings"]
        gang = settings["resources.gang"]
        assert row["provenance"]["gang"] == gang == len(row["ranks"]) == settings["resources.shards"]
        assert settings["training.batch_size"] in [32 * gang, 64 * gang, 128 * gang]
        assert settings["training.scale_lr"] == "linear"
        assert 0.0003 <= settings["training.optimizer.lr"] <= 0.03
    assert {row["settings"]["resources.gang"] for row in rows} == {1, 2}
    assert any(row["parents"] for row in rows), "no network has evolved"
    # Ten classes of equal size: chance is 0.1.
    assert max(row["fitness"] for row in rows) > 0.6
    assert status(folder)["best"]["test"]["accuracy"] > 0.6
