"""The journal survives a cut at any byte, one writer writes it, and readers see whole records alone."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.errors import BadInput, StoreError
from nord_hpc.store import journal
from nord_hpc.store.journal import MAGIC, Journal, JournalTail

RECORDS: list[dict[str, Any]] = [{"kind": "a", "n": n, "text": "ä\n" * n} for n in range(6)]


def written(path: Path) -> bytes:
    with Journal(path) as opened:
        for record in RECORDS:
            opened.append(record)
            opened.sync()
    return path.read_bytes()


def test_records_come_back(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    assert journal.read(tmp_path / "journal") == RECORDS
    with Journal(tmp_path / "journal") as opened:
        assert opened.records == RECORDS


def test_cut_at_any_byte_keeps_the_whole_records_before_it(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    ends = [len(MAGIC)] + [end for _, end in journal.parse(whole, start=len(MAGIC))]
    path = tmp_path / "journal"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        expected = RECORDS[: sum(end <= length for end in ends[1:])]
        assert journal.read(path) == expected
        with Journal(path) as opened:
            assert opened.records == expected
            opened.append({"kind": "new"})
        assert journal.read(path) == [*expected, {"kind": "new"}]


def test_damage_in_the_middle_is_cut_but_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal"
    data = bytearray(written(path))
    ends = [end for _, end in journal.parse(bytes(data), start=len(MAGIC))]
    data[ends[2] + 10] ^= 0xFF
    path.write_bytes(bytes(data))
    with Journal(path) as opened:
        assert opened.records == RECORDS[:3]
    assert (tmp_path / f"journal.cut-at-{ends[2]}").read_bytes() == bytes(data[ends[2] :])
    assert "are cut, and kept in journal.cut-at" in caplog.text


def test_another_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("not a journal at all")
    with pytest.raises(StoreError, match="is not a journal of nord_hpc"):
        Journal(path)
    assert path.read_text() == "not a journal at all"


def _hold(path: Path, opened: Any, done: Any) -> None:
    with Journal(path):
        opened.set()
        done.wait(30)


def test_one_process_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    opened, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "journal", opened, done))
    holder.start()
    try:
        assert opened.wait(30)
        assert Journal.is_being_written(tmp_path / "journal")
        with pytest.raises(BadInput, match="another process is running this search"):
            Journal(tmp_path / "journal")
    finally:
        done.set()
        holder.join(30)
    assert not Journal.is_being_written(tmp_path / "journal")
    Journal(tmp_path / "journal").close()


def test_one_fsync_for_a_group(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as opened:
        for record in RECORDS:
            opened.append(record)
        opened.sync()
        opened.sync()
        assert opened.n_syncs == 1


def test_tail_reads_each_record_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    tail = JournalTail(path)
    assert tail.new_records() == []
    with Journal(path) as opened:
        assert tail.new_records() == []
        opened.append(RECORDS[0])
        opened.sync()
        assert tail.new_records() == [RECORDS[0]]
        opened.append(RECORDS[1])
        opened.append(RECORDS[2])
        opened.sync()
    assert tail.new_records() == RECORDS[1:3]
    assert tail.new_records() == []


def test_not_finite_numbers_become_null(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as opened:
        opened.append({"kind": "a", "metrics": {"loss": float("nan"), "curve": [1.0, float("inf")]}})
    [record] = journal.read(tmp_path / "journal")
    assert record["metrics"] == {"loss": None, "curve": [1.0, None]}
    json.dumps(record, allow_nan=False)
