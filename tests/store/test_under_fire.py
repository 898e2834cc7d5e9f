"""The store under fire: kills, torn writes, a full disk, folders that cannot be written, code that nobody trusts."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import schedules
from cluster.simulation import candidate_outcome, make_coordinator

from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.messages import Task, decode, encode
from nord_hpc.cluster.transport_simulated import Faults, SimulatedJournal, SimulatedTransport
from nord_hpc.errors import BadInput
from nord_hpc.store import journal, snapshot
from nord_hpc.store.history import History
from nord_hpc.store.journal import MAGIC, Journal
from nord_hpc.store.run_folder import RunFolder, write_atomically

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).with_name("journal_writer.py")
KIND = "evolution"


def search_to_its_end(durable: bytes) -> bytes:
    """Run the light search from a journal without its magic; returns the whole journal."""
    store = SimulatedJournal(durable)
    history = History(store.records)
    transport = SimulatedTransport(
        4, rng=random.Random(1), faults=Faults(), outcome=candidate_outcome, nap_seconds=60.0
    )
    ranks = transport.worker_ranks()
    coordinator = make_coordinator(schedules.job_of(KIND), epoch=len(history.lives) + 1, ranks=ranks)
    coordinator.restore(history, None, at=0.0)
    run = {"kind": "run", "ranks": 5, "host": "a", "machine": {}, "job": {}, "code": {}, "evaluated_on": "", "at": 0.0}
    store.append(run)
    run_master(
        coordinator,
        transport=transport,
        journal=store,
        meter=MasterMeter(),
        drop_weights=lambda number: None,
        stop_reason=lambda: None,
    )
    return store.durable


@pytest.fixture(scope="module")
def whole() -> bytes:
    return search_to_its_end(b"")


def ends_of(data: bytes) -> list[int]:
    return [0, *(end for _, end in journal.parse(data))]


def test_a_cut_at_every_byte_of_the_last_three_results_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    """The journal is cut there, opened, and the search goes on to the history of the undisturbed one."""
    records = list(journal.parse(whole))
    finished = [index for index, (record, _) in enumerate(records) if record["kind"] == "finished"]
    ends = ends_of(whole)
    undisturbed = History(record for record, _ in records).history_sha256
    begin, stop = ends[finished[-3]], ends[finished[-1] + 1]
    path = tmp_path / "journal"
    resumed: dict[int, str] = {}
    for cut in range(begin, stop + 1):
        path.write_bytes(MAGIC + whole[:cut])
        n_whole = sum(end <= cut for end in ends) - 1
        with Journal(path) as opened:
            assert opened.records == [record for record, _ in records[:n_whole]]
        for leftover in tmp_path.glob("journal.cut-at-*"):
            leftover.unlink()
        if n_whole not in resumed:
            again = search_to_its_end(path.read_bytes()[len(MAGIC) :])
            resumed[n_whole] = History(SimulatedJournal(again).records).history_sha256
    assert len(resumed) >= 4 and set(resumed.values()) == {undisturbed}


def torn(data: bytes, durable: int, rng: random.Random) -> bytes:
    """What a power cut may leave of a journal that was synced up to `durable`: part of the rest, zeros, or rubbish."""
    cut = rng.randint(durable, len(data))
    tail = {0: b"", 1: bytes(rng.randrange(1, 300)), 2: rng.randbytes(rng.randrange(1, 300))}[rng.randrange(3)]
    middle = bytearray(data[durable:cut])
    if middle and rng.random() < 0.3:  # pages reach the disk in any order
        hole = rng.randrange(len(middle))
        middle[hole : hole + 64] = bytes(len(middle[hole : hole + 64]))
    return data[:durable] + bytes(middle) + tail


def test_a_thousand_torn_writes_lose_nothing_that_was_acknowledged(whole: bytes, tmp_path: Path) -> None:
    rng = random.Random(5)
    ends, path = ends_of(whole), tmp_path / "journal"
    records = [record for record, _ in journal.parse(whole)]
    for _ in range(1000):
        n_durable = rng.randrange(len(records) + 1)
        path.write_bytes(torn(MAGIC + whole, len(MAGIC) + ends[n_durable], rng))
        with Journal(path) as opened:
            found = opened.records
            opened.append({"kind": "new"})
        assert found == records[: len(found)] and len(found) >= n_durable
        assert journal.read(path) == [*found, {"kind": "new"}]
        for leftover in tmp_path.glob("journal.cut-at-*"):
            leftover.unlink()


def kill_writers(folder: Path, *, times: int, seed: int) -> int:
    """Kill writers one after another in the middle of what they do; returns how many records outlived it all."""
    rng = random.Random(seed)
    acknowledged = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, str(WRITER), str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            acknowledged = max(acknowledged, int(process.stdout.readline() or 0))  # it has begun
            time.sleep(rng.random() * 0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate(timeout=30)
        whole_lines = rest.rpartition("\n")[0].split()
        acknowledged = int(whole_lines[-1]) if whole_lines else acknowledged
        records = journal.read(folder / "journal")
        assert [record["number"] for record in records] == list(range(len(records)))
        assert len(records) >= acknowledged
        saved = (folder / "search.h5").read_bytes() if (folder / "search.h5").exists() else b"0::0"
        first, _, last = saved.partition(b":")[0], None, saved.rpartition(b":")[2]
        assert first == last and int(first) <= len(records)
    return acknowledged


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, times=12, seed=1) > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_killed_writers(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, times=300, seed=2) > 2000


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".search.h5.abc", tmp_path / ".search.h5.def"
    for leftover in (old, young):
        leftover.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    write_atomically(tmp_path / "search.h5", b"whole")
    assert (tmp_path / "search.h5").read_bytes() == b"whole"
    assert not old.exists() and young.exists()


FILL = """
import resource, signal, sys
from pathlib import Path
from nord_hpc.store.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
opened = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        opened.append({"kind": "finished", "number": number, "text": "x" * 700})
        opened.sync()
        number += 1
except OSError as error:
    print(number, error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
opened.append({"kind": "ended", "number": number})
opened.close()
"""


def test_a_full_disk_ends_the_writing_and_damages_nothing(tmp_path: Path) -> None:
    """A file that may not grow any more is to the journal what a full disk is, with another number."""
    path = tmp_path / "journal"
    command = [sys.executable, "-c", FILL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    number, code = map(int, done.stdout.split())
    assert code == errno.EFBIG and number > 20
    assert [record["number"] for record in journal.read(path)] == [*range(number), number]
    assert journal.read(path)[-1]["kind"] == "ended"


@pytest.fixture()
def tiny_disk(tmp_path: Path) -> Any:
    """A file system of its own, of 256 KiB; only root can mount one."""
    target = tmp_path / "disk"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(target)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield target
    subprocess.run(["umount", str(target)], check=True, timeout=30)


def test_a_full_file_system(tiny_disk: Path) -> None:
    with Journal(tiny_disk / "journal") as opened:
        acknowledged = 0
        with pytest.raises(OSError, match="No space left"):
            for number in range(10_000):
                opened.append({"kind": "finished", "number": number, "text": "x" * 500})
                opened.sync()
                acknowledged = number + 1
    records = journal.read(tiny_disk / "journal")
    assert [record["number"] for record in records] == list(range(acknowledged)) and acknowledged > 200
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tiny_disk / "search.h5", b"x" * 300_000)
    assert sorted(file.name for file in tiny_disk.iterdir()) == ["journal"]


def test_a_folder_that_cannot_be_written_is_refused_and_can_be_read(tmp_path: Path, whole: bytes) -> None:
    with pytest.raises(BadInput, match=r"the run folder cannot be written: .*; set --out to another"):
        RunFolder.create(Path("/proc/nord_hpc"), schedules.job_of(KIND))
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="folder: cannot be opened for writing: Is a directory"):
        Journal(tmp_path / "folder")
    (tmp_path / "journal").write_bytes(MAGIC + whole)
    os.chmod(tmp_path / "journal", 0o444)
    assert len(journal.read(tmp_path / "journal")) == len(ends_of(whole)) - 1


def test_megabyte_descriptors_are_journaled_sent_and_saved(tmp_path: Path, whole: bytes) -> None:
    """Ten descriptors of ten million bytes each."""
    records = [record for record, _ in journal.parse(whole)]
    history = History(records)
    large = {"layers": ["x" * 1000] * 10_000}
    proposed = [record for record in records if record["kind"] == "proposed"][:10]
    for record in proposed:
        record["trial"]["descriptor"] = large
    began = time.perf_counter()
    with Journal(tmp_path / "journal") as opened:
        for record in records:
            opened.append(record)
            opened.sync()
    with Journal(tmp_path / "journal") as opened:
        again = History(opened.records)
    assert again.history_sha256 == history.history_sha256
    numbers = [record["trial"]["number"] for record in proposed]
    assert all(again.entries[number].trial.descriptor == large for number in numbers)
    task = Task(1, again.entries[numbers[0]].trial, 1, (1,), 60.0, None)
    assert decode(encode(task)) == task
    snapshot.write(tmp_path / "search.h5", again, {"n_committed": 0})
    assert snapshot.read_trials(tmp_path / "search.h5")["descriptor"][numbers[3]] == large
    assert time.perf_counter() - began < 30.0


PLUGIN = """
from nord_hpc.strategies.random_search import RandomSearch


class Mine(RandomSearch):
    pass
"""
MARKER = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"


def test_readers_of_a_run_folder_run_no_code_from_it(tmp_path: Path) -> None:
    """A folder that somebody sent: its plug-in files are not imported by status, trials and report."""
    folder = tmp_path / "run"
    job = {
        "name": "sent",
        "space": {"name": "conv_graph", "max_layers": 3},
        "strategy": {"name": "parts.py:Mine"},
        "evaluator": {"name": "synthetic"},
        "budget": {"trials": 3},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "parts.py").write_text(PLUGIN)
    nord("run", tmp_path / "job.json", "--out", folder)
    (folder / "code" / "parts.py").write_text(MARKER + PLUGIN)
    for command in (["status", folder], ["status", folder, "--json"], ["trials", folder, "--json"], ["report", folder]):
        nord(*command)
    assert not (folder / "code" / "imported").exists()
    assert "code/parts.py changed" in nord("resume", folder, "--set", "budget.trials=4", code=2).stderr


def nord(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nord_hpc", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
