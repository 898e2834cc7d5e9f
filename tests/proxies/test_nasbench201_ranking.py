"""How well zero-cost scores rank 200 random cells of NAS-Bench-201, as real networks on real images."""

from __future__ import annotations

import csv
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.nasbench201 import CONV_1X1, CONV_3X3, cell_of, network_descriptor
from nord_hpc.proxies import NAMES, SIZES, score_network

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
N_CELLS = 200

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA} with real data")


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of CIFAR-10, each channel normalized."""
    content = lzma.decompress((DATA / "cifar10" / "data_batch_1_first2000.bin.xz").read_bytes())
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)[:n]
    x = torch.from_numpy(records[:, 1:].astype(np.float32).reshape(-1, 3, 32, 32) / 255)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x, torch.from_numpy(records[:, 0].astype(np.int64))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_synflow_ranks_cells_as_their_accuracy_after_200_epochs_does(capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(DATA / "nasbench201" / "nasbench201.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))[:N_CELLS].tolist()
    x, y = images(32)
    scores = []
    n_like_table = 0
    for index in chosen:
        row = rows[index]
        network_plan = plan(network_descriptor(cell_of(row["arch"])), input_shape=(3, 32, 32), n_outputs=10)
        n_1x1, n_3x3 = (row["arch"].count(label) for label in (CONV_1X1, CONV_3X3))
        assert network_plan.n_parameters == 73_306 + 28_000 * n_1x1 + 243_040 * n_3x3
        n_like_table += network_plan.n_parameters == round(1e6 * float(row["params_m"]))
        scores.append(score_network(build(network_plan, seed=index), x, y, seed=index))
    # The table has other parameters than its architectures in one row of a hundred.
    assert n_like_table >= 0.97 * N_CELLS
    accuracy = [float(rows[index]["c10_test_200"]) for index in chosen]
    found = {name: spearmanr([score[name] for score in scores], accuracy).statistic for name in (*NAMES, *SIZES)}
    with capsys.disabled():
        print("\nSpearman's correlation with CIFAR-10 test accuracy after 200 epochs, 200 cells of NAS-Bench-201:")
        for name, value in found.items():
            print(f"  {name:<14} {value:6.3f}")
    assert found["synflow"] >= 0.6
    # All of them rank better than chance; beyond 4 standard errors of a correlation that is none.
    assert all(value > 4 / N_CELLS**0.5 for value in found.values())
