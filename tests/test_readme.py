"""The texts for users: their code runs, their links lead somewhere, their commands exist with their options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer.main
from conformance.strategy_suite import StrategySuite

from nord_hpc import job as jobs
from nord_hpc.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def blocks(text: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(text.read_text(encoding="utf-8")) if kind == language]


def named_files() -> dict[str, str]:
    """The blocks of the README that begin with their file's name as a comment."""
    found = {}
    for code in blocks(ROOT / "README.md", "python") + blocks(ROOT / "README.md", "yaml"):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", code)
        assert name is not None, f"a block of the README without a file name: {code[:80]}"
        found[name[1]] = code
    return found


# Made when the module is imported, as the conformance suite names the strategy's file in its class.
_FOLDER = tempfile.TemporaryDirectory(prefix="nord_hpc-readme-")
FOLDER = Path(_FOLDER.name)
for _name, _code in named_files().items():
    (FOLDER / _name).write_text(_code, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _remove_folder() -> Iterator[None]:
    yield
    _FOLDER.cleanup()


def nord_hpc(*arguments: str, cwd: Path = FOLDER) -> str:
    """Standard output of a command that must end with 0."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
    command = [sys.executable, "-m", "nord_hpc", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_folder() -> Path:
    """A run of 12 formula trials, some of them failed, at the place that the texts name."""
    evaluator = "evaluator={name: synthetic, fail_every: 5}"
    settings = [evaluator, "budget.trials=12", "strategy.population=4", "strategy.sample=2"]
    options = [part for setting in settings for part in ("--set", setting)]
    nord_hpc("run", str(ROOT / "jobs/digits_evolution.yaml"), "--out", "runs/first", *options)
    return FOLDER / "runs/first"


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nord_hpc("status", str(folder), "--json"))
    return found


def test_the_examples_are_all_there() -> None:
    assert sorted(named_files()) == [
        "depth_table.py",
        "digits_evolution.yaml",
        "hill_climb.py",
        "mpi_backend.py",
        "my_benchmark.yaml",
        "my_search.yaml",
        "stripes.py",
    ]


@pytest.mark.parametrize("name", [name for name in named_files() if name.endswith(".yaml")])
def test_a_job_of_the_readme_is_valid(name: str) -> None:
    loaded = jobs.load(FOLDER / name)
    assert loaded.name == Path(name).stem


def test_the_job_that_is_explained_is_the_one_in_jobs() -> None:
    explained, real = jobs.load(FOLDER / "digits_evolution.yaml"), jobs.load(ROOT / "jobs/digits_evolution.yaml")
    assert explained.to_json() == real.to_json()


def test_strategy_and_data_set_of_the_readme_search() -> None:
    nord_hpc("run", "my_search.yaml", "--out", "searched")
    found = status(FOLDER / "searched")
    assert (found["state"], found["trials"]["completed"]) == ("finished", 8)
    rows = json.loads(nord_hpc("trials", "searched", "--json"))
    assert [row["parents"] for row in rows[:4]] == [[]] * 4
    for row in rows[4:]:
        (parent,) = row["parents"]
        # With two virtual gangs all trials but the one before are told when the next is asked for.
        assert parent < row["number"]
        assert rows[parent]["fitness"] is not None
    assert sorted(path.name for path in (FOLDER / "searched/code").glob("*.py")) == ["hill_climb.py", "stripes.py"]


def test_benchmark_of_the_readme_is_searched_to_its_maximum() -> None:
    nord_hpc("run", "my_benchmark.yaml", "--out", "looked-up")
    found = status(FOLDER / "looked-up")
    assert (found["state"], found["trials"]["completed"]) == ("finished", 100)
    assert found["best"]["fitness"] == 0.95
    assert found["best"]["test"] == {"accuracy": 0.95}
    rows = json.loads(nord_hpc("trials", "looked-up", "--json"))
    infeasible = {row["reason"] for row in rows if row["state"] == "infeasible"}
    assert infeasible == {"the table has no network of 6 convolutions"}


class TestHillClimb(StrategySuite):
    """The strategy of the README keeps what every strategy must keep."""

    name = f"{FOLDER}/hill_climb.py:HillClimb"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "at once": {"random_first": 0}}


BACKEND = """
import sys
from pathlib import Path
import torch
from mpi4py import MPI
from nord_hpc.data_parallel import GangPlace, choose
world = MPI.COMM_WORLD
backend = choose("mpi_backend.py:MpiBackend", size=world.size, folder=Path(sys.argv[1]))
with backend.open(GangPlace(world.rank, world.size, "key", world)) as gang:
    values = torch.tensor([1.0 + world.rank, 10.0])
    gathered = gang.all_gather(values).tolist()
    gang.all_reduce_sum_(values)
    own = torch.tensor([float(world.rank)])
    gang.broadcast_(own, root=1)
sys.stdout.write(f"{gang.name} {gathered} {values.tolist()} {own.tolist()}\\n")
"""


@pytest.mark.mpi
def test_backend_of_the_readme_adds_and_shares() -> None:
    from nord_hpc.cluster import launch

    command = launch.mpirun_command(2, [sys.executable, "-c", BACKEND, str(FOLDER)])
    done = subprocess.run(["timeout", "-s", "KILL", "60", *command], capture_output=True, text=True, timeout=70)
    assert done.returncode == 0, done.stderr
    line = "mpi [[1.0, 10.0], [2.0, 10.0]] [3.0, 20.0] [1.0]"
    assert done.stdout.splitlines() == [line, line]


def test_code_of_the_docs_runs_on_a_run_folder(run_folder: Path) -> None:
    programs = [code for text in TEXTS[1:] for code in blocks(text, "python")]
    assert programs
    for program in programs:
        done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        best = status(run_folder)["best"]
        assert float(done.stdout.split()[0]) == best["fitness"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_links_lead_somewhere(text: Path) -> None:
    broken = []
    for target in LINK.findall(text.read_text(encoding="utf-8")):
        path, _, _ = target.partition("#")
        if path and "://" not in path and not (text.parent / path).exists():
            broken.append(target)
    assert broken == []


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Name and options of each `nord-hpc NAME ...` in code."""
    code = "\n".join([*(code for _, code in BLOCK.findall(text)), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))])
    found = []
    for name, rest in re.findall(r"nord-hpc ([a-z]+)([^\n|#]*)", code):
        found.append((name, re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", rest)))
    return found


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_commands_exist_with_their_options(text: Path) -> None:
    known: Any = typer.main.get_command(app)
    for name, options in commands_in(text.read_text(encoding="utf-8")):
        assert name in known.commands, name
        takes = {option for parameter in known.commands[name].params for option in parameter.opts}
        assert set(options) <= takes, f"nord-hpc {name} takes {sorted(takes)}"


def test_every_command_is_in_the_readme() -> None:
    known: Any = typer.main.get_command(app)
    listed = {name for name, _ in commands_in((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert listed == {name for name, command in known.commands.items() if not command.hidden}


def test_commands_in_a_text_are_found() -> None:
    text = "see `nord-hpc trials DIR [--csv FILE]`\n```sh\nmpirun -n 5 nord-hpc run a-b.yaml -n 3 --set a.b=-1  # -z\n"
    text += "```\n"
    assert commands_in(text) == [("run", ["-n", "--set"]), ("trials", ["--csv"])]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for text in TEXTS:
        quoted = re.findall(r"`(make [a-z-]+)", text.read_text(encoding="utf-8"))
        code = "\n".join([*quoted, *blocks(text, "sh")])
        assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets, text.name
