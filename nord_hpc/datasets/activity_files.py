"""Files of the accelerometer data as they are found: CSV, archive or npz to clean recordings, with notes on each fault.

What is done with a line, in this order:

1. Spaces and semicolons at its end are taken away. A line of nothing else is skipped.
2. It must have five fields: number, x, y, z, label. The number is not used: the official files round it to five digits.
3. x, y and z must be finite numbers, the label a whole number.

A line that fails 2 or 3 is left out, and noted with its number, counted from 1; as a sample is missing there, the next
line begins a new run. Labels may have gaps: the opening of the data set maps those that occur to 0 .. K-1 and keeps the
map.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nord_hpc.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]

N_FIELDS = 5
SHOWN_LINES = 10
"""A note names this many of the lines that were left out."""

NUMBERS_SHA256 = {
    1: "e67a6410169dbb56845e3ee574aa5b9497baa088370cf8b90cb47b4a211eee8f",
    2: "14d655213678f286068042c98c13b76b0d9040b308128d220c2944298190765e",
    3: "86c50a517db8e06596c7c23dd2ff177621de2116c36dc97d04d10bb83b558d1b",
    4: "977e43c64dbffb34cd0c7e0963f3ff8f4b70d34cb49c895aa78e07e0f4888dbe",
    5: "7361491d2d171faaaef9af2f104f1cd879dbc7277b6f5f8907a5346777b3364d",
    6: "6588c40dae807d124fc34dad9557bcdc5f25c634f0f4037e5111a62490f7fd83",
    7: "ba9e94f584e52318f69bed3ba569baca69cca60f8bb8bfe27e65c7b6cb2aa233",
    8: "f4fff6ab76012102b2cbec89a2e703b73b0493165fb6f545f7536071111781f0",
    9: "9ee36f194a2f14914017de0c2ce343754568204e4a32db162cf56e98f22402c6",
    10: "bf6dc00ca8ef71c6bd7cc5563a251215df78324a05288c949b92030600e99779",
    11: "a83c5dad45dd5e7fa3089763d216e0a6b67fb6c7c9861f935090b6b5ff3e50ab",
    12: "322524e409757a48fe7b12352449f2873da56b2e94de8ad6b132f6a81645ad0b",
    13: "f0d1cc71516df94bc2e83211208fcb4c1fdef3fc720513ff91841ec2e41319a8",
    14: "392e1f92346faae2a2d7eb94ca74fec3b91230782f35336206b8c1ea9fa6a170",
    15: "d450fc0e7b9d0cadb5fa1f8bd23f5f9deb0f22ee7f70fc52f5b251a3261db0ac",
}
"""By participant, of the official numbers: x, y, z as int16 [n, 3], then the labels as uint8 [n]."""

_CSV_NAME = re.compile(r"(\d+)\.csv")
_NPZ_NAME = re.compile(r"s(\d+)_xyz")


@dataclass(frozen=True)
class Recording:
    """What one participant's file holds.

    Attributes:
        subject: the participant's number.
        xyz: [n, 3] accelerations, in the order of time.
        labels: int64 [n]; 0 is no activity.
        after_gap: bool [n], whether samples are missing right before this one.
    """

    subject: int
    xyz: Array
    labels: Array
    after_gap: Array


def find_files(path: Path) -> list[Path]:
    """The files that the data in `path` come from, in the order of participants; nothing is read.

    Raises:
        BadInput: there are none.
    """
    if path.is_file():
        if path.suffix not in (".zip", ".npz"):
            raise BadInput(f"dataset.path: {path} is no .zip or .npz file; set it to one, or to a folder of CSV files")
        return [path]
    if not path.is_dir():
        raise BadInput(f"dataset.path: {path} does not exist; set it to the archive, or to a folder of CSV files")
    matches = [(match, file) for file in path.iterdir() if (match := _CSV_NAME.fullmatch(file.name))]
    if not matches:
        raise BadInput(f"dataset.path: {path} has no files named 1.csv, 2.csv, ...; put those of the archive there")
    return [file for _, file in sorted(matches, key=lambda pair: (int(pair[0][1]), pair[0][1]))]


def read_recordings(files: list[Path]) -> tuple[list[Recording], list[str]]:
    """The recordings in the order of participants, and notes on what was left out.

    Raises:
        BadInput: a file cannot be read, or no line of it is usable.
    """
    if files[0].suffix == ".npz":
        return _from_npz(files[0]), []
    recordings: list[Recording] = []
    notes: list[str] = []
    for name, content in _csv_contents(files):
        match = _CSV_NAME.fullmatch(Path(name).name)
        assert match is not None
        recording = _whole(content, int(match[1]))
        if recording is None:
            recording = _line_by_line(content, int(match[1]), name=name, notes=notes)
        recordings.append(recording)
    return recordings, notes


def is_official(recording: Recording) -> bool:
    """Whether these are the numbers of that participant in the official archive."""
    xyz_N3, label_N = recording.xyz.astype("<i2"), recording.labels.astype(np.uint8)
    if not np.array_equal(xyz_N3, recording.xyz) or not np.array_equal(label_N, recording.labels):
        return False
    digest = hashlib.sha256(xyz_N3.tobytes() + label_N.tobytes()).hexdigest()
    return digest == NUMBERS_SHA256.get(recording.subject)


def _csv_contents(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    if files[0].suffix != ".zip":
        for file in files:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise BadInput(f"dataset.path: {file} cannot be read: {error.strerror}") from error
        return
    try:
        with zipfile.ZipFile(files[0]) as archive:
            members = [name for name in archive.namelist() if _CSV_NAME.fullmatch(Path(name).name)]
            if not members:
                raise BadInput(f"dataset.path: {files[0]} holds no files named 1.csv, 2.csv, ...; get the official one")
            for name in sorted(members, key=lambda name: int(Path(name).stem)):
                yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"dataset.path: {files[0]} cannot be unpacked: {error}; get it again") from error


def _whole(content: bytes, subject: int) -> Recording | None:
    """The recording of a file without any fault; None where there is one, or one may be."""
    n_lines = content.count(b"\n") + (not content.endswith(b"\n"))
    try:
        table = np.loadtxt(io.BytesIO(content), delimiter=",", comments=None, ndmin=2)
    except ValueError:
        return None
    if table.shape != (n_lines, N_FIELDS) or not np.isfinite(table[:, 1:]).all() or (table[:, 4] % 1).any():
        return None
    return Recording(subject, table[:, 1:4], table[:, 4].astype(np.int64), np.zeros(n_lines, dtype=bool))


def _line_by_line(content: bytes, subject: int, *, name: str, notes: list[str]) -> Recording:
    rows: list[list[float]] = []
    after_gap: list[bool] = []
    faults: dict[str, list[int]] = {}
    gap = False
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
        text = line.rstrip("; \t")
        if text != line.rstrip():
            faults.setdefault("semicolon taken away at the end of line", []).append(number)
        if not text.strip():
            faults.setdefault("blank, skipped: line", []).append(number)
            continue
        values, fault = _values(text)
        if fault is not None:
            faults.setdefault(f"{fault}, left out: line", []).append(number)
            gap = True
            continue
        rows.append(values)
        after_gap.append(gap)
        gap = False
    if not rows:
        raise BadInput(f"dataset.path: {name} has no line with number, x, y, z and label; put the official file there")
    notes += [f"{name}: {fault} {_listed(numbers)}" for fault, numbers in faults.items()]
    table = np.array(rows)
    return Recording(subject, table[:, :3], table[:, 3].astype(np.int64), np.array(after_gap))


def _values(text: str) -> tuple[list[float], str | None]:
    """x, y, z and label of a line, or what is wrong with it."""
    fields = text.split(",")
    if len(fields) != N_FIELDS:
        return [], f"{len(fields)} fields, not {N_FIELDS}"
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        return [], "not a number"
    if not all(map(math.isfinite, values)):
        return [], "not a finite number"
    if values[3] % 1:
        return [], "no whole number as label"
    return values, None


def _from_npz(file: Path) -> list[Recording]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            numbers = sorted(int(match[1]) for name in archive.files if (match := _NPZ_NAME.fullmatch(name)))
            arrays = {number: (archive[f"s{number:02d}_xyz"], archive[f"s{number:02d}_y"]) for number in numbers}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"dataset.path: {file} cannot be read: {' '.join(str(error).split())}") from error
    if not arrays:
        raise BadInput(f"dataset.path: {file} has no arrays s01_xyz and s01_y; give both for each participant")
    recordings = []
    for number, (xyz, y) in arrays.items():
        if xyz.ndim != 2 or xyz.shape[0] != 3 or y.shape != xyz.shape[1:]:
            raise BadInput(
                f"dataset.path: {file}: s{number:02d}_xyz has shape {list(xyz.shape)} and s{number:02d}_y "
                f"{list(y.shape)}; give [3, samples] and [samples]"
            )
        recordings.append(Recording(number, xyz.T, y.astype(np.int64), np.zeros(len(y), dtype=bool)))
    return recordings


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN_LINES])) + (", ..." if len(numbers) > SHOWN_LINES else "")
