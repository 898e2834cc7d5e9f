"""Images in folders named after their classes: train/CLASS/*.png, and likewise validation/ and test/; over Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.datasets.dataset import RawData
from nord_hpc.errors import BadInput

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
Array = np.ndarray[Any, np.dtype[Any]]


class ImageFolder:
    """x is uint8 [N, 3, H, W], or [N, 1, H, W] in grey; the class of an image is the name of its folder.

    `path` holds train/, and may hold validation/ and test/. Images come in the order of class and file names.
    """

    class Options(BaseModel):
        """What the images become.

        Attributes:
            color: `rgb` or `grey`, whatever the files hold.
            size: [height, width] to scale all images to; None where all have one size.
            licence: of the images, for the report.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        color: Literal["rgb", "grey"] = "rgb"
        size: tuple[int, int] | None = Field(None)
        licence: str = "as given by the owner of the images"

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        if path is None:
            raise BadInput("dataset.path: is missing; set it to a folder with train/CLASS/*.png")
        if not (path / "train").is_dir():
            raise BadInput(f"dataset.path: {path} has no folder train; put the images into train/CLASS/")
        if options.size is not None and min(options.size) < 1:
            raise BadInput(f"dataset.size: {list(options.size)} is wrong; set [height, width], each at least 1")
        self._options = options
        self._path = path
        self._parts, self._n_other = _image_files(path)

    def files(self) -> list[Path]:
        return [file for part in self._parts.values() for _, file in part]

    def load(self) -> RawData:
        arrays: dict[str, Any] = {}
        shape: tuple[int, ...] | None = None
        for part, labelled in self._parts.items():
            images = np.empty((0,), dtype=np.uint8)
            for row, (_, file) in enumerate(labelled):
                image = self._read(file)
                if shape is None:
                    shape = image.shape
                if image.shape != shape:
                    raise BadInput(
                        f"{file}: is {_height_width(image.shape)} (height, width) and the first image is "
                        f"{_height_width(shape)}; set dataset.size: [{shape[1]}, {shape[2]}] to scale all"
                    )
                if row == 0:
                    images = np.empty((len(labelled), *shape), dtype=np.uint8)
                images[row] = image
            arrays[f"x_{part}"] = images
            arrays[f"y_{part}"] = np.array([label for label, _ in labelled])
        notes = (f"{self._n_other} files that are no .png, .jpg or .jpeg were left out",) if self._n_other else ()
        return RawData(**arrays, source=str(self._path), licence=self._options.licence, notes=notes)

    def _read(self, file: Path) -> Array:
        """One image as uint8 [C, H, W]."""
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as error:
            raise BadInput("dataset.name: image_folder needs Pillow; pip install pillow") from error
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise BadInput(f"{file}: has more than 8 bits a channel ({image.mode}); give 8-bit images")
                picture = image.convert("L" if self._options.color == "grey" else "RGB")
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            raise BadInput(f"{file}: is not a whole image: {' '.join(str(error).split())}; replace it") from error
        if self._options.size is not None:
            height, width = self._options.size
            picture = picture.resize((width, height), resample=Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _image_files(path: Path) -> tuple[dict[str, list[tuple[str, Path]]], int]:
    """Part to (class, file) in order, and how many other files there are.

    Raises:
        BadInput: a class has no image, or a part no class.
    """
    parts: dict[str, list[tuple[str, Path]]] = {}
    n_other = 0
    for part in ("train", "validation", "test"):
        if not (path / part).is_dir():
            continue
        folders = sorted(f for f in (path / part).iterdir() if f.is_dir() and not f.name.startswith("."))
        if not folders:
            raise BadInput(f"dataset.path: {path / part} has no folder of a class; put the images into {part}/CLASS/")
        parts[part] = []
        for folder in folders:
            found = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
            images = [f for f in found if f.suffix.lower() in SUFFIXES]
            n_other += len(found) - len(images)
            if not images:
                raise BadInput(f"dataset.path: {folder} has no .png, .jpg or .jpeg; put images there, or remove it")
            parts[part] += [(folder.name, file) for file in images]
    return parts, n_other


def _height_width(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]}"
