"""Search: what a script puts together does what a job file does, with the script's own classes, and is continued."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import kill_tree, needs_mpirun, nord, start, trials

import nord_hpc
from nord_hpc.errors import BadInput
from nord_hpc.job import TrainingSettings
from nord_hpc.spaces.conv_graph import ConvGraph
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.strategies.random_search import RandomSearch

SMALL: dict[str, Any] = {
    "space": {"name": "conv_graph", "max_layers": 2},
    "strategy": "random_search",
    "evaluator": "synthetic",
    "budget": {"trials": 4},
}

LAYERS = """
import torch

class Base(torch.nn.Module):
    pass

class Double(Base):
    def forward(self, x):
        assert isinstance(self, Base) and type(self) is Double
        return 2.0 * x
"""

OWN_DATA = """
from nord_hpc.datasets.digits import Digits

class OwnDigits(Digits):
    pass
"""

SCRIPT = """
import sys

import torch

import nord_hpc
from nord_hpc.spaces.conv_graph import ConvGraph
from nord_hpc.strategies.regularized_evolution import RegularizedEvolution
from own_data import OwnDigits


class Half(torch.nn.Module):
    def forward(self, x):
        assert type(self) is Half
        return 0.5 * x


class OwnSpace(ConvGraph):
    def to_descriptor(self, genotype):
        descriptor = super().to_descriptor(genotype)
        descriptor.add_layer_sequential(Half, None, "half")
        descriptor.add_layer_sequential("LAYERS:Double", None, "double")
        return descriptor


class OwnStrategy(RegularizedEvolution):
    def __init__(self, options, *, space, seed, full_fidelity):
        assert type(space) is OwnSpace
        super().__init__(options, space=space, seed=seed, full_fidelity=full_fidelity)


search = nord_hpc.Search(
    name="own",
    space={"name": OwnSpace, "max_layers": 2, "channels": [4]},
    strategy={"name": OwnStrategy, "population": 3, "sample": 2},
    dataset={"name": OwnDigits, "fraction": 0.3},
    training={"epochs": 1},
    budget={"trials": 4},
    code=["LAYERS"],
)

if __name__ == "__main__":
    result = search.run(sys.argv[1])
    print("script goes on:", result.state, result.best_fitness, result.best.last_layer, len(result.trials))
"""


def run_script(
    *command: str | Path, cwd: Path, timeout: float = 100, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python, or mpirun, to its end."""
    process = start([str(part) for part in command], cwd=cwd, **environ)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        out, err = process.communicate()
        raise AssertionError(f"{command} took more than {timeout} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def mpirun(n: int, script: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("mpirun")
    options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx"]
    options += ["--mca", "mpi_yield_when_idle", "1", "-n", str(n)]
    return run_script(program, *options, sys.executable, script, *arguments, cwd=cwd)


def write_script(folder: Path, text: str = SCRIPT) -> Path:
    """A start script in a folder of its own, with its data set beside it and layers elsewhere."""
    (folder / "script").mkdir()
    (folder / "elsewhere").mkdir()
    layers = folder / "elsewhere" / "layers.py"
    layers.write_text(LAYERS)
    (folder / "script" / "own_data.py").write_text(OWN_DATA)
    script = folder / "script" / "start.py"
    script.write_text(text.replace("LAYERS", str(layers)))
    return script


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.mpi
@needs_mpirun
def test_classes_of_the_script_work_on_all_ranks_and_after_a_resume(tmp_path: Path) -> None:
    script, run, other = write_script(tmp_path), tmp_path / "run", tmp_path / "other"
    other.mkdir()
    done = mpirun(3, script, run, cwd=other)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("script goes on: finished") == 1 and done.stdout.rstrip().endswith("double 4")
    assert sorted(RunFolder(run).code_digests()) == ["layers.py", "own_data.py", "start.py"]
    assert RunFolder(run).history().lives[0].code == RunFolder(run).code_digests()
    first = trials(run)
    assert [row["state"] for row in first] == ["completed"] * 4
    kinds = [layer["kind"] for layer in first[0]["descriptor"]["layers"]]
    assert kinds[-2:] == ["start.py:Half", f"{tmp_path}/elsewhere/layers.py:Double"]
    shutil.rmtree(script.parent)  # a resume needs the run folder alone
    shutil.rmtree(tmp_path / "elsewhere")
    nord("resume", run, "-n", "3", "--set", "budget.trials=6", cwd=other, PYTHONPATH="")
    again = trials(run)
    assert [row["state"] for row in again] == ["completed"] * 6
    assert [row["fitness"] for row in again[:4]] == [row["fitness"] for row in first]
    assert [layer["kind"] for layer in again[5]["descriptor"]["layers"]][-2:] == kinds[-2:]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.mpi
@needs_mpirun
def test_what_is_wrong_is_told_once_by_rank_0(tmp_path: Path) -> None:
    script = write_script(tmp_path, SCRIPT.replace('"population": 3', '"populaton": 3'))
    done = mpirun(3, script, tmp_path / "run", cwd=tmp_path)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("in <module>") == 1  # of one rank
    assert "BadInput: Search: strategy.populaton: is not a known key; remove it" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_search_is_the_job_that_a_file_would_be(tmp_path: Path) -> None:
    result = nord_hpc.Search(**SMALL, seed=3, training=TrainingSettings(epochs=2)).run(tmp_path / "run")
    assert result.state == "finished" and len(result.trials) == 4
    job = RunFolder(result.folder).job()
    assert (job.seed, job.training.epochs, job.strategy.name, job.code) == (3, 2, "random_search", ())
    (tmp_path / "job.yaml").write_text(RunFolder(result.folder).job_file.read_text())
    nord("run", tmp_path / "job.yaml", "--out", tmp_path / "same", cwd=tmp_path)
    assert RunFolder(tmp_path / "same").history().history_sha256 == result.summary["history_sha256"]
    best = max(result.trials, key=lambda row: row["fitness"])
    assert result.best is not None and result.best.canonical_hash() == best["descriptor_hash"]
    assert result.best_fitness == best["fitness"]
    with pytest.raises(BadInput, match="already holds a run; continue it with: nord-hpc resume"):
        nord_hpc.Search(**SMALL).run(result.folder)


def test_built_in_classes_go_by_their_names() -> None:
    job = nord_hpc.Search(**{**SMALL, "space": ConvGraph, "strategy": {"name": RandomSearch}}).job()
    assert (job.space.name, job.strategy.name) == ("conv_graph", "random_search")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"strategy": "random_serch"}, "Search: strategy.name: unknown strategy 'random_serch': did you mean random_s"),
        ({"training": {"epochs": -1}}, "Search: training.epochs: -1 is wrong; set a number of at least 0"),
        ({"trainin": {"epochs": 1}}, "Search: trainin: is not a known key; remove it"),
        ({"budget": {}}, "Search: budget: set trials, hours, simulated_seconds, or several of them"),
    ],
)
def test_messages_are_those_of_a_job_file(section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        nord_hpc.Search(**{**SMALL, **section}).job()
    assert message in str(refused.value)


def test_code_without_a_file_is_refused(tmp_path: Path) -> None:
    class Local(ConvGraph):
        pass

    line = test_code_without_a_file_is_refused.__code__.co_firstlineno
    with pytest.raises(BadInput) as refused:
        nord_hpc.Search(**SMALL, dataset={"name": "digits", "transform": lambda x: x}).run(tmp_path / "run")
    told = str(refused.value)
    assert told.startswith("rank 0: dataset.transform is test_code_without_a_file_is_refused.<locals>.<lambda> of ")
    assert f"test_search.py:{line + 6}, which cannot be written into a job" in told
    assert told.endswith("set plain values, or a class that stands at the top level of a file")
    with pytest.raises(BadInput, match=r"rank 0: space: class test_c.*<locals>.Local of .* is made inside a f"):
        nord_hpc.Search(**{**SMALL, "space": Local}).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_of_an_interactive_session_is_refused(tmp_path: Path) -> None:
    program = (
        "import nord_hpc\nfrom nord_hpc.spaces.conv_graph import ConvGraph\nclass Mine(ConvGraph): pass\n"
        "nord_hpc.Search(space=Mine, strategy='random_search', budget={'trials': 2}).run('run')\n"
    )
    done = run_script(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert "BadInput: rank 0: space: class Mine of __main__ belongs to an interactive session" in done.stderr
    assert not (tmp_path / "run").exists()


UNGUARDED = """
import nord_hpc
from nord_hpc.spaces.conv_graph import ConvGraph
import helper

class Mine(ConvGraph):
    pass

GUARDnord_hpc.Search(
    space={"name": Mine, "max_layers": 2}, strategy="random_search", evaluator="synthetic", budget={"trials": 2}MORE
).run("run")
"""


@pytest.mark.parametrize(
    ("guard", "more", "message"),
    [
        ("", ', code=["helper.py"]', 'start.py starts a search when it is imported.*under: if __name__ == "__main__":'),
        ('if __name__ == "__main__": ', "", "cannot be imported: ModuleNotFoundError: No module named 'helper'"),
        ('if __name__ == "__main__": ', ', code=["helper.py"]', None),
    ],
)
def test_a_script_that_no_resume_could_import_is_refused(
    tmp_path: Path, guard: str, more: str, message: str | None
) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    script = tmp_path / "start.py"
    script.write_text(UNGUARDED.replace("GUARD", guard).replace("MORE", more))
    done = run_script(sys.executable, script, cwd=tmp_path)
    if message is None:
        assert done.returncode == 0 and (tmp_path / "run" / "code" / "helper.py").exists()
        return
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(message, last)
    assert "BadInput: rank 0: a new process, as each resume is one, cannot use these classes: " in last


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text(f"NAME = {name!r}\n")
    with pytest.raises(BadInput, match=r"a/layers.py and .*b/layers.py have one name in the run folder; rename one"):
        nord_hpc.Search(**SMALL, code=["a/layers.py", "b/layers.py"], folder=tmp_path).job()
