"""Gangs inside hosts, one device per rank, threads within the grant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nord_hpc.cluster import placement
from nord_hpc.cluster.gangs import RankPool
from nord_hpc.cluster.placement import Place
from nord_hpc.data_parallel.build_horovod import cores_granted
from nord_hpc.training.device import choose_device

PLACE = Place("node1", 0, device=None, visible=None, threads=1, cores=4, memory_nodes="0")


def pool(**hosts: int) -> RankPool:
    made, rank = RankPool(), 1
    for host, n in hosts.items():
        for _ in range(n):
            made.add(rank, host)
            rank += 1
    return made


def take(ranks: RankPool, size: int, number: int, *, at: float) -> tuple[int, ...] | None:
    return ranks.take(size, number, seconds=10.0, limit_seconds=100.0, at=at)


def test_gangs_stay_inside_hosts() -> None:
    ranks = pool(a=1, b=2, c=2)
    assert take(ranks, 2, 0, at=0.0) == (2, 3)
    assert take(ranks, 2, 1, at=0.0) == (4, 5)
    assert take(ranks, 2, 2, at=5.0) is None
    for rank in (4, 5):
        ranks.release(rank, 1, at=10.0)
    assert take(ranks, 2, 2, at=10.0) == (4, 5)


def test_the_host_with_the_fewest_idle_ranks_is_filled_first() -> None:
    ranks = pool(a=4, b=2, c=3)
    assert take(ranks, 2, 0, at=0.0) == (5, 6)
    assert take(ranks, 2, 1, at=0.0) == (7, 8)
    assert take(ranks, 4, 2, at=0.0) == (1, 2, 3, 4)


def test_a_gang_crosses_hosts_where_none_has_enough_idle_ranks() -> None:
    ranks = pool(a=2, b=2)
    assert take(ranks, 1, 0, at=0.0) == (1,)
    assert take(ranks, 1, 1, at=0.0) == (2,)
    assert take(ranks, 1, 2, at=0.0) == (3,)
    ranks.release(2, 1, at=4.0)
    assert take(ranks, 2, 3, at=4.0) == (2, 4)
    assert take(pool(a=1, b=3, c=2), 5, 0, at=0.0) == (1, 2, 3, 4, 5)


def test_one_visible_device_is_number_zero() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    names = placement.visible_devices(environ)
    assert names == ["3"]
    assert choose_device("auto", environ=environ, n_gpus=len(names)) == torch.device("cuda", 0)
    assert placement.physical_device(0, environ) == 3


def test_ranks_take_the_visible_devices_in_turn() -> None:
    chosen = [choose_device("auto", environ={"SLURM_LOCALID": str(local)}, n_gpus=2).index for local in range(4)]
    assert chosen == [0, 1, 0, 1]
    places = [
        replace(PLACE, rank=local + 1, gang=local // 2, local_rank=local, device=index)
        for local, index in enumerate(chosen)
    ]
    texts = [finding.text for finding in placement.judge(places)]
    assert texts == [
        f"ranks {ranks} on node1 share GPU {device}, of different gangs: fine if it is meant, and memory suffices"
        for device, ranks in enumerate(["1, 3", "2, 4"])
    ]


def test_no_visible_device_means_the_cpu() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": ""}
    assert placement.visible_devices(environ) == []
    assert choose_device("auto", environ=environ, n_gpus=0) == torch.device("cpu")
    assert placement.visible_devices({}) is None


def test_members_of_a_gang_may_not_share_a_device() -> None:
    shared = [replace(PLACE, rank=rank, gang=0, device=0) for rank in (1, 2)]
    (finding,) = placement.judge(shared)
    assert finding.is_error
    assert finding.text == (
        "ranks 1, 2 on node1 share GPU 0 and belong to one gang: NCCL refuses two ranks of one communicator on a "
        "device; start one rank per GPU"
    )
    (finding,) = placement.judge([replace(place, per_task=True, gang=place.rank) for place in shared])
    assert finding.is_error
    assert finding.text.endswith(
        "--gpus-per-task gives all of mpirun's ranks of a node the same GPU; ask for --gpus-per-node=N in its place"
    )
    assert placement.judge([replace(shared[0], gang=None), shared[1]]) == []  # the master computes nothing


def test_more_threads_than_cores_are_shown() -> None:
    places = [replace(PLACE, rank=rank, gang=0, threads=3) for rank in (1, 2)]
    (finding,) = placement.judge(places)
    assert not finding.is_error
    assert finding.text == "node1: the workers' 6 threads share 4 cores; start fewer ranks there"


def test_threads_come_from_slurm_then_affinity_then_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert cores_granted({"SLURM_CPUS_PER_TASK": "1"}) == (1, "SLURM_CPUS_PER_TASK")
    assert cores_granted({}) == (2, "affinity")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert cores_granted({}) == (8, "machine")
