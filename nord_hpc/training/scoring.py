"""Scores a network on one part of the data: fixed batches, dealt to the ranks of a gang, added in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import nn

from nord_hpc.errors import TrialFailed
from nord_hpc.interfaces import Control, DataParallel
from nord_hpc.training.carried import CarriedStates
from nord_hpc.training.data import Part, StreamedPart
from nord_hpc.training.metrics import Metric, WholeMetric


def score(
    network: nn.Module,
    part: Part | StreamedPart,
    *,
    metrics: Sequence[Metric | WholeMetric],
    batch_size: int,
    autocast: AbstractContextManager[object],
    data_parallel: DataParallel,
    control: Control,
    when: str,
) -> dict[str, float]:
    """The metrics of a network on all samples of a part, each counted once; equal bits on any number of ranks.

    Batch i is scored by rank i modulo the gang's size, whatever that is.

    Args:
        batch_size: samples of a batch; the last one may have fewer.
        when: for messages, such as "after epoch 3".

    Raises:
        TrialFailed: the network's outputs are not all finite.
    """
    summed = [cast("Metric", metric) for metric in metrics if hasattr(metric, "update")]
    whole = [metric for metric in metrics if not hasattr(metric, "update")]
    kept: list[torch.Tensor] | None = [] if whole else None
    sums_TK = gather_sums(
        network,
        part,
        metrics=summed,
        batch_size=batch_size,
        autocast=autocast,
        data_parallel=data_parallel,
        control=control,
        kept=kept,
    )
    sums_K = [0.0] * len(sums_TK[0])
    for batch_sums_K in sums_TK:
        sums_K = [total + value for total, value in zip(sums_K, batch_sums_K, strict=True)]
    n_bad = int(sums_K[-1])
    if n_bad:
        raise TrialFailed(f"the outputs for {n_bad} of {len(part)} samples are not finite {when}", kind="not_finite")
    values, start = {}, 0
    for metric in summed:
        values[metric.name] = metric.compute(sums_K[start : start + metric.n_sums])
        start += metric.n_sums
    if kept is not None:
        outputs_NC = _gather_outputs(kept, part, batch_size=batch_size, data_parallel=data_parallel)
        targets = part.targets.cpu()
        for of_all in whole:
            value = of_all.of_all(outputs_NC, targets)
            values.update(value if isinstance(value, Mapping) else {of_all.name: value})
    return values


def gather_sums(
    network: nn.Module,
    part: Part | StreamedPart,
    *,
    metrics: Sequence[Metric],
    batch_size: int,
    autocast: AbstractContextManager[object],
    data_parallel: DataParallel,
    control: Control,
    kept: list[torch.Tensor] | None = None,
) -> list[list[float]]:
    """Of every batch, in order: the metrics' sums one after the other, then the number of samples not finite.

    Args:
        kept: gets the outputs of this member's batches.
    """
    n_batches = -(-len(part) // batch_size)
    n_rounds = -(-n_batches // data_parallel.size)
    width = sum(metric.n_sums for metric in metrics) + 1
    mine: list[torch.Tensor] = []
    states = CarriedStates(network)
    network.eval()
    with torch.no_grad():
        for index in range(data_parallel.rank, n_batches, data_parallel.size):
            states.reset()
            sums: torch.Tensor | None = None
            for x_BC, y_B in part.pieces(slice(index * batch_size, (index + 1) * batch_size)):
                control.check()
                states.enter(0)
                with autocast:
                    outputs = network(x_BC)
                states.leave(0)
                outputs = outputs.float()
                piece_sums = batch_sums(outputs, y_B, metrics)
                sums = piece_sums if sums is None else sums + piece_sums
                if kept is not None:
                    kept.append(outputs)
            assert sums is not None
            mine.append(sums)
        if not mine:  # more ranks than batches
            x_BC, _ = part[0:1]
            mine.append(torch.zeros(width, dtype=torch.float64, device=x_BC.device))
        mine += [torch.zeros_like(mine[0])] * (n_rounds - len(mine))
        gathered_RTK = data_parallel.all_gather(torch.stack(mine).view(-1)).view(data_parallel.size, n_rounds, width)
        # Rank r has batches r, r + size, ...: read by columns, the batches stand in their order.
        rows: list[list[float]] = gathered_RTK.transpose(0, 1).reshape(-1, width)[:n_batches].tolist()
    return rows


def batch_sums(outputs_BC: torch.Tensor, targets_B: torch.Tensor, metrics: Sequence[Metric]) -> torch.Tensor:
    """The metrics' sums over one batch, and the number of its samples whose outputs are not finite, float64 [K]."""
    finite_B = outputs_BC.isfinite().flatten(1).all(1)
    vectors = [metric.update(outputs_BC, targets_B) for metric in metrics]
    return torch.cat([*vectors, (~finite_B).sum(dtype=torch.float64).unsqueeze(0)])


def _gather_outputs(
    mine: list[torch.Tensor], part: Part | StreamedPart, *, batch_size: int, data_parallel: DataParallel
) -> torch.Tensor:
    """The outputs for all samples of a part in their order, float32 [N, C] on the CPU, the same on all members."""
    if data_parallel.size == 1:
        return torch.cat(mine).cpu()
    n_batches = -(-len(part) // batch_size)
    n_rounds = -(-n_batches // data_parallel.size)
    # A member without a batch does not know the width; rank 0 always has one.
    width_1 = torch.tensor([float(mine[0].shape[1]) if mine else 0.0], device=part.device)
    width = int(data_parallel.all_gather(width_1)[0, 0])
    padded_TBC = torch.zeros((n_rounds, batch_size, width), device=part.device)
    for index, outputs_BC in enumerate(mine):
        padded_TBC[index, : len(outputs_BC)] = outputs_BC
    gathered = data_parallel.all_gather(padded_TBC.view(-1)).view(data_parallel.size, n_rounds, batch_size, width)
    return gathered.transpose(0, 1).reshape(-1, width)[: len(part)].cpu()
