"""Malformed jobs: exit code 2 in under three seconds, one line that says what to set, nothing written."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import DIGITS, nord, write_job

CASES: dict[str, tuple[list[str], Any, str]] = {
    "missing field": (["budget"], None, "budget: is missing; set it"),
    "missing budget": (["budget"], {}, "budget: set trials, hours, simulated_seconds, or several of them"),
    "wrong type": (["training", "epochs"], "many", 'training.epochs: "many" is wrong; set a whole number'),
    "unknown key": (["training", "epoch"], 3, "training.epoch: is not a known key; remove it, or check its spelling"),
    "unknown option": (["space", "layers"], 3, "space.layers: is not a known key"),
    "unknown strategy": (
        ["strategy", "name"],
        "regularised_evolution",
        "strategy.name: unknown strategy 'regularised_evolution': did you mean regularized_evolution? set one of",
    ),
    "unknown dataset": (["dataset", "name"], "digit", "dataset.name: unknown dataset 'digit': did you mean digits?"),
    "gang does not divide": (
        ["resources"],
        {"shards": 4, "gang": 3},
        "gang 3 does not divide shards 4; set gang to one of 1, 2, 4",
    ),
    "budget 0": (["budget", "trials"], 0, "budget.trials: 0 is wrong; set a number of at least 1"),
    "batch and shards": (
        ["training", "batch_size"],
        63,
        "training.batch_size 63 is not divisible by resources.shards 2; set batch_size to 62 or 64",
    ),
    "choice": (["order"], {"mode": "random"}, "order.mode: \"random\" is not a choice; set 'virtual' or 'arrival'"),
    "unreadable data": (["dataset"], {"name": "image_folder", "path": "nowhere"}, "nowhere"),
    "no plug-in file": (["space", "name"], "mine.py:Space", "there is no file"),
    "unknown optimizer": (["training", "optimizer"], {"name": "adamm", "lr": 0.1}, "unknown optimizer 'adamm'"),
    "unknown metric": (["objective"], {"metric": "accurcy"}, "accurcy"),
    "name": (["name"], "a/b", 'name: "a/b" is wrong; set text of the form '),
}


def changed(path: list[str], value: Any) -> dict[str, Any]:
    job = copy.deepcopy(DIGITS)
    section = job
    for key in path[:-1]:
        section = section[key]
    if value is None:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return job


@pytest.mark.parametrize("case", CASES)
@pytest.mark.timing
def test_one_line_and_exit_code_2(tmp_path: Path, case: str) -> None:
    path, value, expected = CASES[case]
    job = write_job(tmp_path / "job.yaml", changed(path, value))
    for command in (["validate", job], ["run", job, "--out", tmp_path / "run"], ["run", job, "-n", "3"]):
        started = time.monotonic()
        refused = nord(*command, cwd=tmp_path, expect=2, timeout=20)
        assert time.monotonic() - started < 3, command
        [line] = refused.stderr.strip().splitlines()
        assert line.startswith("nord-hpc: ") and expected in line
        assert refused.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["job.yaml"], "something was written"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "absent.yaml"], "absent.yaml: cannot be read: No such file or directory"),
        (["validate", "."], "cannot be read: Is a directory"),
        (["validate", "text.yaml"], "a job file is a mapping with name, space, strategy and budget, not str"),
        (["validate", "broken.yaml"], "broken.yaml: is not YAML"),
        (
            ["validate", "job.yaml", "--set", "budget"],
            "--set budget: is not FIELD=VALUE, such as --set budget.trials=10",
        ),
        (["validate", "job.yaml", "--set", "name.x=1"], "--set name.x=1: name is a value, not a section"),
        (["resume", "absent"], "absent: there is no such run folder"),
        (["status", "."], ".: is not a run folder: it has no job.yaml and logs"),
        (["trials", "absent"], "absent: there is no such run folder"),
        (["run", "job.yaml", "--out", "/proc/run"], "/proc/run: the run folder cannot be written"),
        (["run", "job.yaml", "-n", "0"], "'-n' / '--ranks'"),
        (["run"], "Missing argument 'JOB'"),
        (["ruin", "job.yaml"], "No such command 'ruin'"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, arguments: list[str], expected: str) -> None:
    write_job(tmp_path / "job.yaml", DIGITS)
    (tmp_path / "text.yaml").write_text("just text")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    refused = nord(*arguments, cwd=tmp_path, expect=2, timeout=20)
    [line] = refused.stderr.strip().splitlines()
    assert expected in line


def test_overrides_and_defaults_are_in_the_resolved_job(tmp_path: Path) -> None:
    import yaml

    job = write_job(tmp_path / "job.yaml", DIGITS)
    shown = yaml.safe_load(nord("validate", job, "--set", "training.optimizer.lr=0.5", cwd=tmp_path).stdout)
    assert shown["training"]["optimizer"] == {"name": "adam", "lr": 0.5}
    assert shown["order"] == {"mode": "virtual", "virtual_gangs": 8, "run_ahead": 8}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(shown))
    assert yaml.safe_load(nord("validate", again, cwd=tmp_path).stdout) == shown
