"""Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 in 10 classes, from the four official IDX files."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.datasets.dataset import RawData
from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

_PLACES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
_ARCHIVE_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FILES = {
    f"{name}.gz": RemoteFile(urls=tuple(f"{place}{name}.gz" for place in _PLACES), digest=f"md5:{md5}")
    for name, md5 in _ARCHIVE_MD5.items()
}
"""The official files, with the MD5 sums that the authors give. Others may have compressed the same content anew."""

CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files."""

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionMnist:
    """x is uint8 [N, 1, 28, 28]. `path` is a folder with the four files, packed or not; without it they are looked for
    in `SYSTEM_FOLDER`, then downloaded."""

    class Options(BaseModel):
        """How strictly the files are taken, and where they come from.

        Attributes:
            allow_partial: take files of the same format with other, or fewer, images.
            mirror: "file:///..." or "https://..." of a folder with fashion_mnist/ in it, before the official places.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        allow_partial: bool = False
        mirror: str | None = None

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        self._options = options
        self._cache = cache
        self._folder = path
        if path is None and _missing(SYSTEM_FOLDER) == []:
            self._folder = SYSTEM_FOLDER
        if path is not None:
            if not path.is_dir():
                raise BadInput(f"dataset.path: there is no folder {path}; set it to one with the four IDX files")
            missing = _missing(path)
            if missing:
                raise BadInput(
                    f"dataset.path: {path} has no {missing[0]} (nor {missing[0]}.gz); put the four official IDX files "
                    "there, or remove dataset.path to download them"
                )

    def files(self) -> list[Path]:
        if self._folder is not None:
            return [_file_of(self._folder, name) for name in CONTENT_SHA256]
        advice = "install Debian's package dataset-fashion-mnist, or set dataset.path"
        folder = self._cache / "downloads" / "fashion_mnist"
        return list(fetch(FILES, folder, mirror=self._options.mirror, advice=advice).values())

    def load(self) -> RawData:
        arrays, notes = [], []
        for file, (name, sha256) in zip(self.files(), CONTENT_SHA256.items(), strict=True):
            content = unpacked(file)
            if hashlib.sha256(content).hexdigest() != sha256:
                if not self._options.allow_partial:
                    raise BadInput(
                        f"{file}: its content is not that of Fashion-MNIST's {name}; get the official file, or set "
                        "dataset.allow_partial: true to use it as it is"
                    )
                notes.append(f"{file.name}: not the official content")
            arrays.append(read_idx(content, file=file, n_axes=3 if "images" in name else 1))
        x_train, y_train, x_test, y_test = arrays
        return RawData(
            x_train=x_train[:, None],
            y_train=y_train,
            x_test=x_test[:, None],
            y_test=y_test,
            class_names=CLASS_NAMES,
            source="Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf 2017), github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
            notes=tuple(notes),
        )


def unpacked(file: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz.

    Raises:
        BadInput: it cannot be read or is damaged.
    """
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{file}: cannot be read: {error}; get it again") from error


def read_idx(content: bytes, *, file: Path, n_axes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of bytes as an array: 0, 0, type 8, number of axes, then each axis as 32 bits, then the bytes.

    Raises:
        BadInput: it is no such file, or not whole.
    """
    start = 4 + 4 * n_axes
    if content[:4] != bytes((0, 0, 8, n_axes)) or len(content) < start:
        raise BadInput(f"{file}: is not an IDX file of bytes with {n_axes} axes; get the official file")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=n_axes, offset=4))
    if len(content) - start != np.prod(shape, dtype=object):
        raise BadInput(f"{file}: has {len(content) - start} bytes of data, its header says {list(shape)}; get it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _missing(folder: Path) -> list[str]:
    return [name for name in CONTENT_SHA256 if not _file_of(folder, name).is_file()]


def _file_of(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"
