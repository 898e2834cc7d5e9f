"""What the tests of data sets share: a cache of their own, and opening by settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.datasets import Dataset, open_dataset
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_(tmp_path: Path, cache: Path) -> Open:
    """Opens a data set given by its settings, with paths relative to the test's folder."""

    def opened(device: str = "cpu", **settings: Any) -> Dataset:
        return open_dataset(DatasetSettings(**settings), folder=tmp_path, cache=cache, device=device)

    return opened


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder.resolve()} with real data")
    return folder
