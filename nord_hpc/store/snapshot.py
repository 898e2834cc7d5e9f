"""The snapshot search.h5: the trials as columns for analysis, provenance, and the state for a fast resume.

Derived from the journal: deleting it loses nothing. Written under a temporary name and renamed, so readers see whole
files alone and need no lock.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from nord_hpc import __version__
from nord_hpc.store.history import History
from nord_hpc.store.run_folder import RunFolder, write_atomically
from nord_hpc.store.summary import rows
from nord_hpc.trial import Json

log = logging.getLogger(__name__)

FORMAT = 2
SHARE_OF_TIME = 0.01
SHORTEST_INTERVAL_SECONDS = 10.0
FIRST_GUESS_SECONDS_PER_TRIAL = 2e-4

NUMBERS: dict[str, type] = {
    "number": np.int64,
    "commit": np.int64,
    "seed": np.int64,
    "attempts": np.int64,
    "n_parameters": np.int64,
    "multiply_adds": np.int64,
    "cost": np.int64,
    "virtual_start": np.int64,
    "virtual_finish": np.int64,
    "continues": np.int64,
    "reuses": np.int64,
    "fitness": np.float64,
    "seconds": np.float64,
    "started_seconds": np.float64,
    "finished_seconds": np.float64,
}
"""Columns of numbers; missing ones are -1 among integers and NaN among floats."""

TEXTS = ("state", "descriptor_hash", "failure", "reason", "host", "imported")
AS_JSON = ("parents", "ranks", "fidelity", "metrics", "provenance", "settings", "genotype", "descriptor")


class Snapshots:
    """Writes snapshots of a running search, so seldom that they cost under 1% of the time."""

    def __init__(self, folder: RunFolder, *, state: Callable[[], Json], n_trials: Callable[[], int]) -> None:
        """
        Args:
            state: gives the scheduler's state, between two rounds of events.
            n_trials: how many trials a snapshot would hold.
        """
        self._folder = folder
        self._state = state
        self._n_trials = n_trials
        self._seconds_per_trial = FIRST_GUESS_SECONDS_PER_TRIAL
        self._last = time.monotonic()

    def on_tick(self) -> None:
        cost = self._n_trials() * self._seconds_per_trial
        if time.monotonic() - self._last >= max(SHORTEST_INTERVAL_SECONDS, cost / SHARE_OF_TIME):
            self.write()

    def write(self) -> None:
        """Write a snapshot of this moment. A failure to do so is logged, as nothing depends on it."""
        started = time.monotonic()
        try:
            write(self._folder.snapshot_file, self._folder.history(), self._state())
        except OSError as error:
            log.warning("the snapshot %s could not be written: %s", self._folder.snapshot_file, error)
        self._last = time.monotonic()
        self._seconds_per_trial = (self._last - started) / max(1, self._n_trials())


def write(path: Path, history: History, state: Json) -> None:
    """Write a snapshot atomically."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _write_trials(file.create_group("trials"), rows(history))
        life = history.lives[-1]
        file.attrs["format"] = FORMAT
        file.attrs["nord_hpc"] = __version__
        file.attrs["history_sha256"] = history.history_sha256
        file.attrs["job"] = json.dumps(life.job)
        file.attrs["machine"] = json.dumps(life.machine)
        file.attrs["hosts"] = json.dumps(sorted({past.host for past in history.lives}))
        file.create_dataset("commit_order", data=np.asarray(history.commit_order, dtype=np.int64))
        file.create_dataset("resume", data=np.frombuffer(json.dumps(state).encode(), dtype=np.uint8))
    write_atomically(path, buffer.getvalue())


def resume_state(path: Path, history: History) -> Json | None:
    """The scheduler's state in a snapshot, if there is one that fits this history; else None, and nothing is lost."""
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            state = json.loads(bytes(file["resume"][()]))
            fits = int(file.attrs["format"]) == FORMAT and str(file.attrs["nord_hpc"]) == __version__
    except (OSError, KeyError, ValueError) as error:
        log.warning("%s is not used: %s; the journal alone is", path, error)
        return None
    known = state["n_committed"] <= len(history.commit_order) and state["n_proposed"] <= len(history.entries)
    # At the end of a budget the strategy is no longer asked; a larger budget must go through it all again.
    return state if fits and known and not state["over"] else None


def recorded_digest(path: Path) -> tuple[str, int] | None:
    """The history's digest as a snapshot has it, and over how many trials; None where there is no snapshot."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["history_sha256"]), len(file["commit_order"])
    except (OSError, KeyError):
        return None


def read_trials(path: Path) -> dict[str, list[Json]]:
    """The trial columns of a snapshot, missing values as None."""
    with h5py.File(path, "r", locking=False) as file:
        group = file["trials"]
        columns: dict[str, list[Json]] = {}
        for name, kind in NUMBERS.items():
            missing = np.isnan if kind is np.float64 else _is_negative
            values = group[name][()]
            columns[name] = [
                None if gone else value for gone, value in zip(missing(values), values.tolist(), strict=True)
            ]
        for name in TEXTS:
            columns[name] = [text or None for text in group[name].asstr()[()]]
        for name in AS_JSON:
            columns[name] = [json.loads(text) for text in group[name].asstr()[()]]
    return columns


def _write_trials(group: h5py.Group, table: list[dict[str, Json]]) -> None:
    for name, kind in NUMBERS.items():
        missing: Any = np.nan if kind is np.float64 else -1
        values = [missing if row[name] is None else row[name] for row in table]
        group.create_dataset(name, data=np.asarray(values, dtype=kind), **_compression(table))
    text = h5py.string_dtype()
    for name in TEXTS:
        group.create_dataset(name, data=[row[name] or "" for row in table], dtype=text, shape=(len(table),))
    for name in AS_JSON:
        encoded = [json.dumps(row[name], separators=(",", ":"), allow_nan=False) for row in table]
        group.create_dataset(name, data=encoded, dtype=text, shape=(len(table),))


def _compression(table: list[dict[str, Json]]) -> dict[str, Any]:
    return {"compression": "gzip", "shuffle": True} if table else {}


def _is_negative(values: np.ndarray) -> np.ndarray:
    return values < 0
