"""What identifies the numeric environment and the source of a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mpi.commands import SYNTHETIC

from nord_hpc import job as jobs
from nord_hpc.cli import machine

ROOT = Path(__file__).parents[2]


def test_the_commit_is_the_one_that_git_names() -> None:
    if not (ROOT / ".git").is_dir():
        pytest.skip("this tree is no git checkout")
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert machine.source_commit() == answer.stdout.strip()


def test_the_fingerprint_follows_the_job(tmp_path: Path) -> None:
    found = machine.fingerprint(jobs.from_mapping(SYNTHETIC, folder=tmp_path))
    assert found["threads"] == 1 and found["device"] == "auto"
    assert all(found[name] for name in ("nord_hpc", "python", "torch", "numpy", "architecture", "instruction_set"))
    more = jobs.from_mapping({**SYNTHETIC, "resources": {"shards": 2, "gang": 2, "threads": 2}}, folder=tmp_path)
    assert machine.fingerprint(more) != found
