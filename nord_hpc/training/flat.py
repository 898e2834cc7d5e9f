"""A network whose parameters, gradients and buffers lie in flat tensors: one tensor to reduce, to step, to hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from nord_hpc.interfaces import DataParallel

ALIGNMENT_BYTES = 64
"""Each tensor starts at a multiple of this, as torch's own allocations do, so that kernels take the same path."""


class FlatNetwork:
    """Makes the tensors of a network views of flat ones, in place; the network works as before.

    Modules must write their buffers in place, as torch's own do. Parameters without gradient stay where they are. A
    parameter that no output depends on has a gradient of zero.

    Attributes:
        parameters_P: all trainable parameters, with padding that stays zero; its `grad` is the flat gradient.
        gradient_P: the gradient of `parameters_P`; the backward pass adds to it.
        frozen: parameters without gradient.
        buffers: flat buffers, one for each dtype that occurs.
        n_parameters: trainable parameters, without padding.
    """

    def __init__(self, network: nn.Module) -> None:
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        dtypes = {parameter.dtype for parameter in trainable}
        if len(dtypes) != 1:
            found = ", ".join(sorted(map(str, dtypes))) or "none"
            raise ValueError(f"trainable parameters must be of one dtype, not {found}")
        self.frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
        named = [*network.named_parameters(), *network.named_buffers()]
        self._layout = "\n".join(f"{name} {tuple(t.shape)} {t.dtype} {t.requires_grad}" for name, t in named)
        self.n_parameters = sum(parameter.numel() for parameter in trainable)
        values_P = _flatten(trainable)
        self.parameters_P = nn.Parameter(values_P)
        self.gradient_P = torch.zeros_like(values_P)
        self.parameters_P.grad = self.gradient_P
        for parameter, gradient in zip(trainable, _views(self.gradient_P, trainable), strict=True):
            parameter.grad = gradient
        self.buffers = [_flatten(group) for group in _by_dtype(network.buffers())]

    def share(self, data_parallel: DataParallel) -> None:
        """Give all members of a gang the first one's parameters and buffers."""
        for tensor in (self.parameters_P.detach(), *self.frozen, *self.buffers):
            data_parallel.broadcast_(tensor.detach().view(-1), root=0)

    def sha256(self) -> str:
        """Digest of all parameters and buffers."""
        digest = hashlib.sha256()
        for tensor in (self.parameters_P, *self.frozen, *self.buffers):
            flat = tensor.detach().reshape(-1).view(torch.uint8).cpu()
            digest.update(flat.numpy().data)
        return digest.hexdigest()

    def layout_sha256(self) -> str:
        """Digest of the names, shapes and types of parameters and buffers, whatever their values."""
        return hashlib.sha256(self._layout.encode()).hexdigest()


class ShardBuffers:
    """The buffers (batch-norm statistics) of each of the shards that one member trains in turn.

    Args:
        flats: the flat buffers of the network; those of the shard in training.
        slots: shards of this member.
    """

    def __init__(self, flats: list[torch.Tensor], *, slots: int) -> None:
        self._slots = slots
        self._saved = [(flat, flat.repeat(slots, 1)) for flat in flats]

    def enter(self, slot: int) -> None:
        """Put the buffers of shard `slot` into the network."""
        if self._slots > 1:
            for flat_K, saved_SK in self._saved:
                flat_K.copy_(saved_SK[slot])

    def leave(self, slot: int) -> None:
        """Take the buffers of shard `slot` out of the network."""
        if self._slots > 1:
            for flat_K, saved_SK in self._saved:
                saved_SK[slot].copy_(flat_K)

    def show_first(self, data_parallel: DataParallel) -> None:
        """Put the buffers of the gang's first shard into the networks of all members: they are the trial's."""
        for flat_K, saved_SK in self._saved:
            if self._slots > 1:
                flat_K.copy_(saved_SK[0])
            else:
                saved_SK[0].copy_(flat_K)
            data_parallel.broadcast_(flat_K, root=0)

    def go_on(self) -> None:
        """Put back what `show_first` has replaced."""
        if self._slots == 1:
            for flat_K, saved_SK in self._saved:
                flat_K.copy_(saved_SK[0])

    def gather(self, data_parallel: DataParallel) -> list[torch.Tensor]:
        """The buffers of all shards of the gang, [shards, K] for each flat tensor, in the order of the shards."""
        gathered = []
        for flat_K, saved_SK in self._saved:
            mine_SK = saved_SK if self._slots > 1 else flat_K
            gathered.append(data_parallel.all_gather(mine_SK.view(-1)).view(-1, flat_K.numel()))
        return gathered

    def scatter(self, parts: Sequence[torch.Tensor], *, rank: int) -> None:
        """Put back what `gather` gave, on the member `rank` of a gang that divides the shards likewise or otherwise."""
        first = rank * self._slots
        for (flat_K, saved_SK), part_PK in zip(self._saved, parts, strict=True):
            saved_SK.copy_(part_PK[first : first + self._slots])
            flat_K.copy_(saved_SK[0])


def _by_dtype(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A flat tensor with the values of `tensors`, whose data become views of it."""
    first = tensors[0]
    flat_P = torch.zeros(sum(_padded(tensor) for tensor in tensors), dtype=first.dtype, device=first.device)
    for tensor, view in zip(tensors, _views(flat_P, tensors), strict=True):
        view.copy_(tensor.detach())
        tensor.data = view
    return flat_P


def _views(flat_P: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a flat tensor with the shapes and memory formats of `tensors`."""
    views, offset = [], 0
    for tensor in tensors:
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        dense = tensor.is_contiguous() or channels_last
        strides = tensor.stride() if dense else torch.empty(tensor.shape, device="meta").stride()
        views.append(flat_P.as_strided(tensor.shape, strides, offset))
        offset += _padded(tensor)
    return views


def _padded(tensor: torch.Tensor) -> int:
    per_block = max(1, ALIGNMENT_BYTES // tensor.element_size())
    return -(-tensor.numel() // per_block) * per_block
