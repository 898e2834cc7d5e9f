"""The journal: an append-only file of JSON records, each framed by its length and CRC-32, that outlives any kill.

What the records mean is left to `nord_hpc.store.history`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from nord_hpc.errors import BadInput, StoreError
from nord_hpc.store import collector
from nord_hpc.trial import Json

log = logging.getLogger(__name__)

MAGIC = b"NORDHPC1"
FRAME = struct.Struct("<II")
LARGEST_RECORD = 64 * 2**20
RECORDS_AT_ONCE = 1024
LOCK_SECONDS = 2.0
"""A writer that was just killed, or a reader that looks whether somebody writes, may hold the lock for a moment."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class Appendable(Protocol):
    """What the master needs of a journal; the simulated one keeps it in memory.

    Attributes:
        n_syncs: number of fsyncs so far.
    """

    n_syncs: int

    def append(self, record: Mapping[str, Json]) -> None:
        """Add a record; it is durable after the next `sync`."""

    def sync(self) -> None:
        """Make all records durable; returns when they are."""


def frame(record: Mapping[str, Json]) -> bytes:
    """A record as it stands in the file."""
    try:
        payload = _encode(record).encode()
    except ValueError:
        payload = _encode(_finite(record)).encode()
    if len(payload) > LARGEST_RECORD:
        raise StoreError(f"a {record.get('kind')} record of {len(payload)} bytes passes the limit of {LARGEST_RECORD}")
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _finite(value: Json) -> Json:
    """The same value with null for NaN and infinities, which strict JSON readers refuse."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def parse(data: bytes, *, start: int = 0) -> Iterator[tuple[Json, int]]:
    """The whole records of `data` from offset `start`, each with the offset of its end; stops at the first torn one."""
    for payloads, stops in _chunks(data, start):
        # One call for many records costs half of one call for each.
        yield from zip(json.loads(b"[" + b",".join(payloads) + b"]"), stops, strict=True)


def _chunks(data: bytes, start: int) -> Iterator[tuple[list[bytes], list[int]]]:
    """Payloads and ends of the whole records, up to `RECORDS_AT_ONCE` of them at a time."""
    position, end = start, len(data)
    payloads: list[bytes] = []
    stops: list[int] = []
    while position + FRAME.size <= end:
        length, checksum = FRAME.unpack_from(data, position)
        stop = position + FRAME.size + length
        # A power cut may leave zeros where data were to come; no record is empty.
        if not 0 < length <= LARGEST_RECORD or stop > end:
            break
        payload = data[position + FRAME.size : stop]
        if zlib.crc32(payload) != checksum:
            break
        payloads.append(payload)
        stops.append(stop)
        position = stop
        if len(payloads) == RECORDS_AT_ONCE:
            yield payloads, stops
            payloads, stops = [], []
    if payloads:
        yield payloads, stops


def read(path: Path) -> list[Json]:
    """All whole records of a journal, while it is being written too. Takes no lock.

    Raises:
        StoreError: the file is no journal.
    """
    with collector.paused():
        return [record for record, _ in parse(_contents(path), start=len(MAGIC))]


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise StoreError(f"{path}: is not a journal of nord_hpc")
    return data


class JournalTail:
    """Reads a journal as it grows. Takes no lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = len(MAGIC)

    def new_records(self) -> list[Json]:
        """The whole records that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        records = []
        end = 0
        for record, end in parse(data):  # noqa: B007
            records.append(record)
        self._offset += end
        return records


class Journal:
    """The one writer of a journal file. Use as a context manager, or `close` it.

    Attributes:
        records: those that stood in the file when it was opened.
        n_syncs: number of fsyncs so far.
        sync_seconds: time spent in them.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal, cut a torn tail, and keep other writers out.

        Raises:
            BadInput: another process is writing it, or nobody can.
        """
        self.path = path
        self.n_syncs = 0
        self.sync_seconds = 0.0
        self._pending: list[bytes] = []
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadInput(f"{path}: cannot be opened for writing: {error.strerror}") from error
        try:
            self._lock()
            with collector.paused():
                self.records = self._recover()
        except BaseException:
            os.close(self._file)
            raise

    @staticmethod
    def is_being_written(path: Path) -> bool:
        """Whether a process holds this journal, as far as the file system knows."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def append(self, record: Mapping[str, Json]) -> None:
        """Add a record; it is durable after the next `sync`."""
        self._pending.append(frame(record))

    def sync(self) -> None:
        """Write and fsync all that was appended: one fsync for the whole group.

        Raises:
            OSError: the disk is full or broken; none of the group is in the file.
        """
        if not self._pending:
            return
        started = time.perf_counter()
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        begin = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            # A full disk: half a record must not stand before whole ones that come later.
            os.ftruncate(self._file, begin)
            os.lseek(self._file, begin, os.SEEK_SET)
            raise
        os.fdatasync(self._file)
        self.n_syncs += 1
        self.sync_seconds += time.perf_counter() - started

    def close(self) -> None:
        """Make everything durable and let other writers in."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        ends = time.monotonic() + LOCK_SECONDS
        try:
            while not self._try_lock():
                if time.monotonic() > ends:
                    raise BadInput(
                        f"{self.path.parent}: another process is running this search; wait for it, or stop it"
                    )
                time.sleep(0.05)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            log.warning("%s: this file system has no locks: make sure that one run alone writes here", self.path)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _recover(self) -> list[Json]:
        data = _contents(self.path)
        if len(data) < len(MAGIC):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, MAGIC, 0)
            os.lseek(self._file, len(MAGIC), os.SEEK_SET)
            os.fsync(self._file)
            sync_folder(self.path.parent)
            return []
        records, end = [], len(MAGIC)
        for record, stop in parse(data, start=len(MAGIC)):
            records.append(record)
            end = stop
        if end < len(data):
            self._cut(data[end:], end)
        os.lseek(self._file, end, os.SEEK_SET)
        return records

    def _cut(self, tail: bytes, end: int) -> None:
        """Drop what a kill left half written; keep a copy, as it might be damage instead."""
        kept = self.path.with_name(f"{self.path.name}.cut-at-{end}")
        kept.write_bytes(tail)
        log.warning("%s: %d bytes after the last whole record are cut, and kept in %s", self.path, len(tail), kept.name)
        os.ftruncate(self._file, end)
        os.fsync(self._file)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
