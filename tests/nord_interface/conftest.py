"""What the tests of the interface for scripts share: real data in a folder, and small data in memory."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from nord_hpc.scripting.configs import Configs, known_records

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for NORD_HPC_DATA with 2,000 images of CIFAR-10 and the accelerometer data."""
    cifar = SHARED / "cifar10" / "data_batch_1_first2000.bin.xz"
    activity = SHARED / "activity_chest_accelerometer" / "activity.npz"
    if not cifar.exists() or not activity.exists():
        pytest.skip(f"there is no {SHARED} with real data")
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    (folder / "cifar10" / "data_batch_1.bin").write_bytes(lzma.decompress(cifar.read_bytes()))
    (folder / "activity_recognition.npz").symlink_to(activity)
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setenv("NORD_HPC_CACHE", str(cache_folder))
    monkeypatch.delenv("NORD_HPC_DATA", raising=False)


@pytest.fixture
def conf() -> Configs:
    """A table of its own."""
    return Configs(known_records())
