"""Image folders: pixel values, order, colours and sizes, and what is said of folders and files that are wrong."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nord_hpc.datasets import Dataset, make_source
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def draw(folder: Path, *, n: int = 6, size: tuple[int, int] = (8, 5), suffix: str = "png") -> None:
    """One folder of images of one colour for each of COLORS; `size` is (width, height)."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", size, color).save(folder / name / f"{k}.{suffix}")


def test_pixels_and_labels(tmp_path: Path, open_: Open, cache: Path) -> None:
    draw(tmp_path / "d" / "train")
    draw(tmp_path / "d" / "test", n=2, suffix="jpg")
    (tmp_path / "d" / "train" / "red" / "notes.txt").write_text("not an image")
    raw = make_source(DatasetSettings(name="image_folder", path="d"), folder=tmp_path, cache=cache).load()
    assert raw.x_train.shape == (18, 3, 5, 8) and raw.x_train.dtype == np.uint8
    assert raw.y_train.tolist() == ["blue"] * 6 + ["green"] * 6 + ["red"] * 6
    assert raw.x_train[0, :, 2, 3].tolist() == [0, 0, 255] and raw.x_train[17, :, 0, 0].tolist() == [255, 0, 0]
    assert raw.x_test is not None and raw.x_test[5, 0].min() > 250  # JPEG is lossy
    d = open_(name="image_folder", path="d")
    assert d.info.class_labels == {"blue": 0, "green": 1, "red": 2} and d.info.n_test == 6
    assert d.info.notes == ("1 files that are no .png, .jpg or .jpeg were left out",)
    assert np.bincount(d.validation.y).tolist() == [2, 1, 1]


def test_grey_and_scaled(tmp_path: Path, open_: Open, cache: Path) -> None:
    draw(tmp_path / "d" / "train")
    Image.new("L", (30, 30), 77).save(tmp_path / "d" / "train" / "red" / "0.png")
    settings = DatasetSettings(name="image_folder", path="d", color="grey", size=[4, 6])
    raw = make_source(settings, folder=tmp_path, cache=cache).load()
    assert raw.x_train.shape == (18, 1, 4, 6)
    assert raw.x_train[12].tolist() == [[[77] * 6] * 4] and raw.x_train[0, 0, 0, 0] == 29  # 0.114 of 255
    assert open_(name="image_folder", path="d", color="grey", size=[4, 6]).info.input_shape == (1, 4, 6)


def test_other_sizes_are_named(tmp_path: Path, open_: Open) -> None:
    draw(tmp_path / "d" / "train")
    Image.new("RGB", (9, 5)).save(tmp_path / "d" / "train" / "green" / "3.png")
    with pytest.raises(
        BadInput, match=r"green/3.png: is 5 x 9 .* the first image is 5 x 8; set dataset.size: \[5, 8\]"
    ):
        open_(name="image_folder", path="d")


def test_wrong_files_are_named(tmp_path: Path, open_: Open) -> None:
    draw(tmp_path / "d" / "train")
    bad = tmp_path / "d" / "train" / "green" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    with pytest.raises(BadInput, match=r"green/3.png: is not a whole image: .*; replace it"):
        open_(name="image_folder", path="d")
    Image.fromarray(np.zeros((5, 8), dtype=np.uint16)).save(bad)
    with pytest.raises(BadInput, match=r"green/3.png: has more than 8 bits a channel \(I;16\); give 8-bit images"):
        open_(name="image_folder", path="d")


def test_wrong_folders_are_named(tmp_path: Path, open_: Open) -> None:
    with pytest.raises(BadInput, match=r"dataset.path: is missing; set it to a folder with train/CLASS/"):
        open_(name="image_folder")
    (tmp_path / "d" / "train").mkdir(parents=True)
    with pytest.raises(BadInput, match="train has no folder of a class; put the images into train/CLASS/"):
        open_(name="image_folder", path="d")
    (tmp_path / "d" / "train" / "red").mkdir()
    with pytest.raises(BadInput, match=r"train/red has no .png, .jpg or .jpeg; put images there, or remove it"):
        open_(name="image_folder", path="d")
    with pytest.raises(BadInput, match="train has no folder train; put the images into train/CLASS/"):
        open_(name="image_folder", path="d/train")


def test_a_test_class_without_training_images_is_named(tmp_path: Path, open_: Open) -> None:
    draw(tmp_path / "d" / "train")
    draw(tmp_path / "d" / "test", n=1)
    (tmp_path / "d" / "test" / "red").rename(tmp_path / "d" / "test" / "yellow")
    with pytest.raises(BadInput, match="y_test has the label 'yellow', which the training part does not have"):
        open_(name="image_folder", path="d")


def test_without_pillow_the_error_says_what_to_install(
    tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "d" / "train")
    imported = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(BadInput, match="image_folder needs Pillow; pip install pillow"):
        open_(name="image_folder", path="d")
