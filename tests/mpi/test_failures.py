"""What goes wrong in a candidate costs one trial; what goes wrong in the master ends the job at once, readably."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from mpi.commands import DIGITS, SYNTHETIC, mpirun, needs_mpirun, nord, status, trials, write_job

from nord_hpc.cluster import launch
from nord_hpc.store.run_folder import RunFolder

pytestmark = [pytest.mark.mpi, needs_mpirun]

STRATEGY = """
import threading, time
from nord_hpc.strategies.random_search import RandomSearch

class Raises(RandomSearch):
    told = 0

    def tell(self, finished):
        self.told += 1
        if self.told == 3:
            if {with_thread}:
                threading.Thread(target=time.sleep, args=(600,)).start()
            raise RuntimeError("the strategy is broken on purpose")
        super().tell(finished)
"""

SPACE = """
from nord_hpc.spaces.conv_graph import ConvGraph

class OneBadLayer(ConvGraph):
    made = 0

    def to_descriptor(self, genotype):
        descriptor = super().to_descriptor(genotype)
        self.made += 1
        if self.made == 5:
            descriptor.add_layer_sequential("layers.py:Raises", {{}}, "bad")
        return descriptor
"""

LAYERS = """
import torch

class Raises(torch.nn.Module):
    calls = 0

    def forward(self, x):
        if x.device.type != "meta":
            self.calls += 1
            if self.calls == 2:
                raise ArithmeticError("the second forward is broken on purpose")
        return x
"""


@pytest.mark.parametrize("with_thread", [False, True])
def test_a_broken_strategy_ends_the_job_with_one_traceback(tmp_path: Path, with_thread: bool) -> None:
    (tmp_path / "mine.py").write_text(STRATEGY.format(with_thread=with_thread))
    job = write_job(
        tmp_path / "job.yaml",
        {**SYNTHETIC, "strategy": {"name": "mine.py:Raises"}},
        budget={"trials": 8},
        resources={"shards": 1, "gang": 1},
    )
    started = time.monotonic()
    done = mpirun(3, "run", job, "--out", tmp_path / "run", cwd=tmp_path, expect=None, timeout=40)
    assert time.monotonic() - started < 15
    assert done.returncode not in (0, 2, 3)
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "rank 0 on " in done.stderr and "RuntimeError: the strategy is broken on purpose" in done.stderr
    found = status(tmp_path / "run")
    assert found["state"] == "error"
    assert sum(row["state"] == "completed" for row in trials(tmp_path / "run")) >= 3
    supervised = nord("resume", tmp_path / "run", "-n", "3", cwd=tmp_path, expect=1, timeout=40)
    assert supervised.stderr.count("RuntimeError: the strategy is broken on purpose") == 1


def test_a_layer_that_raises_costs_one_trial(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SPACE.format())
    job = write_job(
        tmp_path / "job.yaml",
        {**DIGITS, "space": {"name": "mine.py:OneBadLayer", "max_layers": 2, "channels": [4]}},
        strategy={"name": "random_search", "population": None, "sample": None},
        budget={"trials": 8},
    )
    data = json.loads(job.read_text())
    data["strategy"] = {"name": "random_search"}
    data["code"] = ["layers.py"]
    job.write_text(json.dumps(data))
    (tmp_path / "layers.py").write_text(LAYERS)
    nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path)
    rows = trials(tmp_path / "run")
    assert [row["state"] for row in rows] == ["completed"] * 4 + ["failed"] + ["completed"] * 3
    assert rows[4]["failure"] == "exception"
    assert rows[4]["reason"] == "ArithmeticError: the second forward is broken on purpose"
    assert "in forward" in rows[4]["traceback"] and rows[4]["host"]
    assert len(set(map(tuple, (row["ranks"] for row in rows)))) == 1, "the same workers went on"


def test_a_loss_that_is_no_number_is_never_best(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC, evaluator={"nan_every": 4}, budget={"trials": 12})
    for direction, choose in (("maximize", max), ("minimize", min)):
        folder = tmp_path / direction
        nord("run", job, "--out", folder, "--set", f"objective.direction={direction}", cwd=tmp_path)
        rows = trials(folder)  # parsed by a strict reader: NaN would not pass
        failed = [row["number"] for row in rows if row["state"] == "failed"]
        assert failed == [3, 7, 11]
        assert {row["failure"] for row in rows if row["number"] in failed} == {"not_finite"}
        fitness = [row["fitness"] for row in rows if row["fitness"] is not None]
        assert all(map(math.isfinite, fitness))
        assert status(folder)["best"]["fitness"] == choose(fitness)
        parents = {parent for row in rows for parent in row["parents"]}
        assert parents and not parents & set(failed)


def test_a_learning_rate_that_explodes_fails_each_trial_and_the_job_ends(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job.yaml", DIGITS, budget={"trials": 2}, training={"optimizer": {"name": "sgd", "lr": 1e30}}
    )
    nord("run", job, "--out", tmp_path / "run", cwd=tmp_path)
    rows = trials(tmp_path / "run")
    assert [row["failure"] for row in rows] == ["not_finite", "not_finite"]
    assert "is not finite" in rows[0]["reason"]
    assert status(tmp_path / "run")["best"] is None


KILLER = """
import os
from nord_hpc.evaluators.synthetic import SyntheticEvaluator

class Kills(SyntheticEvaluator):
    def evaluate(self, trial, **others):
        if trial.number == 4:
            os.kill(os.getpid(), 9)
        return super().evaluate(trial, **others)
"""


@pytest.mark.parametrize(
    ("fault_tolerance", "n_restarts"), [pytest.param("none", 2, marks=pytest.mark.slow), ("auto", 1)]
)
def test_a_candidate_that_kills_its_rank_is_given_up_and_the_search_goes_on(
    tmp_path: Path, fault_tolerance: str, n_restarts: int
) -> None:
    """Without fault tolerance each death is a restart; with it, only that of the last worker is."""
    if fault_tolerance == "auto" and not launch.can_survive_deaths(launch.find_mpirun())[0]:
        pytest.skip("this MPI does not survive the death of a rank")
    (tmp_path / "mine.py").write_text(KILLER)
    job = write_job(
        tmp_path / "job.yaml",
        {**SYNTHETIC, "evaluator": {"name": "mine.py:Kills", "seconds": 0.05}},
        budget={"trials": 12},
        resources={"shards": 1, "gang": 1, "fault_tolerance": fault_tolerance},
        limits={"attempts": 2},
    )
    done = nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path)
    rows = trials(tmp_path / "run")
    assert [row["number"] for row in rows if row["state"] != "completed"] == [4]
    assert rows[4]["failure"] == "lost"
    assert "given up after 2 attempts (limits.attempts)" in rows[4]["reason"]
    assert done.stderr.count("; the search goes on from what is saved") == n_restarts
    found = status(tmp_path / "run")
    assert found["lives"] == 1 + n_restarts and found["not_repeatable"] == [4]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_candidate_that_never_looks_up_costs_its_rank_and_no_more(tmp_path: Path) -> None:
    """An endless loop in a user's layer: no limit is looked at, so the master ends the rank."""
    (tmp_path / "mine.py").write_text(KILLER.replace("os.kill(os.getpid(), 9)", "while True: pass"))
    job = write_job(
        tmp_path / "job.yaml",
        {**SYNTHETIC, "evaluator": {"name": "mine.py:Kills", "seconds": 0.05}},
        budget={"trials": 12},
        resources={"shards": 1, "gang": 1},
        limits={"attempts": 1, "trial_seconds": 2},
    )
    nord("run", job, "--out", tmp_path / "run", "-n", "4", cwd=tmp_path, timeout=200)
    rows = trials(tmp_path / "run")
    assert [row["number"] for row in rows if row["state"] != "completed"] == [4]
    assert "has not answered within the limit of its trial" in rows[4]["reason"]
    assert len(rows) == 12


def test_an_endless_trial_is_ended_by_its_limit(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job.yaml",
        SYNTHETIC,
        evaluator={"seconds": 60.0, "distribution": "constant"},
        budget={"trials": 2},
        limits={"trial_seconds": 0.5},
    )
    nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path, timeout=30)
    for row in trials(tmp_path / "run"):
        assert row["failure"] == "time_limit"
        assert row["reason"] == "it took more than 0.5 s (limits.trial_seconds)"


def test_plugin_files_travel_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KILLER.replace("trial.number == 4", "False"))
    job = write_job(tmp_path / "job.yaml", {**SYNTHETIC, "evaluator": {"name": "mine.py:Kills"}}, budget={"trials": 4})
    nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path)
    (tmp_path / "mine.py").unlink()
    folder = RunFolder(tmp_path / "run")
    assert folder.job().evaluator.name == "code/mine.py:Kills"
    (tmp_path / "elsewhere").mkdir()
    nord("resume", tmp_path / "run", "--set", "budget.trials=6", "-n", "3", cwd=tmp_path / "elsewhere")
    assert status(tmp_path / "run")["trials"]["completed"] == 6
    (folder.code / "mine.py").write_text("changed = 1\n" + (folder.code / "mine.py").read_text())
    refused = nord("resume", tmp_path / "run", "--set", "budget.trials=8", cwd=tmp_path, expect=2)
    assert "code/mine.py changed" in refused.stderr


def test_plugin_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for folder, source in (("a", "from nord_hpc.spaces.conv_graph import ConvGraph as Mine\n"), ("b", KILLER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(source.replace("trial.number == 4", "False"))
    job = write_job(
        tmp_path / "job.yaml",
        {**SYNTHETIC, "space": {"name": "a/mine.py:Mine"}, "evaluator": {"name": "b/mine.py:Kills"}},
        budget={"trials": 3},
    )
    nord("run", job, "--out", tmp_path / "run", cwd=tmp_path)
    assert status(tmp_path / "run")["trials"]["completed"] == 3
    assert len(list((tmp_path / "run" / "code").iterdir())) == 2


def test_what_is_wrong_on_a_worker_ends_the_search_as_bad_input(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", DIGITS, budget={"trials": 3})
    done = nord(
        "run", job, "--out", tmp_path / "run", "-n", "3", "--set", "resources.backend=single", cwd=tmp_path, expect=2
    )
    assert done.stderr.count("resources.backend: single is for gangs of 1, not 2") == 1
    assert "Traceback" not in done.stderr
    assert status(tmp_path / "run")["trials"]["failed"] == 0


def test_a_refused_change_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", SYNTHETIC)
    nord("run", job, "--out", tmp_path / "run", cwd=tmp_path)
    before = status(tmp_path / "run")
    for change, expected in (
        (["--set", "budget.trials=5"], "the budget is less than was already proposed"),
        (["--set", "order.virtual_gangs=3", "--accept-changes"], "comes out different from the recorded one"),
    ):
        refused = nord("resume", tmp_path / "run", *change, cwd=tmp_path, expect=2)
        assert expected in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
        assert status(tmp_path / "run") == before
    again = nord("resume", tmp_path / "run", cwd=tmp_path)
    assert "0 trials evaluated" in again.stdout


def test_a_space_in_which_nothing_fits_ends_as_bad_input_and_is_recorded(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", DIGITS, limits={"memory_gib": 1e-9, "infeasible_in_a_row": 30})
    done = nord("run", job, "--out", tmp_path / "run", cwd=tmp_path, expect=2)
    assert "30 candidates in a row are infeasible, the last because the network needs about" in done.stderr
    assert status(tmp_path / "run")["trials"]["infeasible"] >= 30


BACKEND = """
from nord_hpc.data_parallel.torch_ddp import TorchDdpBackend

class Mine(TorchDdpBackend):
    name = "mine"
"""


def test_a_backend_and_paths_of_the_user_move_into_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BACKEND)
    job = write_job(tmp_path / "job.yaml", DIGITS, budget={"trials": 2}, resources={"backend": "mine.py:Mine"})
    nord("run", job, "--out", tmp_path / "run", "-n", "3", cwd=tmp_path)
    assert RunFolder(tmp_path / "run").job().resources.backend == "code/mine.py:Mine"
    assert {row["state"] for row in trials(tmp_path / "run")} == {"completed"}
    logged = write_job(tmp_path / "logged.yaml", SYNTHETIC, evaluator={"log": "evaluations.log"}, budget={"trials": 3})
    (tmp_path / "elsewhere").mkdir()
    nord("run", logged, "--out", tmp_path / "logged", cwd=tmp_path / "elsewhere")
    assert len((tmp_path / "evaluations.log").read_text().splitlines()) == 3
