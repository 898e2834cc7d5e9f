"""Data on clusters: arrays on the node's own disk, and no downloads from compute nodes."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets.dataset import open_dataset
from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings


@pytest.fixture
def settings(tmp_path: Path) -> DatasetSettings:
    """Arrays of 3 MB, mapped from their file."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data/x_train.npy", rng.normal(size=(500, 1, 40, 40)).astype(np.float32))
    np.save(tmp_path / "data/y_train.npy", rng.integers(0, 2, 500))
    return DatasetSettings.model_validate({"name": "arrays", "path": "data", "storage": "mmap"})


def test_prepared_arrays_are_kept_on_the_nodes_own_disk(
    settings: DatasetSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    plain = open_dataset(settings, folder=tmp_path, cache=tmp_path / "cache")
    staged_settings = settings.model_copy(update={"stage": "$NODE_DISK"})
    staged = open_dataset(staged_settings, folder=tmp_path, cache=tmp_path / "cache")
    assert str(tmp_path / "node/nord_hpc/prepared") in staged.info.storage_reason
    assert len(list((tmp_path / "node/nord_hpc/prepared").glob("*/complete.json"))) == 1
    assert staged.info.fingerprint == plain.info.fingerprint
    again = open_dataset(staged_settings, folder=tmp_path, cache=tmp_path / "cache")
    np.testing.assert_array_equal(np.asarray(again.train.y), np.asarray(plain.train.y))


def test_a_variable_that_the_node_does_not_set_is_named(settings: DatasetSettings, tmp_path: Path) -> None:
    wrong = settings.model_copy(update={"stage": "$NO_SUCH_DISK/data"})
    with pytest.raises(BadInput) as error:
        open_dataset(wrong, folder=tmp_path, cache=tmp_path / "cache")
    assert str(error.value) == (
        f"dataset.stage: $NO_SUCH_DISK/data names a variable that is not set on {socket.gethostname()}; set another"
    )


def test_compute_nodes_download_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mirror/data"
    source.mkdir(parents=True)
    (source / "a").write_text("a")
    files = {"a": RemoteFile(urls=("https://data.invalid/a",), digest=None), "b": RemoteFile(urls=(), digest=None)}
    folder = tmp_path / "data"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(BadInput) as error:
        fetch(files, folder)
    assert str(error.value) == (
        f"a, b: not in {folder}, and nothing is downloaded within a Slurm job; run nord-hpc fetch JOB on the login "
        "node first, or set NORD_HPC_DOWNLOAD=1 where the nodes reach the network"
    )
    assert not folder.exists()
    del files["b"]
    assert fetch(files, folder, mirror=f"file://{tmp_path}/mirror")["a"].read_text() == "a"
    assert fetch(files, folder)["a"] == folder / "a"  # what is there needs no network
