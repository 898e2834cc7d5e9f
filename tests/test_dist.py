"""What is handed out: sdist and wheel, complete, and the wheel works in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from nord_hpc import __version__

ROOT = Path(__file__).parents[1]
IGNORED = ("runs", "build", "dist", "__pycache__", "*.egg-info", ".git", ".venv", ".*_cache", ".hypothesis")


def call(*command: str | Path, cwd: Path, timeout: float) -> str:
    """Standard output of a command that must end with 0; without what an outer make or launcher left in its way."""
    mine = ("MAKE", "MFLAGS", "OMPI_", "PMIX_", "PMI_", "SLURM_", "NORD_HPC_", "PYTHON", "VIRTUAL_ENV")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    line = [str(part) for part in command]
    done = subprocess.run(line, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder dist/ that `make dist` leaves in a copy of this checkout, built by an environment of its own.

    Never by the one that runs the tests: what make installs there would be installed from the copy.
    """
    folder = tmp_path_factory.mktemp("dist")
    copy, builder = folder / "checkout", folder / "builder"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
    venv.create(builder, with_pip=True)
    pip = (builder / "bin/python", "-m", "pip", "-q", "--disable-pip-version-check")
    call(*pip, "install", "-c", ROOT / "constraints.txt", "setuptools", "wheel", cwd=folder, timeout=200)
    # A file that make is told not to remake stands for the stamp of its set-up, which takes minutes.
    call("make", "-o", "README.md", "INSTALLED=README.md", f"BIN={builder / 'bin'}", "dist", cwd=copy, timeout=200)
    return copy / "dist"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sdist_and_wheel_are_complete(dist: Path) -> None:
    assert sorted(file.name for file in dist.iterdir()) == [
        f"nord_hpc-{__version__}-py3-none-any.whl",
        f"nord_hpc-{__version__}.tar.gz",
    ]
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "nord_hpc").rglob("*.py")}
    assert len(modules) > 100
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    own = f"nord_hpc-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(own)} == modules
    assert f"{own}entry_points.txt" in names
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert modules <= packed
    kept = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt", "Makefile")
    assert {*kept, "jobs/digits_evolution.yaml", "docs/models.md", "tests/test_dist.py"} <= packed
    assert not [name for name in packed if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_wheel_works_in_an_environment_of_its_own(dist: Path, tmp_path: Path) -> None:
    """Installed with the tested versions, without Horovod: the examination of the machine, and a search inline."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    wheel = next(dist.glob("*.whl"))
    constraints = ROOT / "constraints.txt"
    pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check")
    call(*pip, "install", "-q", "-c", constraints, wheel, cwd=tmp_path, timeout=1200)
    listed = json.loads(call(*pip, "list", "--format=json", cwd=tmp_path, timeout=60))
    installed = {package["name"].replace("_", "-"): package["version"] for package in listed}
    assert installed["nord-hpc"] == __version__
    assert not {"horovod", "pytest", "onnx", "pandas"} & set(installed)
    nord = binaries / "nord-hpc"
    assert call(nord, "version", cwd=tmp_path, timeout=60).strip() == __version__
    call(nord, "doctor", "--json", cwd=tmp_path, timeout=120)
    job = tmp_path / "job.yaml"
    shutil.copy(ROOT / "jobs/digits_evolution.yaml", job)
    call(nord, "run", job, "--out", "run", "--set", "budget.trials=6", cwd=tmp_path, timeout=300)
    status = json.loads(call(nord, "status", "run", "--json", cwd=tmp_path, timeout=60))
    assert (status["state"], status["trials"]["completed"]) == ("finished", 6)
    assert status["best"]["test"]["accuracy"] > 0.5
    resolved = yaml.safe_load((tmp_path / "run/job.yaml").read_text())
    assert resolved["budget"]["trials"] == 6
    # The model goes on from here with torch alone; what needs an extra says which.
    call(nord, "export", "run", "--out", "net.pt2", cwd=tmp_path, timeout=120)
    assert (tmp_path / "net.pt2.md").is_file()


def test_issue_templates_ask_for_what_is_needed() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    asked = {}
    for file in sorted(folder.glob("*.yml")):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.name == "config.yml":
            assert form == {"blank_issues_enabled": True}
            continue
        assert form["name"] and form["description"]
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        asked[file.stem] = [field["id"] for field in fields if field.get("validations", {}).get("required")]
        for field in fields:
            options = field["attributes"].get("options", [])
            assert field["attributes"]["label"] and all(isinstance(option, str) for option in options)
    assert asked == {
        "fault": ["what", "job", "doctor", "repeats"],
        "other_history": ["verify", "job"],
        "wish": ["goal"],
    }
