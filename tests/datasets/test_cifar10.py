"""CIFAR-10: real records, the archive and the folder, parts of it, and what is said of wrong files."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, cifar10, make_source
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]


def records(n: int, seed: int) -> bytes:
    table = np.random.default_rng(seed).integers(0, 256, (n, 3073)).astype(np.uint8)
    table[:, 0] = np.arange(n) % 10
    return table.tobytes()


def write_batches(folder: Path, *, n: int = 20) -> None:
    folder.mkdir(parents=True)
    for seed, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        (folder / name).write_bytes(records(n, seed))


def test_the_first_2000_real_images(open_: Open, shared_data: Path, tmp_path: Path, cache: Path) -> None:
    data = lzma.decompress((shared_data / "cifar10" / "data_batch_1_first2000.bin.xz").read_bytes())
    assert hashlib.sha256(data).hexdigest() == "eae30ce617c27eb358b2409617ac9c388f67c480af37b07393173a79541bb8f4"
    (tmp_path / "data_batch_1.bin").write_bytes(data)
    settings = DatasetSettings(name="cifar10", path=".", allow_partial=True)
    raw = make_source(settings, folder=tmp_path, cache=cache).load()
    assert raw.x_train.shape == (2000, 3, 32, 32) and raw.x_train.dtype == np.uint8
    assert raw.y_train[:20].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7, 7, 2, 9, 9, 9, 3, 2, 6]
    assert raw.x_train[0, :, 0, 0].tolist() == [59, 62, 63]  # the known first pixel of the frog
    assert raw.x_train.mean(axis=(0, 2, 3)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    d = open_(name="cifar10", path=".", allow_partial=True)
    assert (d.info.n_train, d.info.n_validation, d.info.n_test) == (1280, 320, 400)
    assert d.info.notes == (
        "a part of CIFAR-10: 2000 training images, 5 files missing",
        "no test part of its own: 400 samples were carved out, the same ones in every job",
    )
    assert d.info.class_names[6] == "frog" and isinstance(d.train.x, np.memmap)  # 24 MB as float32
    with pytest.raises(BadInput, match=r"has no data_batch_2.bin, .*test_batch.bin; put all six .*allow_partial: true"):
        open_(name="cifar10", path=".")


def test_a_folder_of_all_files_with_few_records(open_: Open, tmp_path: Path) -> None:
    write_batches(tmp_path / "d" / cifar10.INNER_FOLDER)
    with pytest.raises(
        BadInput, match=r"data_batch_1.bin: has 20 records, not 10000; get it again, or set dataset.allow"
    ):
        open_(name="cifar10", path="d")
    d = open_(name="cifar10", path="d", allow_partial=True)
    assert (d.info.n_train, d.info.n_validation, d.info.n_test) == (80, 20, 20)
    expected = np.frombuffer(records(20, 5), dtype=np.uint8).reshape(20, 3073)
    assert d.test.y.tolist() == expected[:, 0].tolist()
    assert np.array_equal(d.test.x, d.info.normalize(expected[:, 1:].reshape(20, 3, 32, 32)))


def test_the_archive_is_read_as_it_is(open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batches(tmp_path / "d" / cifar10.INNER_FOLDER)
    archive = tmp_path / "mirror" / "cifar10" / cifar10.ARCHIVE
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "d" / cifar10.INNER_FOLDER, arcname=cifar10.INNER_FOLDER)
    folder = open_(name="cifar10", path="d", allow_partial=True)
    packed = open_(name="cifar10", path=str(archive), allow_partial=True)
    assert packed.info.fingerprint == folder.info.fingerprint
    assert open_(name="cifar10", path="mirror/cifar10", allow_partial=True).info.fingerprint == packed.info.fingerprint
    digest = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    monkeypatch.setattr(cifar10, "FILES", {cifar10.ARCHIVE: cifar10.RemoteFile(urls=(), digest=digest)})
    fetched = open_(name="cifar10", mirror=(tmp_path / "mirror").as_uri(), allow_partial=True)
    assert fetched.info.fingerprint == folder.info.fingerprint


def test_the_official_digest_is_asked_for(open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cifar10.FILES[cifar10.ARCHIVE].digest == "md5:c32a1d4ab5d03f1284b67883e8d87530"
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / cifar10.ARCHIVE).write_bytes(b"something else")
    local = cifar10.RemoteFile(urls=(), digest=cifar10.FILES[cifar10.ARCHIVE].digest)
    monkeypatch.setattr(cifar10, "FILES", {cifar10.ARCHIVE: local})
    with pytest.raises(BadInput, match="its digest is md5:6c7ba9c5a141421e1c03cb9807c97c74, not md5:c32a1d4a"):
        open_(name="cifar10", mirror=tmp_path.as_uri())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 3074, "data_batch_1.bin: has 3074 bytes, which is no number of records of 3073; get it again"),
        (b"", "data_batch_1.bin: has 0 bytes, which is no number of records"),
        (b"\x01" + bytes(3072) + b"\x0a" + bytes(3072), "data_batch_1.bin: record 1 has the label 10, above 9"),
    ],
)
def test_wrong_records_are_named(open_: Open, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        open_(name="cifar10", path=".", allow_partial=True)


def test_wrong_places_are_named(open_: Open, tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "data_batch_1").touch()
    (tmp_path / "a.zip").touch()
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    for path, message in [
        ("none", r"none does not exist; set it to cifar-10-binary.tar.gz, or to a folder of .bin files"),
        ("a.zip", r"a.zip is not cifar-10-binary.tar.gz; set it to that file"),
        ("python", r"has no data_batch_1.bin \(those without .bin are the Python version\); put the binary version"),
        ("bad.tar.gz", r"bad.tar.gz: cannot be unpacked: not a gzip file; get it again"),
        ("other.tar.gz", r"other.tar.gz: holds no data_batch_1.bin; get the official"),
    ]:
        with pytest.raises(BadInput, match=message):
            open_(name="cifar10", path=path)
