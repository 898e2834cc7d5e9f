"""Networks over flat tensors."""

from __future__ import annotations

import example
import pytest
import torch
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.training.flat import FlatNetwork, ShardBuffers


def test_network_works_as_before() -> None:
    network, twin = example.Example(dropout=0.0), example.Example(dropout=0.0)
    flat = FlatNetwork(network)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for candidate in (network, twin):
        candidate(x).square().sum().backward()
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-5), name
    assert flat.n_parameters == sum(p.numel() for p in twin.parameters())
    for buffer, other in zip(network.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other)


def test_step_on_the_flat_parameter_is_a_step_of_the_network() -> None:
    network = example.Example(dropout=0.0)
    flat = FlatNetwork(network)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    network(torch.ones(4, 1, 8, 8)).sum().backward()
    torch.optim.SGD([flat.parameters_P], lr=0.5).step()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, before[name] - 0.5 * parameter.grad, atol=1e-6), name


def test_tensors_start_aligned_and_padding_stays_zero() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    flat = FlatNetwork(network)
    for parameter in network.parameters():
        assert parameter.data_ptr() % 64 == flat.parameters_P.data_ptr() % 64
    assert flat.parameters_P.numel() == 16 * 4
    optimizer = torch.optim.AdamW([flat.parameters_P], lr=0.1, weight_decay=0.1)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert flat.parameters_P.detach().count_nonzero() == 15 + 5 + 5 + 1


def test_memory_format_is_kept() -> None:
    network = example.Example().to(memory_format=torch.channels_last)
    values = network.second.weight.detach().clone()
    FlatNetwork(network)
    assert network.second.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.second.weight.grad.stride() == network.second.weight.stride()
    assert torch.equal(network.second.weight, values)


def test_digest_sees_parameters_frozen_ones_and_buffers() -> None:
    def digest(change: str | None = None) -> str:
        network = example.Example(spare=True)
        flat = FlatNetwork(network)
        if change is not None:
            with torch.no_grad():
                network.state_dict()[change].view(-1)[0] += 1
        return flat.sha256()

    changes = [None, "dense.bias", "conv.weight", "norm.running_mean", "norm.num_batches_tracked"]
    assert len({digest(change) for change in changes}) == len(changes)
    assert digest() == digest()


def test_unused_parameters_have_a_gradient_of_zero() -> None:
    network = example.Example(spare=True)
    FlatNetwork(network)
    network(torch.ones(4, 1, 8, 8)).sum().backward()
    assert network.dead.weight.grad.count_nonzero() == 0
    assert network.dense.weight.grad.count_nonzero() > 0
    assert network.conv.weight.grad is None


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one dtype, not torch\.float32, torch\.float64"):
        FlatNetwork(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))
    with pytest.raises(ValueError, match="one dtype, not none"):
        FlatNetwork(nn.Sequential(nn.ReLU()))


def test_each_shard_has_its_own_buffers() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    flat = FlatNetwork(network)
    shards = ShardBuffers(flat.buffers, slots=2)
    for slot, level in ((0, 10.0), (1, 20.0), (0, 10.0)):
        shards.enter(slot)
        network(torch.full((4, 1), level))
        shards.leave(slot)
    shards.show_first(SingleGang())
    norm = network[0]
    assert norm.num_batches_tracked == 2
    assert norm.running_mean.item() == pytest.approx(10 * (1 - 0.9**2))
    shards.enter(1)
    assert norm.num_batches_tracked == 1
    assert norm.running_mean.item() == pytest.approx(2.0)
