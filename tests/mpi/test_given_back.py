"""What trials take is given back: files, threads and memory after thousands of gangs and after failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import DIGITS, NORD, needs_mpirun, nord, start, status, trials, write_job

pytestmark = [pytest.mark.slow, pytest.mark.mpi]

OWN = '''
import json, os, time
import psutil, torch
from pydantic import BaseModel
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.evaluators.training_evaluator import TrainingEvaluator


class Watched(TrainingEvaluator):
    """Leaves a line for each trial: files, threads, memory and processor time of this rank, after it."""

    def evaluate(self, trial, *, gang, control, keep_above):
        try:
            return super().evaluate(trial, gang=gang, control=control, keep_above=keep_above)
        finally:
            me = psutil.Process()
            seen = [len(os.listdir("/proc/self/fd")), me.num_threads(), me.memory_info().rss, sum(me.cpu_times()[:2])]
            with open(self._weights_folder.parent / f"seen-{os.getpid()}.jsonl", "a") as file:
                file.write(json.dumps([trial.number, gang.size, *seen]) + "\\n")


class Space:
    """One small network of 50 parameters after another."""

    class Options(BaseModel):
        pass

    def __init__(self, options):
        self.given = 0

    def sample(self, rng):
        self.given += 1
        return self.given - 1

    def mutate(self, genotype, rng):
        return genotype + 1

    def crossover(self, first, second, rng):
        return first

    def contains(self, genotype):
        return isinstance(genotype, int) and genotype >= 0

    def to_descriptor(self, genotype):
        network = NeuralDescriptor()
        network.add_layer("AvgPool2d", {"kernel_size": 4}, "pool")
        return network


class Gangs(Space):
    """Two gangs of two, then one of four, and so on."""

    def settings(self, genotype):
        return {"resources.gang": 4 if genotype % 3 == 2 else 2}


class Raises(torch.nn.Module):
    """Holds ten megabytes, and fails where it is told to."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails
        self.register_buffer("held", torch.zeros(2_500_000))

    def forward(self, x):
        if self.fails and x.device.type != "meta":
            raise ArithmeticError("every second one fails")
        return x


class Failing(Space):
    """Every second network fails in its first forward pass."""

    def to_descriptor(self, genotype):
        network = super().to_descriptor(genotype)
        network.add_layer_sequential("own.py:Raises", {"fails": genotype % 2 == 1}, "raises")
        return network


class OneLarge(Space):
    """The third network has a layer of 10 billion weights."""

    def to_descriptor(self, genotype):
        network = NeuralDescriptor()
        network.add_layer("Flatten", None, "flat")
        if genotype == 2:
            network.add_layer_sequential("Linear", {"out_features": 100_000}, "wide")
            network.add_layer_sequential("Linear", {"out_features": 100_000}, "large")
        return network
'''


def own_job(folder: Path, **changes: Any) -> Path:
    (folder / "own.py").write_text(OWN)
    base = {**DIGITS, "dataset": {"name": "digits", "fraction": 0.1}, "strategy": {"name": "random_search"}}
    return write_job(folder / "job.yaml", {**base, "evaluator": {"name": "own.py:Watched"}}, **changes)


def seen(run: Path) -> list[list[list[float]]]:
    """By rank that evaluated: trial, size of the gang, files, threads, bytes and processor seconds, trial by trial."""
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(run.glob("seen-*"))]


@needs_mpirun
@pytest.mark.timeout(1500)
def test_three_thousand_trials_of_changing_gangs(tmp_path: Path) -> None:
    job = own_job(
        tmp_path,
        space={"name": "own.py:Gangs"},
        training={"epochs": 0},
        budget={"trials": 3000},
        resources={"shards": 4, "gang": 2},
    )
    nord("run", job, "-n", "5", "--out", "run", cwd=tmp_path, timeout=1400)
    rows = trials(tmp_path / "run")
    assert [row["state"] for row in rows] == ["completed"] * 3000
    assert {row["n_parameters"] for row in rows} == {50}
    ranks = seen(tmp_path / "run")
    assert len(ranks) == 4
    for lines in ranks:
        assert {line[1] for line in lines} == {2, 4}
        _, _, files, threads, memory, _ = early = next(line for line in lines if line[0] >= 100)
        _, _, files_at_end, threads_at_end, memory_at_end, _ = lines[-1]
        assert abs(files_at_end - files) <= 2 and abs(threads_at_end - threads) <= 2, (early, lines[-1])
        assert memory_at_end - memory < 50e6, (early, lines[-1])
    # Processor time of all ranks together, as they wait for one another; another's load does not count in it.
    spent = [sum(seconds_until(lines, 100 + n) for lines in ranks) for n in (0, 200, 2700, 2900)]
    assert spent[3] - spent[2] < 2 * (spent[1] - spent[0]), spent


def seconds_until(lines: list[list[float]], number: float) -> float:
    return max(line[5] for line in lines if line[0] <= number)


@pytest.mark.timeout(300)
def test_memory_of_failed_trials_is_given_back(tmp_path: Path) -> None:
    job = own_job(tmp_path, space={"name": "own.py:Failing"}, code=["own.py"], budget={"trials": 200}, resources={})
    nord("run", job, "--out", "run", "--set", "resources.gang=1", "--set", "resources.shards=1", cwd=tmp_path)
    rows = trials(tmp_path / "run")
    assert [row["state"] for row in rows] == ["completed", "failed"] * 100
    assert {row["reason"] for row in rows[1::2]} == {"ArithmeticError: every second one fails"}
    (lines,) = seen(tmp_path / "run")
    memory = {int(line[0]): line[4] for line in lines}
    assert len(memory) == 200 and memory[199] - memory[9] < 100e6


@pytest.mark.timeout(300)
@pytest.mark.parametrize("gib", [4, 1000])
def test_one_network_that_is_too_large_costs_one_trial(tmp_path: Path, gib: int) -> None:
    """By the estimate it is refused before anything is allocated; without it, allocating it fails, and that alone."""
    job = own_job(
        tmp_path,
        space={"name": "own.py:OneLarge"},
        budget={"trials": 9 if gib == 4 else 10},
        resources={"shards": 1, "gang": 1},
        limits={"memory_gib": gib},
    )
    command = [*NORD, "run", str(job), "--out", "run"]
    process = start(["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash", *command], cwd=tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    rows = trials(tmp_path / "run")
    assert [row["state"] for row in rows if row["number"] != 2] == ["completed"] * 9
    assert status(tmp_path / "run")["trials"]["completed"] == 9
    if gib == 4:
        assert rows[2]["state"] == "infeasible" and rows[2]["attempts"] == 0
        assert rows[2]["reason"] == "the network needs about 149.50 GiB to train, more than limits.memory_gib 4"
    else:
        assert (rows[2]["state"], rows[2]["failure"]) == ("failed", "out_of_memory")
