"""Studies of cheap evaluations: rankings against scipy's own on the table, and on real trainings."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from nord_hpc.errors import BadInput
from nord_hpc.nasbench201 import index_of
from nord_hpc.report.figures import save_figure
from nord_hpc.report.ranking import Ranking, ranking_figure
from nord_hpc.studies import fidelities

ROOT = Path(__file__).parents[2]
NASBENCH201 = ROOT.parent / "shared" / "data" / "nasbench201" / "nasbench201.csv.gz"
BASE: dict[str, Any] = {
    "name": "toy",
    "space": {"name": "conv_graph", "max_layers": 3, "channels": [2, 4]},
    "strategy": {"name": "random_search"},
    "evaluator": {"name": "synthetic"},
    "training": {"epochs": 4},
    "budget": {"trials": 1},
    "proxies": {"networks": 8, "fidelities": {"2 epochs": {"training.epochs": 2}, "again": {"seed": 0}}},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "proxies.yaml"
    path.write_text(json.dumps({**BASE, **changes}))
    return path


def command(*arguments: str | Path, cwd: Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nord_hpc", "proxies", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.skipif(not NASBENCH201.exists(), reason=f"NAS-Bench-201 is not at {NASBENCH201}")
def test_tau_of_12_epochs_is_that_of_the_table_itself(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        space={"name": "nasbench201"},
        evaluator={"name": "nasbench201", "path": str(NASBENCH201), "repeat": "mean"},
        training={"epochs": 200},
        proxies={"networks": 1500, "fidelities": {"12 epochs": {"training.epochs": 12}}},
    )
    study = fidelities.load(path)
    rows = {row.name: row for row in fidelities.rows(study, fidelities.evaluate(study, tmp_path, ranks=1))}
    with gzip.open(NASBENCH201, "rt") as file:
        table = list(csv.DictReader(file))
    picked = [table[index_of(genotype)] for genotype in study.genotypes]
    assert len({row["index"] for row in picked}) == 1500
    short, full = ([float(row[name]) for row in picked] for name in ("c10_val_12", "c10_val_200"))
    found = rows["12 epochs"]
    assert found.agreement is not None and found.agreement.n == 1500
    assert found.agreement.tau == pytest.approx(stats.kendalltau(short, full).statistic, abs=1e-9)
    assert found.agreement.rho == pytest.approx(stats.spearmanr(short, full).statistic, abs=1e-9)
    low, high = found.agreement.tau_interval
    assert found.agreement.tau - 0.04 < low < found.agreement.tau < high < found.agreement.tau + 0.04
    assert found.speed_up is not None and 14 < found.speed_up < 16.7
    baseline = rows["multiply-adds"]
    assert baseline.agreement is not None and baseline.speed_up is None
    sizes = [float(row["flops_m"]) for row in picked]
    assert baseline.agreement.tau == pytest.approx(stats.kendalltau(sizes, full).statistic, abs=1e-9)


def test_rows_and_files(tmp_path: Path) -> None:
    done = command(write(tmp_path), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 networks; nord_hpc" in done.stdout and "costs nothing" not in done.stdout
    data = json.loads((tmp_path / "out" / "proxies.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == ["2 epochs", "again", "parameters", "multiply-adds"]
    assert rows["parameters"]["agreement"] is None  # the synthetic evaluator builds no network
    assert rows["again"]["agreement"]["tau"] == pytest.approx(1.0)  # same networks, same seeds
    assert rows["2 epochs"]["speed_up"] == pytest.approx(2.0, rel=0.01)
    assert rows["2 epochs"]["agreement"]["tau"] < 0.99  # its seeds are others
    with (tmp_path / "out" / "networks.csv").open() as file:
        networks = list(csv.DictReader(file))
    assert len(networks) == len({row["descriptor_hash"] for row in networks}) == 8
    expected = stats.kendalltau(*np.array([[float(row[name]) for name in ("2 epochs", "full")] for row in networks]).T)
    assert rows["2 epochs"]["agreement"]["tau"] == pytest.approx(expected.statistic)
    assert all((tmp_path / "out" / f"proxies.{kind}").stat().st_size > 1000 for kind in ("png", "svg", "pdf"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxies": None}, "a study of proxies is a job file with a section of that name"),
        ({"proxies": {"networks": 9}}, "set fidelities (name: fields), scores, or both"),
        ({"proxies": {"fidelities": {"full": {}}}}, "'full' is a name of the table's own"),
        ({"proxies": {"networks": 2, "scores": ["synflow"]}}, "proxies.networks: 2 is wrong; set a number of at least"),
        ({"proxies": {"fidelities": {"a": {"training.epochz": 1}}}}, "training.epochz: is not a known key"),
        ({"proxies": {"scores": ["sinflow"]}}, "sinflow"),
        (
            {"space": {"name": "conv_graph", "max_layers": 2, "channels": [2], "kernels": [3], "pooling": ["none"]}},
            "proxies.networks: the space gives ",
        ),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        fidelities.load(write(tmp_path, **changes))
    assert said in str(caught.value)


def test_the_figure_says_what_it_shows(tmp_path: Path) -> None:
    rankings = [Ranking("1 epoch", 0.6, 0.4, 0.8, 7.5), Ranking("parameters", 0.3, -0.1, 0.6, None)]
    figure = ranking_figure(rankings, note="30 networks; nord_hpc 1")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1 epoch", "parameters"]
    assert [line.get_xdata()[0] for line in axes.lines[1:4:2]] == [7.5, 22.5]
    assert [text.get_text() for text in figure.texts] == ["30 networks; nord_hpc 1"]
    assert save_figure(figure, tmp_path / "a.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_trainings_and_scores(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        evaluator={"name": "training"},
        dataset={"name": "digits", "fraction": 0.3},
        training={"epochs": 3, "optimizer": {"name": "adam", "lr": 0.003}},
        proxies={"networks": 4, "fidelities": {"1 epoch": {"training.epochs": 1}}, "scores": ["synflow"]},
    )
    done = command(path, "--out", tmp_path / "out", cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "proxies.json").read_text())["rows"]}
    assert list(rows) == ["1 epoch", "synflow", "parameters", "multiply-adds"]
    assert all(row["agreement"]["n"] == 4 and -1 <= row["agreement"]["tau"] <= 1 for row in rows.values())
    assert rows["1 epoch"]["speed_up"] > 1
    with (tmp_path / "out" / "networks.csv").open() as file:
        networks = list(csv.DictReader(file))
    assert all(0 < float(row["full"]) <= 1 and float(row["synflow"]) > 0 for row in networks)
    again = command(path, "--out", tmp_path / "out", cwd=tmp_path, timeout=60)  # nothing is trained again
    assert again.returncode == 0, again.stderr
