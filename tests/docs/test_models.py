"""The page on what follows a search: every command of it runs, one after the other, in one folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mpi.commands import environment, needs_mpirun

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/models.md"


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    """On a shorter search than the job's own, with the output where the page says that it is."""
    for package in ("onnxruntime", "pandas", "tensorboard"):
        pytest.importorskip(package, reason="needs pip install 'nord_hpc[export,analysis,tensorboard]'")
    job = yaml.safe_load((ROOT / "jobs/digits_evolution.yaml").read_text(encoding="utf-8"))
    job |= {"budget": {"trials": 6}, "dataset": {"name": "digits", "fraction": 0.3}}
    job["training"]["epochs"] = 1
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/digits_evolution.yaml").write_text(yaml.safe_dump(job))
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = {}
    for line in lines:
        command = ["bash", "-c", line]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(PATH=path), capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        printed[line] = done.stdout
    for name in ("digits.pt2", "digits.onnx", "digits.safetensors", "job.schema.json"):
        assert (tmp_path / name).stat().st_size > 1000
    assert printed["nord-hpc verify runs/first --retrain 3"].splitlines()[-1] == "agree"
    result = json.loads((tmp_path / "runs/first/confirm/confirm.json").read_text())
    assert [len(group["values"]) for group in result["finalists"]] == [3, 3]
    assert list((tmp_path / "events/search").iterdir())


def test_the_options_in_the_text_are_those_of_the_commands() -> None:
    """Also in tables and lists; `nord-hpc NAME` in the README is checked with it."""
    from typer.main import get_command

    from nord_hpc.cli.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    text = PAGE.read_text(encoding="utf-8")
    options = {
        option for name in ("export", "confirm", "verify", "report") for p in known[name].params for option in p.opts
    }
    assert {option for option in re.findall(r"`(--[a-z-]+)", text)} <= options
    formats = re.findall(r"^\| `(\w+)` \| (?:a |ONNX|the tensors)", text, re.M)
    assert formats == ["torch", "onnx", "safetensors"]
