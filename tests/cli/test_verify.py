"""The certificate of a run: agrees with an honest run, and sees what was changed in a dishonest or damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import nord

from nord_hpc import job as jobs
from nord_hpc.cli import verify, wiring
from nord_hpc.cluster import parts
from nord_hpc.errors import BadInput
from nord_hpc.store import journal
from nord_hpc.store.run_folder import RunFolder

JOB: dict[str, Any] = {
    "name": "search",
    "dataset": {"name": "digits", "fraction": 0.2},
    "space": {"name": "conv_graph", "max_layers": 2, "channels": [2, 4]},
    "strategy": {"name": "regularized_evolution", "population": 3, "sample": 2},
    "training": {"epochs": 1, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}},
    "budget": {"trials": 8},
    "order": {"virtual_gangs": 2, "run_ahead": 0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("search")
    run = parts.create_run_folder(folder / "run", jobs.from_mapping(JOB, folder=folder))
    assert wiring.run_inline(run, on_tick=lambda: None) == wiring.DONE
    return run


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))


def rewrite(run: RunFolder, change: Callable[[dict[str, Any]], None]) -> None:
    """The journal with its records changed, framed as if they had always been so."""
    records = list(journal.read(run.journal_file))
    for record in records:
        change(record)
    run.journal_file.write_bytes(journal.MAGIC + b"".join(journal.frame(record) for record in records))


def times(run: RunFolder) -> dict[Path, int]:
    """When each file was written; this process logs what it does to the log of the run that it has made."""
    files = [file for file in run.path.rglob("*") if file.is_file() and file.parent != run.logs]
    return {file: file.stat().st_mtime_ns for file in files}


def verdicts(checks: list[verify.Check]) -> dict[str, bool | None]:
    return {check.name: check.agrees for check in checks}


def test_an_honest_run_agrees(finished: RunFolder) -> None:
    before = times(finished)
    checks = verify.run_checks(finished, n_retrained=2)
    assert list(verdicts(checks).values()) == [True] * 8
    names = [check.name for check in checks]
    assert names[:5] == ["job", "digest", "data", "replay", "machine"] and names[-1] == "test"
    history = finished.history()
    assert history.history_sha256 in checks[1].text
    for check in checks[5:7]:
        outcome = history.entries[int(check.name.split()[1])].outcome
        assert outcome is not None and f"fitness {outcome.fitness!r} and all its metrics" in check.text
    assert times(finished) == before
    # Which trials are trained again follows from the seed alone.
    entries = [verify._picked(finished, history, finished.job(), 3, seed=seed) for seed in (0, 0, 1, 2, 3)]
    numbers = [[entry.trial.number for entry in some] for some in entries]
    assert numbers[0] == numbers[1]
    assert any(other != numbers[0] for other in numbers[2:])


def test_a_fitness_that_was_changed_is_found(copied: RunFolder) -> None:
    history = copied.history()
    number = history.commit_order[0]

    def flatter(record: dict[str, Any]) -> None:
        if record["kind"] == "finished" and record["number"] == number:
            record["outcome"]["fitness"] += 0.3

    rewrite(copied, flatter)
    found = verdicts(verify.run_checks(copied, n_retrained=8))
    assert found["digest"] is False
    assert found[f"trial {number}"] is False
    others = [name for name in found if name.startswith("trial") and name != f"trial {number}"]
    assert len(others) == 7 and all(found[name] for name in others)
    (copied.snapshot_file).unlink()
    published = verify.run_checks(copied, digest=history.history_sha256)
    assert verdicts(published)["digest"] is False
    assert f"given was {history.history_sha256}" in published[1].text


def test_a_network_that_the_strategy_did_not_propose_is_found(copied: RunFolder) -> None:
    history = copied.history()
    late = history.commit_order[-1]

    def swap(record: dict[str, Any]) -> None:
        if record["kind"] == "proposed" and record["trial"]["number"] == late:
            record["trial"]["descriptor_hash"] = "0" * 64

    rewrite(copied, swap)
    replay = next(check for check in verify.run_checks(copied) if check.name == "replay")
    assert replay.agrees is False
    assert f"trial {late} comes out different from the recorded one (" in replay.text


def test_another_order_of_commits_is_found(copied: RunFolder) -> None:
    def reverse(record: dict[str, Any]) -> None:
        if record["kind"] == "committed":
            record["numbers"].reverse()

    records = [record for record in journal.read(copied.journal_file) if record["kind"] == "committed"]
    first, second = copied.history().commit_order[:2]

    def exchange(record: dict[str, Any]) -> None:
        if record["kind"] == "committed":
            record["numbers"] = [{first: second, second: first}.get(number, number) for number in record["numbers"]]

    assert records
    rewrite(copied, exchange)
    replay = next(check for check in verify.run_checks(copied) if check.name == "replay")
    assert (replay.agrees, replay.text) == (False, "commit 0 is of another trial than recorded, or missing")


def test_a_changed_job_and_other_data_are_found(copied: RunFolder) -> None:
    copied.save_job(copied.job(overrides=("training.batch_size=64", "budget.trials=8")))
    data = json.loads(copied.dataset_file.read_text())
    copied.dataset_file.write_text(json.dumps({**data, "fingerprint": "0" * 64}))
    checks = {check.name: check for check in verify.run_checks(copied)}
    assert checks["job"].agrees is False and "training.batch_size changed since the search began" in checks["job"].text
    assert checks["data"].agrees is False and "the search had 0000000000000000" in checks["data"].text


def test_damaged_weights_are_found_and_left_alone(copied: RunFolder) -> None:
    test = copied.history().test
    assert test is not None
    file = copied.weights_file(test["number"])
    file.write_bytes(file.read_bytes()[:-10])
    damaged = file.read_bytes()
    checks = {check.name: check for check in verify.run_checks(copied, n_retrained=1)}
    assert checks["test"].agrees is False and "cannot be read as weights" in checks["test"].text
    assert file.read_bytes() == damaged


def test_another_machine_is_said_to_be_one(copied: RunFolder) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        if record["kind"] == "run":
            record["machine"]["instruction_set"] = "sse4_2"

    rewrite(copied, elsewhere)
    machine = next(check for check in verify.run_checks(copied, n_retrained=1) if check.name == "machine")
    assert machine.agrees is None
    assert "instruction_set sse4_2 against" in machine.text and "bits may differ, as other instructions" in machine.text


def test_gangs_with_the_fast_reduction_cannot_be_repeated_alone(copied: RunFolder) -> None:
    def by_a_gang(record: dict[str, Any]) -> None:
        if record["kind"] == "finished":
            record["outcome"]["provenance"] |= {"reduction": "fast", "gang": 2}

    rewrite(copied, by_a_gang)
    with pytest.raises(
        BadInput, match=r"--retrain 1: .* has 0 trials that can be trained again; others were trained by"
    ):
        verify.run_checks(copied, n_retrained=1)
    assert verdicts(verify.run_checks(copied))["replay"] is True


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    run = parts.create_run_folder(tmp_path / "run", jobs.from_mapping(JOB, folder=tmp_path))
    with pytest.raises(BadInput, match=r"no trial has been committed, so there is nothing to verify"):
        verify.run_checks(run)


@pytest.mark.slow
def test_the_command(copied: RunFolder, tmp_path: Path) -> None:
    digest = copied.history().history_sha256
    agrees = nord("verify", copied.path, "--retrain", "1", "--digest", digest, cwd=tmp_path)
    assert agrees.stdout.splitlines()[-1] == "agree"
    differs = nord("verify", copied.path, "--digest", "0" * 64, "--json", cwd=tmp_path, expect=1)
    record = json.loads(differs.stdout)
    assert record["verdict"] == "differ"
    assert [check["name"] for check in record["checks"] if check["agrees"] is False] == ["digest"]
