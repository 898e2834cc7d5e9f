"""Weights on disk."""

from __future__ import annotations

from pathlib import Path

import example
import pytest
import torch

from nord_hpc.errors import StoreError
from nord_hpc.training import weights
from nord_hpc.training.flat import FlatNetwork

METADATA = {"descriptor_hash": "abc", "trial": "3", "seed": "5"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    network = example.Example().to(memory_format=torch.channels_last)
    FlatNetwork(network)
    network.norm.running_mean += 2
    path = tmp_path / "weights" / "trial-3.safetensors"
    weights.save(network, path, metadata=METADATA)
    return path


def test_round_trip(path: Path) -> None:
    network, expected = example.Example(), example.Example()
    with torch.no_grad():
        network.dense.weight.zero_()
    weights.load(network, path, metadata=METADATA)
    assert torch.equal(network.dense.weight, expected.dense.weight)
    assert torch.equal(network.second.weight, expected.second.weight)
    assert network.norm.running_mean.tolist() == [2.0] * 8
    assert [file.name for file in path.parent.iterdir()] == ["trial-3.safetensors"]


def test_other_trial_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="holds the weights of seed 5, not 6"):
        weights.load(example.Example(), path, metadata={**METADATA, "seed": "6"})


def test_other_network_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match=r"does not fit the network: .*Missing key.*dead"):
        weights.load(example.Example(spare=True), path, metadata=METADATA)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_files_are_refused(path: Path, damage: str) -> None:
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 500 if damage == "cut" else 0])
    with pytest.raises(StoreError, match=r"trial-3\.safetensors: cannot be read as weights"):
        weights.load(example.Example(), path, metadata=METADATA)


def test_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(example.Example(spare=True), path, metadata=METADATA)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["trial-3.safetensors"]
