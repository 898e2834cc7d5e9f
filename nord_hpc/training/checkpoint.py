"""A half-trained network on disk: saved at the end of an epoch, restored on all ranks alike; when is the trainer's.

A file holds parameters, the buffers of every shard, the optimizer's state and the learning curve. It needs no random
state, as that follows from seed, epoch and step; and no scheduler's state, as that follows from the curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from nord_hpc.errors import BadInput, StoreError
from nord_hpc.interfaces import DataParallel
from nord_hpc.training.flat import FlatNetwork, ShardBuffers
from nord_hpc.training.weights import METADATA_KEY, write_whole
from nord_hpc.trial import Json

_ABSENT, _PRESENT, _FAULTY = 0, 1, 2


def save(
    path: Path,
    *,
    identity: Mapping[str, Json],
    model: FlatNetwork,
    buffers: ShardBuffers,
    optimizer: torch.optim.Optimizer,
    curve: Sequence[Mapping[str, Json]],
    data_parallel: DataParallel,
) -> None:
    """Write the state of a training whole or not at all. All members call it; the first one writes.

    Args:
        identity: what training this is, by name; it must be equal at `restore`.
        curve: one entry for each epoch so far.

    Raises:
        BadInput: the optimizer keeps a state that is made of more than tensors, numbers and texts.
    """
    parts = buffers.gather(data_parallel)
    if data_parallel.rank:
        return
    tensors = {"parameters": _stored(model.parameters_P)}
    tensors |= {f"frozen.{index}": _stored(tensor) for index, tensor in enumerate(model.frozen)}
    tensors |= {f"buffers.{index}": _stored(tensor) for index, tensor in enumerate(parts)}
    state = optimizer.state_dict()
    values = {"identity": dict(identity), "optimizer": _packed(state, "optimizer", tensors), "curve": list(curve)}
    write_whole(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(values, sort_keys=True)}))


def restore(
    path: Path,
    *,
    identity: Mapping[str, Json],
    model: FlatNetwork,
    buffers: ShardBuffers,
    optimizer: torch.optim.Optimizer,
    data_parallel: DataParallel,
) -> list[dict[str, Json]]:
    """Put a saved state into network and optimizer, and return its curve; empty where there is no file.

    All members call it. The first one reads, and all get its bytes, so that none goes on from another state.

    Raises:
        StoreError: the file is damaged, or of another training; on all members alike.
    """
    content = _shared_content(path, device=model.parameters_P.device, data_parallel=data_parallel)
    if content is None:
        return []
    values, tensors = _read(path, content)
    for name, value in identity.items():
        if values["identity"].get(name) != value:
            raise StoreError(f"{path}: is of a training with {name} {values['identity'].get(name)}, not {value}")
    model.parameters_P.detach().copy_(tensors["parameters"])
    for index, tensor in enumerate(model.frozen):
        tensor.detach().copy_(tensors[f"frozen.{index}"])
    buffers.scatter([tensors[f"buffers.{index}"] for index in range(len(model.buffers))], rank=data_parallel.rank)
    optimizer.load_state_dict(_unpacked(values["optimizer"], tensors))
    curve: list[dict[str, Json]] = values["curve"]
    return curve


def _shared_content(path: Path, *, device: torch.device, data_parallel: DataParallel) -> bytes | None:
    """The file's bytes as the first member reads them, or None where there is none."""
    kind, content = _ABSENT, b""
    if data_parallel.rank == 0:
        try:
            kind, content = _PRESENT, path.read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            kind, content = _FAULTY, f"{path}: cannot be read as a checkpoint: {error.strerror}".encode()
    header = torch.tensor([kind, len(content)], device=device)
    data_parallel.broadcast_(header, root=0)
    kind, n_bytes = header.tolist()
    if kind == _ABSENT:
        return None
    if n_bytes:
        values_K = torch.frombuffer(bytearray(content or bytes(n_bytes)), dtype=torch.uint8).to(device)
        data_parallel.broadcast_(values_K, root=0)
        content = values_K.cpu().numpy().tobytes()
    if kind == _FAULTY:
        raise StoreError(content.decode())
    return content


def _read(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        values: dict[str, Any] = json.loads(header["__metadata__"][METADATA_KEY])
        if not {"identity", "optimizer", "curve"} <= values.keys():
            raise ValueError("it holds something else")
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read as a checkpoint: {error}; remove it to start anew") from error
    return values, tensors


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _packed(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Json:
    """A state as JSON; its tensors are added to `tensors` and stand in it by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        tensors[name] = _stored(value)
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        # As pairs, since the numbers of parameters are no JSON keys.
        return {"pairs": [[key, _packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    raise BadInput(f"the optimizer's state {name} is a {type(value).__name__}, which no checkpoint can hold")


def _unpacked(value: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["tuple"])
    return {key: _unpacked(item, tensors) for key, item in value["pairs"]}
