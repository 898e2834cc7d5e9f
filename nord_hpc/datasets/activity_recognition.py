"""Activity Recognition from Single Chest-Mounted Accelerometer (UCI 287): windows of one participant and one activity.

How the official CSV files and damaged ones are read is left to `activity_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from nord_hpc.datasets.activity_files import Recording, find_files, is_official, read_recordings
from nord_hpc.datasets.dataset import RawData
from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput

ARCHIVE = "Activity Recognition from Single Chest-Mounted Accelerometer.zip"
FILES = {
    ARCHIVE: RemoteFile(
        urls=(
            "https://archive.ics.uci.edu/ml/machine-learning-databases/00287/" + ARCHIVE.replace(" ", "%20"),
            "https://archive.ics.uci.edu/static/public/287/"
            "activity+recognition+from+single+chest+mounted+accelerometer.zip",
        ),
        digest=None,
    )
}
"""The authors give no digest of the archive. The numbers in it are checked instead, one digest for each participant."""

ACTIVITIES = {
    1: "working at computer",
    2: "standing up, walking and going up/down stairs",
    3: "standing",
    4: "walking",
    5: "going up/down stairs",
    6: "walking and talking with someone",
    7: "talking while standing",
}
"""What the labels mean. 0 is no activity."""

NO_ACTIVITY = 0

Array = np.ndarray[Any, np.dtype[Any]]


class ActivityRecognition:
    """x is float32 [N, 3, window]: x, y and z acceleration, uncalibrated, at 52 Hz. Classes are the labels that occur.

    `path` is the official archive, a folder with the files 1.csv to 15.csv (or fewer, or others of that form), or an
    .npz file with sNN_xyz [3, n] and sNN_y [n] for each participant NN, which is a layout of our own. Without it the
    archive is downloaded.

    A run is what lies between two changes of label, rows without activity and rows that could not be read; windows are
    cut inside runs, so that none holds two activities or bridges a gap. The test part is that of whole participants,
    and so is the validation part.
    """

    class Options(BaseModel):
        """How windows are cut, and who is tested on.

        Attributes:
            window: samples of a window; 52 are a second.
            stride: samples from the beginning of a window to that of the next.
            differentiate: use the change from each sample to the next; a run is then one sample shorter.
            test_subjects: how many participants make the test part, those with the highest numbers; or their numbers.
                0 leaves the test part to be carved out as for data that come without one.
            mirror: "file:///..." or "https://..." of a folder with activity_recognition/ in it, before the official
                places.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        window: int = Field(52, ge=1)
        stride: int = Field(26, ge=1)
        differentiate: bool = False
        test_subjects: int | tuple[int, ...] = 4
        mirror: str | None = None

        @field_validator("test_subjects")
        @classmethod
        def _not_negative(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{value} participants are too few; set 0 or more, or a list of their numbers")
            return value

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        self._options = options
        self._path = path
        self._cache = cache
        self._found = None if path is None else find_files(path)

    def files(self) -> list[Path]:
        if self._found is None:
            folder = self._cache / "downloads" / "activity_recognition"
            advice = "set dataset.path to the archive or a folder with its CSV files"
            fetch(FILES, folder, mirror=self._options.mirror, advice=advice)
            self._found = [folder / ARCHIVE]
        return self._found

    def load(self) -> RawData:
        recordings, notes = read_recordings(self.files())
        others = [str(recording.subject) for recording in recordings if not is_official(recording)]
        if others and self._path is None:
            raise BadInput(
                f"{self.files()[0]}: the numbers of participant {others[0]} are not the official ones; remove the file "
                "to download it again, or set dataset.path to it to use it as it is"
            )
        if others:
            notes.append(f"not the official numbers: participant {', '.join(others)}")
        notes += _label_notes(recordings)
        tested = self._tested([recording.subject for recording in recordings])
        parts = {True: _Windows(), False: _Windows()}
        for recording in recordings:
            windows, labels = self._windows(recording)
            parts[recording.subject in tested].add(recording.subject, windows, labels)
        train, test = parts[False], parts[True]
        if train.n == 0:
            raise BadInput(
                f"dataset.window: no run of the training participants has {self._needed} samples; set a smaller window"
            )
        if tested and test.n == 0:
            raise BadInput(f"dataset.window: no run of the test participants has {self._needed} samples; set it lower")
        x_train, y_train, groups = train.arrays()
        x_test, y_test, _ = test.arrays() if tested else (None, None, None)
        return RawData(
            x_train=x_train,
            y_train=y_train,
            x_test=x_test,
            y_test=y_test,
            groups_train=groups if len(np.unique(groups)) > 1 else None,
            source="Activity Recognition from Single Chest-Mounted Accelerometer (P. Casale, O. Pujol, P. Radeva 2012, "
            "UCI 287), archive.ics.uci.edu/dataset/287",
            licence="none is named in the archive; the UCI repository gives CC BY 4.0 for its data sets",
            notes=tuple(notes),
        )

    @property
    def _needed(self) -> int:
        """Samples of the shortest run that gives a window."""
        return self._options.window + self._options.differentiate

    def _tested(self, subjects: list[int]) -> frozenset[int]:
        """The participants of the test part.

        Raises:
            BadInput: there is no such participant, or none would be left for training.
        """
        wanted = self._options.test_subjects
        present = ", ".join(map(str, subjects))
        tested = frozenset(sorted(subjects)[len(subjects) - wanted :] if isinstance(wanted, int) else wanted)
        unknown = sorted(tested - set(subjects))
        if unknown:
            raise BadInput(f"dataset.test_subjects: there is no participant {unknown[0]}; the data have {present}")
        if len(tested) == len(subjects) or (isinstance(wanted, int) and wanted >= len(subjects)):
            raise BadInput(
                f"dataset.test_subjects: leaves none of the participants {present} for training; set "
                f"{len(subjects) - 1} or less"
            )
        return tested

    def _windows(self, recording: Recording) -> tuple[Array, Array]:
        """All windows of one participant, float32 [N, 3, window], and their labels [N], in the order of time."""
        options = self._options
        xyz_N3 = recording.xyz.astype(np.float32)
        label_N = recording.labels
        breaks_N = np.ones(len(label_N), dtype=bool)
        breaks_N[1:] = (label_N[1:] != label_N[:-1]) | recording.after_gap[1:]
        starts = np.flatnonzero(breaks_N)
        ends = np.append(starts[1:], len(label_N))
        if options.differentiate:
            xyz_N3 = np.diff(xyz_N3, axis=0, prepend=xyz_N3[:1])
            starts = starts + 1  # the first sample of a run has no predecessor in it
        places = [
            np.arange(start, end - options.window + 1, options.stride)
            for start, end in zip(starts, ends, strict=True)
            if label_N[end - 1] != NO_ACTIVITY
        ]
        index_N = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        if len(index_N) == 0:
            return np.zeros((0, 3, options.window), dtype=np.float32), np.zeros(0, dtype=np.int64)
        views = np.lib.stride_tricks.sliding_window_view(xyz_N3, options.window, axis=0)
        return views[index_N], label_N[index_N]


class _Windows:
    """The windows of several participants."""

    def __init__(self) -> None:
        self._x: list[Array] = []
        self._y: list[Array] = []
        self._groups: list[Array] = []
        self.n = 0

    def add(self, subject: int, windows: Array, labels: Array) -> None:
        self._x.append(windows)
        self._y.append(labels)
        self._groups.append(np.full(len(labels), subject))
        self.n += len(labels)

    def arrays(self) -> tuple[Array, Array, Array]:
        return np.concatenate(self._x), np.concatenate(self._y), np.concatenate(self._groups)


def _label_notes(recordings: list[Recording]) -> list[str]:
    """How many rows have no activity, by participant, and what the other labels mean."""
    notes = []
    idle = {recording.subject: int((recording.labels == NO_ACTIVITY).sum()) for recording in recordings}
    idle = {subject: n for subject, n in idle.items() if n}
    if idle:
        counts = ", ".join(f"{subject}: {n}" for subject, n in idle.items())
        notes.append(f"{sum(idle.values())} rows without activity (label 0) left out, by participant {counts}")
    found = sorted({int(label) for recording in recordings for label in np.unique(recording.labels)} - {NO_ACTIVITY})
    if set(found) <= set(ACTIVITIES):
        notes.append("labels: " + "; ".join(f"{label} {ACTIVITIES[label]}" for label in found))
    return notes
