"""`nord-hpc retrain` on real ranks: killed, it goes on to the same bits; a cell of digits learns Fashion-MNIST."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import DIGITS, NORD, kill_tree, mpirun, needs_mpirun, nord, start, wait_for, write_job

from nord_hpc.datasets import fashion_mnist
from nord_hpc.store.retrain_folder import RetrainFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_mpirun]

ROOT = Path(__file__).parents[2]
SAME = ("weights_sha256", "curve", "test", "validation")


def search(folder: Path) -> Path:
    """A short search of digits with two shards."""
    nord("run", write_job(folder / "job.json", DIGITS, budget={"trials": 2}), "--out", folder / "run", cwd=folder)
    return folder / "run"


def result(folder: Path) -> dict[str, Any]:
    found = RetrainFolder(folder).result()
    assert found is not None
    return found


def test_a_kill_of_everything_and_another_number_of_ranks_change_no_bit(tmp_path: Path) -> None:
    run = search(tmp_path)
    options = ["--epochs", "8", "--set", "dataset.fraction=1"]
    said = nord("retrain", run, *options, "--out", "whole", cwd=tmp_path)
    assert "validation accuracy" in said.stdout and "epoch 8 of 8: training loss" in said.stderr
    whole = result(tmp_path / "whole")

    broken = RetrainFolder(tmp_path / "broken")
    process = start([*NORD, "retrain", str(run), *options, "--out", "broken", "-n", "2"], cwd=tmp_path)
    try:
        wait_for(
            lambda: RetrainFolder.is_one(broken.path) and len(broken.curve()) >= 2, timeout=90, what="second epoch"
        )
    finally:
        assert kill_tree(process) == []
        process.communicate()
    assert broken.result() is None and 2 <= len(broken.curve()) < 8
    said = nord("retrain", "broken", "-n", "2", "--json", cwd=tmp_path)
    assert json.loads(said.stdout) == result(broken.path)
    assert {name: result(broken.path)[name] for name in SAME} == {name: whole[name] for name in SAME}
    lives = result(broken.path)["lives"]
    assert [life["ranks"] for life in lives] == [2, 2] and lives[1]["after_epoch"] >= 2

    # Under a launcher of one's own, and what is finished is only shown again.
    mpirun(2, "retrain", run, *options, "--out", "launched", cwd=tmp_path)
    assert {name: result(tmp_path / "launched")[name] for name in SAME} == {name: whole[name] for name in SAME}
    before = (tmp_path / "launched" / "lives.jsonl").read_text()
    assert "test accuracy" in mpirun(2, "retrain", "launched", cwd=tmp_path).stdout
    assert (tmp_path / "launched" / "lives.jsonl").read_text() == before


def test_a_rank_that_is_killed_costs_an_epoch_and_no_bit(tmp_path: Path) -> None:
    import psutil

    run = search(tmp_path)
    options = ["--epochs", "8", "--set", "dataset.fraction=1"]
    nord("retrain", run, *options, "--out", "whole", cwd=tmp_path)
    broken = RetrainFolder(tmp_path / "broken")
    process = start([*NORD, "retrain", str(run), *options, "--out", "broken", "-n", "2"], cwd=tmp_path)
    try:
        wait_for(lambda: RetrainFolder.is_one(broken.path) and len(broken.curve()) >= 1, timeout=90, what="first epoch")
        ranks = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "retrain" in child.cmdline() and not child.children()
        ]
        assert len(ranks) == 2
        ranks[1].kill()
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            kill_tree(process)
            process.communicate()
    assert process.returncode == 0, out + err
    assert "the training goes on after epoch" in err
    assert {name: result(broken.path)[name] for name in SAME} == {
        name: result(tmp_path / "whole")[name] for name in SAME
    }


def test_bad_input_under_a_launcher_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    run = search(tmp_path)
    for launch in (lambda *a: nord(*a, cwd=tmp_path, expect=2), lambda *a: mpirun(2, *a, cwd=tmp_path, expect=2)):
        said = launch("retrain", run, "--trial", "9", "--out", "new")
        lines = [line for line in said.stderr.splitlines() if line.startswith("nord-hpc:")]
        assert lines == [f"nord-hpc: --trial 9: {run} has no such trial; its trials are 0 to 1"]
        assert not (tmp_path / "new").exists()


@pytest.mark.skipif(
    not fashion_mnist.SYSTEM_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_a_cell_found_on_digits_learns_fashion_mnist(tmp_path: Path) -> None:
    cheap = "space.operations=[identity, max_pool_3x3, avg_pool_3x3, sep_conv_3x3, conv_1x3_3x1]"
    changes = ["--set", "budget.trials=4", "--set", "training.epochs=3", "--set", "space.filters=4", "--set", cheap]
    nord("run", ROOT / "jobs" / "nasnet_digits.yaml", *changes, "--out", "run", "-n", "3", cwd=tmp_path, timeout=240)
    transfer = ["--set", "dataset.name=fashion_mnist", "--set", "dataset.fraction=0.06", "--set", "space.repeats=2"]
    quick = ["--set", "dataset.validation=0.02", "--set", "training.schedule=cosine", "--epochs", "3"]
    nord("retrain", "run", *transfer, *quick, "--out", "new", "-n", "2", cwd=tmp_path, timeout=540)
    found = result(tmp_path / "new")
    assert (found["dataset"], found["epochs"], len(found["curve"])) == ("fashion_mnist", 3, 3)
    names = [layer["name"] for layer in RetrainFolder(tmp_path / "new").plan().trial.descriptor["layers"]]
    assert len({name.split(".")[0] for name in names if name.startswith("cell")}) == 2 + 1 + 2  # 3 in the search
    # Ten classes alike: one in ten by chance.
    assert found["test"]["accuracy"] > 0.6
    assert found["test"]["n_samples"] == 10_000
