"""The snapshot: whole or absent, what it holds, and a resume with it equal to one without."""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path

import h5py
import pytest
from cluster.simulation import candidate_outcome, make_coordinator, make_job

from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.transport_simulated import Faults, SimulatedCrash, SimulatedJournal, SimulatedTransport
from nord_hpc.errors import StoreError
from nord_hpc.store import snapshot
from nord_hpc.store.history import History
from nord_hpc.store.summary import rows
from nord_hpc.trial import Json


class Stopped(Exception):
    """The master is killed here."""


def run_until(job_order: str, commits: int | None, durable: bytes, path: Path, *, use_snapshot: bool) -> bytes:
    """One life of a search, killed after some commits; writes snapshots, and resumes with the last or without."""
    job = make_job(order={"mode": job_order, "virtual_gangs": 5})
    rng = random.Random(len(durable))
    journal = SimulatedJournal(durable, rng=rng)
    history = History(journal.records)
    transport = SimulatedTransport(3, rng=rng, faults=Faults(), outcome=candidate_outcome)
    coordinator = make_coordinator(job, epoch=len(history.lives) + 1, ranks=(1, 2, 3))
    journal.append(
        {
            "kind": "run",
            "ranks": 4,
            "host": "a",
            "machine": {},
            "job": {},
            "code": {},
            "evaluated_on": "",
            "at": transport.now(),
        }
    )
    state: Json = snapshot.resume_state(path, history) if use_snapshot else None
    assert (state is not None) == (use_snapshot and bool(durable))
    coordinator.restore(history, state, at=transport.now())

    seen = -1

    def on_tick() -> None:
        nonlocal seen
        ledger = coordinator.scheduler.ledger
        if commits is not None and ledger.n_committed >= commits:
            raise Stopped
        journal.sync()
        if not ledger.over and ledger.n_committed > seen:
            seen = ledger.n_committed
            snapshot.write(path, History(journal.records), coordinator.scheduler.state_dict())

    with contextlib.suppress(Stopped, SimulatedCrash):
        run_master(
            coordinator,
            transport=transport,
            journal=journal,
            meter=MasterMeter(),
            drop_weights=lambda number: None,
            stop_reason=lambda: None,
            on_tick=on_tick,
        )
    return journal.whole()


def test_a_resume_from_the_snapshot_gives_the_same_history(tmp_path: Path) -> None:
    undisturbed = run_until("virtual", None, b"", tmp_path / "never.h5", use_snapshot=False)
    path = tmp_path / "search.h5"
    durable = b""
    for commits in (5, 9, 14, None):
        durable = run_until("virtual", commits, durable, path, use_snapshot=bool(durable))
    history = History(SimulatedJournal(durable).records)
    assert history.state == "finished"
    assert history.history_sha256 == History(SimulatedJournal(undisturbed).records).history_sha256


def test_an_arrival_order_search_resumes_from_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "search.h5"
    durable = b""
    for commits in (5, 11, None):
        durable = run_until("arrival", commits, durable, path, use_snapshot=bool(durable))
    history = History(SimulatedJournal(durable).records)
    assert history.state == "finished"
    assert sorted(history.commit_order) == sorted(history.entries) == list(range(len(history.entries)))
    assert sum(entry.state != "infeasible" for entry in history.entries.values()) == 24


def test_a_snapshot_of_another_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.h5"
    durable = run_until("virtual", 8, b"", path, use_snapshot=False)
    history = History(SimulatedJournal(durable).records)
    state = snapshot.resume_state(path, history)
    assert state is not None
    state["history_sha256"] = "0" * 64
    coordinator = make_coordinator(make_job(), epoch=2, ranks=(1,))
    with pytest.raises(StoreError, match="the snapshot belongs to another history"):
        coordinator.restore(history, state, at=0.0)


def test_damaged_or_missing_snapshots_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "search.h5"
    assert snapshot.resume_state(path, History()) is None
    path.write_bytes(b"half a file")
    assert snapshot.resume_state(path, History()) is None
    assert "is not used" in caplog.text


def test_columns_hold_every_trial(tmp_path: Path) -> None:
    path = tmp_path / "search.h5"
    durable = run_until("virtual", 10, b"", path, use_snapshot=False)
    history = History(SimulatedJournal(durable).records)
    snapshot.write(path, history, {"n_committed": 0})
    columns = snapshot.read_trials(path)
    for index, row in enumerate(rows(history)):
        for name, column in columns.items():
            assert column[index] == row[name], name
    with h5py.File(path) as file:
        assert file.attrs["history_sha256"] == history.history_sha256
        unfinished = [row["number"] for row in rows(history) if row["fitness"] is None]
        assert unfinished and all(math.isnan(file["trials/fitness"][n]) for n in unfinished)


def test_saving_again_and_again_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "search.h5"
    durable = run_until("virtual", 10, b"", path, use_snapshot=False)
    history = History(SimulatedJournal(durable).records)
    state = {"n_committed": 0, "filler": "x" * 2**20}
    snapshot.write(path, history, state)
    size = path.stat().st_size
    for _ in range(500):
        snapshot.write(path, history, state)
    assert path.stat().st_size == size <= 3 * 2**20
    assert [file.name for file in tmp_path.iterdir()] == ["search.h5"]
