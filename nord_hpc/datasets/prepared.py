"""Arrays made once per machine and mapped by all its processes; which arrays, under which key, is left to others."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nord_hpc.datasets.locks import locked, unwritable
from nord_hpc.trial import Json

FORMAT = 1
"""Of the prepared folders; part of every key, so that a new format never reads an old folder."""

LOCK_SECONDS = 300.0
"""How long a process waits for the one that prepares the same data."""

MARKER = "complete.json"


@dataclass(frozen=True)
class ArrayToWrite:
    """An array that is made piece by piece: pieces in order, together of `shape`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Iterable[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Prepared:
    """A complete prepared folder: the arrays, read-only and mapped from its files, and what else is known of them."""

    folder: Path
    arrays: Mapping[str, np.ndarray[Any, Any]]
    facts: Json


def cache_folder() -> Path:
    """Where data are kept between runs: NORD_HPC_CACHE, or nord_hpc in the user's cache folder."""
    named = os.environ.get("NORD_HPC_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "nord_hpc"


def key_of(identity: Json) -> str:
    """The name of a prepared folder: a digest of all that its content follows from."""
    text = json.dumps({"format": FORMAT, "identity": identity}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def find(cache: Path, key: str) -> Prepared | None:
    """The prepared folder of `key`, or None where there is none or it is not whole."""
    folder = cache / "prepared" / key
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        body = marker["body"]
        if marker["sha256"] != _digest(body):
            return None
        if any((folder / name).stat().st_size != size for name, size in body["bytes"].items()):
            return None
        arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r") for name in body["bytes"]}
        return Prepared(folder=folder, arrays=arrays, facts=body["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def preparing(cache: Path, key: str, *, wait_seconds: float = LOCK_SECONDS) -> Iterator[Prepared | None]:
    """The right to prepare `key` while in the block; yields what another process has prepared meanwhile, or None.

    Raises:
        BadInput: no turn within `wait_seconds`; names the lock file.
    """
    with locked(cache / "prepared" / f"{key}.lock", wait_seconds=wait_seconds):
        yield find(cache, key)


def write(cache: Path, key: str, arrays: Mapping[str, ArrayToWrite], facts: Json) -> Prepared:
    """Write a prepared folder; call it inside `preparing`.

    Everything goes to a temporary folder, each file to the disk, the marker last, and one rename puts it in place. What
    a killed process left is removed.

    Raises:
        BadInput: the cache cannot be written, or is full.
    """
    parent = cache / "prepared"
    try:
        for left in parent.glob(f".{key}.*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
        try:
            temporary.chmod(0o755)
            for name, array in arrays.items():
                _write_array(temporary / f"{name}.npy", array)
            sizes = {f"{name}.npy": (temporary / f"{name}.npy").stat().st_size for name in arrays}
            body = {"bytes": sizes, "facts": facts}
            _write_marker(temporary / MARKER, {"body": body, "sha256": _digest(body)})
            _put_in_place(temporary, parent / key, cache=cache, key=key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable(parent, error) from error
    prepared = find(cache, key)
    assert prepared is not None, f"{parent / key} was written and cannot be read"
    return prepared


def _put_in_place(temporary: Path, final: Path, *, cache: Path, key: str) -> None:
    if final.exists() and find(cache, key) is None:
        shutil.rmtree(final)
    try:
        temporary.rename(final)
    except OSError:
        # Without locks another process may have been first; its folder is as good as ours.
        if find(cache, key) is None:
            raise
    _sync_folder(final.parent)


def _write_array(path: Path, array: ArrayToWrite) -> None:
    """An .npy file by plain writes: a full disk is an error here, and would be a bus error in a mapping."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    n_bytes = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for chunk in array.chunks:
            data = np.ascontiguousarray(chunk, dtype=array.dtype)
            file.write(data.data)
            n_bytes += data.nbytes
        file.flush()
        os.fsync(file.fileno())
    expected = math.prod(array.shape) * array.dtype.itemsize
    assert n_bytes == expected, f"{path.name}: {n_bytes} bytes came for shape {array.shape}"


def _write_marker(path: Path, marker: Json) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(marker, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: Json) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
