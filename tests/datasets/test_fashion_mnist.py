"""Fashion-MNIST: the full set's known values where it is installed, and what is said of wrong files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, fashion_mnist
from nord_hpc.errors import BadInput

Open = Callable[..., Dataset]


def write_idx(path: Path, array: np.ndarray, *, packed: bool = False) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if packed else data)


def write_small(folder: Path) -> None:
    """Forty and ten images in the official format; the labels packed."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 40), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n) % 10, packed=True)


@pytest.mark.skipif(
    not fashion_mnist.SYSTEM_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_full_set_has_its_known_values(open_: Open) -> None:
    d = open_(name="fashion_mnist", storage="mmap")
    x = np.concatenate([d.train.x[:], d.validation.x[:]])
    assert x.shape == (60_000, 1, 28, 28) and x.dtype == np.uint8 and d.test.x.shape == (10_000, 1, 28, 28)
    assert x.mean() / 255 == pytest.approx(0.2860, abs=5e-5) and x.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    assert np.bincount(d.train.y).tolist() == [4800] * 10 and np.bincount(d.test.y).tolist() == [1000] * 10
    assert np.bincount(d.validation.y).tolist() == [1200] * 10
    assert d.info.mean[0] / 255 == pytest.approx(0.286, abs=1e-3) and d.info.notes == () and d.info.licence == "MIT"
    assert [d.info.class_names[k] for k in d.test.y[:4]] == ["Ankle boot", "Pullover", "Trouser", "Trouser"]


def test_other_content_needs_to_be_allowed(open_: Open, tmp_path: Path) -> None:
    write_small(tmp_path / "f")
    with pytest.raises(
        BadInput, match=r"train-images-idx3-ubyte: its content is not that of Fashion-MNIST's .*partial"
    ):
        open_(name="fashion_mnist", path="f")
    d = open_(name="fashion_mnist", path="f", allow_partial=True)
    assert (d.info.n_train, d.info.n_validation, d.info.n_test) == (30, 10, 10)
    assert d.info.class_names[9] == "Ankle boot"
    assert d.info.notes[1] == "train-labels-idx1-ubyte.gz: not the official content"


def test_a_missing_file_is_named(open_: Open, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"dataset.path: there is no folder .*f; set it to one with the four IDX files"):
        open_(name="fashion_mnist", path="f")
    write_small(tmp_path / "f")
    (tmp_path / "f" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        BadInput, match=r"has no t10k-labels-idx1-ubyte \(nor t10k-labels-idx1-ubyte.gz\); put the four"
    ):
        open_(name="fashion_mnist", path="f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "train-images-idx3-ubyte: is not an IDX file of bytes with 3 axes"),
        (
            bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 2, 2) + bytes(7),
            r"has 7 bytes of data, its header says \[2, 2, 2\]",
        ),
        (bytes((0, 0, 8, 3)) + bytes(5), "train-images-idx3-ubyte: is not an IDX file of bytes with 3 axes"),
    ],
)
def test_damaged_files_are_named(open_: Open, tmp_path: Path, content: bytes, message: str) -> None:
    write_small(tmp_path / "f")
    (tmp_path / "f" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        open_(name="fashion_mnist", path="f", allow_partial=True)


def test_a_damaged_archive_is_named(open_: Open, tmp_path: Path) -> None:
    write_small(tmp_path / "f")
    labels = tmp_path / "f" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-6])
    with pytest.raises(BadInput, match=r"train-labels-idx1-ubyte.gz: cannot be read: .*; get it again"):
        open_(name="fashion_mnist", path="f", allow_partial=True)


def test_without_files_and_network_one_line_says_what_to_do(
    open_: Open, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "none")
    nowhere = fashion_mnist.RemoteFile(urls=("file:///nowhere/f.gz",), digest=f"md5:{'0' * 32}")
    monkeypatch.setattr(fashion_mnist, "FILES", {"train-images-idx3-ubyte.gz": nowhere})
    with pytest.raises(BadInput) as refused:
        open_(name="fashion_mnist")
    assert str(refused.value) == (
        "train-images-idx3-ubyte.gz cannot be fetched (file:///nowhere/f.gz: there is no such file); put "
        f"train-images-idx3-ubyte.gz into {cache}/downloads/fashion_mnist, or install Debian's package "
        "dataset-fashion-mnist, or set dataset.path"
    )
