"""CIFAR-10: 50,000 and 10,000 colour images of 32 x 32 in 10 classes, from the official binary version."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.datasets.dataset import RawData
from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput

ARCHIVE = "cifar-10-binary.tar.gz"
FILES = {
    ARCHIVE: RemoteFile(
        urls=(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), digest="md5:c32a1d4ab5d03f1284b67883e8d87530"
    )
}
INNER_FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
RECORDS_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32
"""One record: the label, then the red, green and blue values, each row by row."""

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10:
    """x is uint8 [N, 3, 32, 32]. `path` is the official archive, or a folder with it or with its .bin files; without
    it the archive is downloaded."""

    class Options(BaseModel):
        """How strictly the files are taken, and where they come from.

        Attributes:
            allow_partial: take fewer files and fewer images; without the test file a test part is carved out.
            mirror: "file:///..." or "https://..." of a folder with cifar10/ in it, tried before the official place.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        allow_partial: bool = False
        mirror: str | None = None

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        self._options = options
        self._cache = cache
        self._files = None if path is None else _local_files(path, allow_partial=options.allow_partial)

    def files(self) -> list[Path]:
        if self._files is not None:
            return self._files
        folder = self._cache / "downloads" / "cifar10"
        return list(fetch(FILES, folder, mirror=self._options.mirror, advice="set dataset.path").values())

    def load(self) -> RawData:
        files = self.files()
        contents = _from_archive(files[0]) if files[0].suffix == ".gz" else {f.name: _read(f) for f in files}
        parts = {name: self._records(name, content) for name, content in contents.items()}
        train = np.concatenate([parts[name] for name in TRAIN_FILES if name in parts])
        test = parts.get(TEST_FILE)
        n_missing = sum(name not in parts for name in (*TRAIN_FILES, TEST_FILE))
        partial = len(train) != 5 * RECORDS_PER_FILE or test is None or len(test) != RECORDS_PER_FILE
        return RawData(
            x_train=_images(train),
            y_train=train[:, 0],
            x_test=None if test is None else _images(test),
            y_test=None if test is None else test[:, 0],
            class_names=CLASS_NAMES,
            source="CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009), "
            "www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated by the authors",
            notes=(f"a part of CIFAR-10: {len(train)} training images, {n_missing} files missing",) if partial else (),
        )

    def _records(self, name: str, content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        n_records, rest = divmod(len(content), RECORD_BYTES)
        if rest or n_records == 0:
            raise BadInput(f"{name}: has {len(content)} bytes, which is no number of records of 3073; get it again")
        if n_records != RECORDS_PER_FILE and not self._options.allow_partial:
            raise BadInput(
                f"{name}: has {n_records} records, not {RECORDS_PER_FILE}; get it again, or set "
                "dataset.allow_partial: true"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(n_records, RECORD_BYTES)
        if records[:, 0].max() > 9:
            row = int(np.argmax(records[:, 0] > 9))
            raise BadInput(f"{name}: record {row} has the label {records[row, 0]}, above 9; give the binary version")
        return records


def _images(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return records[:, 1:].reshape(-1, 3, 32, 32)


def _local_files(path: Path, *, allow_partial: bool) -> list[Path]:
    """The archive, or the .bin files, that `path` names."""
    if path.is_file():
        if not path.name.endswith(".tar.gz"):
            raise BadInput(f"dataset.path: {path} is not {ARCHIVE}; set it to that file, or to a folder of .bin files")
        return [path]
    if not path.is_dir():
        raise BadInput(f"dataset.path: {path} does not exist; set it to {ARCHIVE}, or to a folder of .bin files")
    folder = path / INNER_FOLDER if (path / INNER_FOLDER).is_dir() else path
    present = [folder / name for name in (*TRAIN_FILES, TEST_FILE) if (folder / name).is_file()]
    if not present and (path / ARCHIVE).is_file():
        return [path / ARCHIVE]
    if not any(file.name in TRAIN_FILES for file in present):
        hint = " (those without .bin are the Python version)" if (folder / "data_batch_1").exists() else ""
        raise BadInput(f"dataset.path: {folder} has no data_batch_1.bin{hint}; put the binary version there")
    missing = [name for name in (*TRAIN_FILES, TEST_FILE) if folder / name not in present]
    if missing and not allow_partial:
        raise BadInput(
            f"dataset.path: {folder} has no {', '.join(missing)}; put all six files there, or set "
            "dataset.allow_partial: true"
        )
    return present


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from error


def _from_archive(file: Path) -> dict[str, bytes]:
    """The .bin files of the archive; nothing is unpacked to disk."""
    wanted = {*TRAIN_FILES, TEST_FILE}
    contents = {}
    try:
        with tarfile.open(file, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if name in wanted and member.isfile() else None
                if stream is not None:
                    contents[name] = stream.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"{file}: cannot be unpacked: {error}; get it again") from error
    missing = sorted(wanted - set(contents))
    if missing:
        raise BadInput(f"{file}: holds no {missing[0]}; get the official {ARCHIVE}")
    return contents
