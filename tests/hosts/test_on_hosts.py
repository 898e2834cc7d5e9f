"""Searches over hosts with networks of their own: gangs across them, a cable that is cut for a while or for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.store.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TOOLS = ROOT.parent / "shared" / "hosts"
NORD = Path(sys.executable).with_name("nord-hpc")
LOST_HOST_SECONDS = 9

PAUSES: dict[str, Any] = {
    "name": "pauses",
    "seed": 3,
    "space": {"name": "conv_graph", "max_layers": 3},
    "strategy": {"name": "regularized_evolution", "population": 6, "sample": 3},
    "evaluator": {"name": "synthetic", "seconds": 1.0, "sigma": 0.3},
    "budget": {"trials": 40},
    "resources": {"shards": 2, "gang": 2},
    "limits": {"lost_host_seconds": LOST_HOST_SECONDS},
}


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not (TOOLS / "hosts-up").exists():
        return f"needs {TOOLS}/hosts-up"
    return None


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(200),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    subprocess.run([TOOLS / "hosts-up", "3"], check=True, capture_output=True, timeout=60)
    yield
    subprocess.run([TOOLS / "hosts-down"], check=True, capture_output=True, timeout=60)


def link(host: str, state: str) -> None:
    subprocess.run([TOOLS / "host-link", host, state], check=True, capture_output=True, timeout=20)


def search(folder: Path, job: dict[str, Any], *, ranks: int, slots: int) -> subprocess.Popen[str]:
    """A search that is started on node1 and finds the others in a host file, as where there is no batch system."""
    (folder / "job.yaml").write_text(json.dumps(job))
    host_file = folder / "hosts"
    host_file.write_text("".join(f"node{n} slots={slots}\n" for n in (1, 2, 3)))
    settings = {
        "PRTE_MCA_plm": "ssh",
        "PRTE_MCA_plm_ssh_agent": str(TOOLS / "rsh-agent"),
        "PRTE_MCA_prte_if_include": "eth0",
        "PRTE_MCA_prte_default_hostfile": str(host_file),
        "OMPI_MCA_btl_tcp_if_include": "eth0",
        "OMPI_MCA_pml": "ob1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "PMIX_"))}
    return subprocess.Popen(
        [TOOLS / "in-host", "node1", NORD, "run", folder / "job.yaml", "-n", str(ranks), "--out", folder / "run"],
        env={**kept, **settings, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end_of(process: subprocess.Popen[str], *, timeout: float, expect: int = 0) -> str:
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, _ = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{out}") from None
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}"
    return out


def n_finished(folder: Path) -> int:
    if not (folder / "run/journal").exists():
        return 0
    return sum(entry.outcome is not None for entry in RunFolder(folder / "run").history().entries.values())


def wait_for_trials(process: subprocess.Popen[str], folder: Path, n: int) -> None:
    ends = time.monotonic() + 60
    while n_finished(folder) < n:
        assert process.poll() is None and time.monotonic() < ends, end_of(process, timeout=1, expect=-1)
        time.sleep(0.2)


def digest_on_one_host(folder: Path, job: dict[str, Any], *options: str) -> str:
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [NORD, "run", folder / "job.yaml", "-n", "3", "--out", folder / "alone", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return RunFolder(folder / "alone").history().history_sha256


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digest_on_one_host(tmp_path_factory.mktemp("alone"), PAUSES, "--set", "evaluator.seconds=0.05")


def test_gangs_across_hosts_train(hosts: None, tmp_path: Path) -> None:
    """A rank on each host, so that every gang needs the network."""
    job = {
        "name": "digits",
        "dataset": {"name": "digits", "fraction": 0.4},
        "space": {"name": "conv_graph", "max_layers": 3, "channels": [4, 8]},
        "strategy": {"name": "regularized_evolution", "population": 3, "sample": 2},
        "budget": {"trials": 6},
        "resources": {"shards": 2, "gang": 2},
    }
    end_of(search(tmp_path, job, ranks=3, slots=1), timeout=100)
    history = RunFolder(tmp_path / "run").history()
    assert {entry.attempts[-1].ranks for entry in history.entries.values()} == {(1, 2)}
    assert history.history_sha256 == digest_on_one_host(tmp_path, job)


def test_gangs_stay_inside_hosts_and_a_short_cut_is_survived(hosts: None, digest: str, tmp_path: Path) -> None:
    """Ranks 0 and 1, 2 and 3, 4 and 5 share a host; the first is the master."""
    process = search(tmp_path, PAUSES, ranks=6, slots=2)
    wait_for_trials(process, tmp_path, 4)
    link("node3", "down")
    try:
        time.sleep(5.0)
    finally:
        link("node3", "up")
    out = end_of(process, timeout=100)
    history = RunFolder(tmp_path / "run").history()
    assert (history.state, history.history_sha256, len(history.lives)) == ("finished", digest, 1), out
    ranks = [entry.attempts[-1].ranks for entry in history.entries.values()]
    inside = sum(pair in ((2, 3), (4, 5)) for pair in ranks)
    assert inside >= len(ranks) - 4, ranks  # the first ones start while ranks still arrive


def test_a_lasting_cut_is_noticed_and_all_is_saved(hosts: None, tmp_path: Path) -> None:
    process = search(tmp_path, PAUSES, ranks=6, slots=2)
    wait_for_trials(process, tmp_path, 4)
    link("node3", "down")
    cut_at = time.time()
    try:
        out = end_of(process, timeout=90, expect=3)
    finally:
        link("node3", "up")
    assert "mpirun ended with code 0; the search goes on from what is saved" in out
    assert "given up after 3 restarts without a trial finished" in out
    history = RunFolder(tmp_path / "run").history()
    assert history.lives[0].last_at - cut_at < LOST_HOST_SECONDS + 5  # from then on that mpirun was gone
    n = n_finished(tmp_path)
    assert n >= 4
    done = subprocess.run(
        [NORD, "resume", tmp_path / "run", "-n", "3", "--set", f"budget.trials={n + 4}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").history().state == "finished"
