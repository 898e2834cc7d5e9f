"""All of Fashion-MNIST through gangs of real ranks: one network, one accuracy, whatever the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi.commands import needs_mpirun, nord, status, trials, write_job

FOLDER = Path("/usr/share/datasets/fashion-mnist")

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.slow,
    needs_mpirun,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist"),
]

JOB = {
    "name": "fashion",
    "dataset": {"name": "fashion_mnist", "path": str(FOLDER), "validation": 0.1},
    "space": {"name": "conv_graph", "max_layers": 2, "channels": [8], "kernels": [3], "pooling": ["max"]},
    "strategy": {"name": "random_search"},
    "training": {"epochs": 1, "batch_size": 256, "optimizer": {"name": "adam", "lr": 0.003}},
    "budget": {"trials": 1},
    "resources": {"shards": 4, "gang": 4},
}


@pytest.mark.timeout(500)
def test_one_epoch_of_60000_images_on_1_2_and_4_ranks(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", JOB)
    seen = []
    for ranks, gang in ((1, 1), (3, 2), (5, 4)):
        folder = tmp_path / f"ranks{ranks}"
        nord("run", job, "--out", folder, "-n", str(ranks), cwd=tmp_path, timeout=240)
        [row] = trials(folder)
        assert row["provenance"]["gang"] == gang == len(row["ranks"])
        # 54,000 training samples in batches of 256 on 4 equal shards: 210 steps, 240 samples left over.
        assert (row["metrics"]["steps"], row["metrics"]["samples_used"]) == (210, 53_760)
        hits = row["fitness"] * 6000
        assert hits == pytest.approx(round(hits), abs=1e-9), "hits over all 6,000 validation images"
        assert row["fitness"] > 0.8
        seen.append((row["fitness"], status(folder)["history_sha256"], status(folder)["best"]["test"]["accuracy"]))
    assert len(set(seen)) == 1
    print(f"validation accuracy {seen[0][0]}, test accuracy {seen[0][2]}")
