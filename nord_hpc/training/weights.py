"""Trained weights as safetensors files, written whole or not at all, with what they belong to."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from nord_hpc.errors import StoreError

METADATA_KEY = "nord_hpc"
"""The entry of the file's metadata that says, as JSON, what the weights belong to."""


def save(network: nn.Module, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers to `path`, durably: readers see the whole file or none."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    # One entry for all: the library writes several in a random order, and equal weights shall give equal files.
    write_whole(
        path, safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)})
    )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file durably, in place of one that may be there: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def load(network: nn.Module, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Fill a network with the weights of `path`, which must fit it exactly and carry this `metadata`.

    Raises:
        StoreError: the file is missing, damaged, or of another network or trial.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read as weights: {error}") from error
    for key, value in metadata.items():
        if found.get(key) != value:
            raise StoreError(f"{path}: holds the weights of {key} {found.get(key)}, not {value}")
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise StoreError(f"{path}: does not fit the network: {' '.join(str(error).split())}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
