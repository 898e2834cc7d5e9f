"""The batch script with stubs in the place of nord-hpc and Slurm: signals, resumes, requeues, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nord_hpc.cluster import slurm

ROOT = Path(__file__).parents[2]


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_the_template_is_the_script_that_submit_writes() -> None:
    assert (ROOT / "slurm/search.sbatch").read_text(encoding="utf-8") == slurm.template()


@pytest.mark.parametrize("name", ["search.sbatch", "search_gpu.sbatch", "array_of_seeds.sbatch", "chain.sh"])
def test_all_scripts_are_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / "slurm" / name], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


# What stands for nord-hpc in the tests of the Slurm script: it makes the run folder, then works until it gets USR1 or
# TERM, and ends with 3 as a search does that was stopped before its budget.
SEARCH = """#!/usr/bin/env bash
echo "$OMP_NUM_THREADS $*" >> "$CALLS"
if [ "$1" = goes-on ]; then exit "${GOES_ON:-0}"; fi
if [ -n "${KILLED:-}" ]; then kill -KILL $$; fi
stop() { sleep 0.3; echo "saved after $1" >> "$CALLS"; exit 3; }
trap 'stop USR1' USR1
trap 'stop TERM' TERM
if [ "$1" = run ]; then mkdir -p "$4"; touch "$4/job.yaml"; fi
if [ -n "${EXIT_CODE:-}" ]; then exit "$EXIT_CODE"; fi
echo ready >> "$CALLS"
for _ in $(seq 200); do sleep 0.1; done
exit 9
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
if [ "$1" = show ]; then echo "   Requeue=${MAY_REQUEUE:-1} Restarts=0"; fi
"""


class Batch:
    """slurm/search.sbatch with stubs of nord-hpc and scontrol in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        binaries = folder / "bin"
        binaries.mkdir()
        script(binaries / "nord-hpc", SEARCH)
        script(binaries / "scontrol", SCONTROL)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "NORD_HPC"))}
        self.environ = {
            **kept,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "SLURM_JOB_ID": "77",
            "SLURM_NTASKS": "5",
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_SUBMIT_DIR": str(folder),
        }

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        self.calls_file.write_text("")
        return subprocess.Popen(
            ["bash", str(ROOT / "slurm/search.sbatch"), *arguments],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def stop(self, process: subprocess.Popen[str], number: signal.Signals) -> str:
        """Signal the shell alone once the search works; the output of the script."""
        deadline = time.monotonic() + 10
        while "ready" not in self.calls:
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.02)
        process.send_signal(number)
        return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> str:
        try:
            output, _ = process.communicate(timeout=15)
            return output
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_batch_script_hands_usr1_on_then_requeues_then_resumes_the_same_folder(batch: Batch) -> None:
    process = batch.start("job.yaml")
    output = batch.stop(process, signal.SIGUSR1)
    assert process.returncode == 3, output
    assert batch.calls == [
        "2 run job.yaml --out runs/slurm-77 -n 5",
        "ready",
        "saved after USR1",
        "scontrol show job 77",
        "2 goes-on runs/slurm-77",
        "scontrol requeue 77",
    ]
    process = batch.start("job.yaml", SLURM_RESTART_COUNT="1", EXIT_CODE="0")
    output = batch.finish(process)
    assert process.returncode == 0
    assert batch.calls == ["2 resume runs/slurm-77 -n 5"]
    assert "(restart 1)" in output


def test_batch_script_requeues_nothing_after_term_or_where_it_may_not(batch: Batch) -> None:
    process = batch.start("job.yaml", "here")
    batch.stop(process, signal.SIGTERM)
    assert process.returncode == 3
    assert batch.calls == ["2 run job.yaml --out here -n 5", "ready", "saved after TERM"]
    process = batch.start("job.yaml", "here", MAY_REQUEUE="0")
    batch.stop(process, signal.SIGUSR1)
    assert process.returncode == 3
    assert batch.calls[-2:] == ["saved after USR1", "scontrol show job 77"]


def test_a_search_that_makes_no_progress_is_not_requeued(batch: Batch) -> None:
    process = batch.start("job.yaml", "here", GOES_ON="1")
    batch.stop(process, signal.SIGUSR1)
    assert process.returncode == 3
    assert batch.calls[-2:] == ["scontrol show job 77", "2 goes-on here"]


def test_a_killed_search_is_resumed_three_times_then_requeued(batch: Batch) -> None:
    process = batch.start("job.yaml", "here", KILLED="1")
    output = batch.finish(process)
    assert process.returncode == 137, output
    run = "2 run job.yaml --out here -n 5"
    assert batch.calls == [run] * 4 + ["scontrol show job 77", "2 goes-on here", "scontrol requeue 77"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_batch_script_passes_exit_codes_on(batch: Batch, code: int) -> None:
    process = batch.start("job.yaml", EXIT_CODE=str(code))
    batch.finish(process)
    assert process.returncode == code
    assert len(batch.calls) == 1


def test_batch_script_without_a_job_or_a_program_says_so(batch: Batch) -> None:
    process = batch.start()
    assert batch.finish(process) == "usage: sbatch slurm/search.sbatch JOB [RUN_DIR]\n"
    assert process.returncode == 2
    process = batch.start("job.yaml", NORD_HPC="/no/such/program")
    assert "there is no /no/such/program; activate its environment before sbatch" in batch.finish(process)
    assert process.returncode == 2
