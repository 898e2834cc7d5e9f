"""Where and how a rank computes: its device, precision, threads and reduction."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import torch

from nord_hpc.errors import BadInput

LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""The rank within the node, as Open MPI, MPICH and Slurm tell it."""

EXACT_SHARDS = 8
"""Shards up to which `reduction: auto` is exact on CPUs."""


def choose_device(
    requested: Literal["auto", "cpu", "cuda"], *, environ: Mapping[str, str], n_gpus: int | None = None
) -> torch.device:
    """The device of this rank: the visible GPUs in turn by the node-wide rank, else the CPU.

    The rank within a gang would not do: the leaders of two gangs of a node would share its first GPU.

    Raises:
        BadInput: a GPU is asked for and none is visible.
    """
    n = torch.cuda.device_count() if n_gpus is None else n_gpus
    if requested == "cuda" and n == 0:
        raise BadInput("resources.device: cuda is set and no GPU is visible; set it to auto or cpu")
    if requested == "cpu" or n == 0:
        return torch.device("cpu")
    return torch.device("cuda", local_rank(environ) % n)


def local_rank(environ: Mapping[str, str]) -> int:
    """The rank within this node; 0 outside launchers. The master, on the first node, holds a number and no GPU."""
    for variable in LOCAL_RANK_VARIABLES:
        if environ.get(variable, "").isdigit():
            return int(environ[variable])
    return 0


def resolve_precision(requested: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on GPUs that have it, and fp32 elsewhere."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def resolve_reduction(
    requested: Literal["auto", "exact", "fast"], *, device: torch.device, shards: int, sync_batch_norm: bool
) -> Literal["exact", "fast"]:
    """`auto` is exact on CPUs up to 8 shards, unless batch statistics over the whole batch need the fast one."""
    if requested != "auto":
        return requested
    return "exact" if device.type == "cpu" and shards <= EXACT_SHARDS and not sync_batch_norm else "fast"


def prepare_process(device: torch.device, *, threads: int) -> None:
    """Settings of the whole process under which equal seeds give equal bits. May be repeated."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would only slow down: no kernel here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
