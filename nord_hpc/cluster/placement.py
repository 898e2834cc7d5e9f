"""Where the ranks of a world are, and what is wrong with that. Pure: knows neither MPI nor torch."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ASK_PER_NODE = "ask for --gpus-per-node=N in its place"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank is.

    Attributes:
        gang: that it would belong to, from 0; None for the master.
        device: number of the GPU on the host, or None for the CPU.
        visible: the GPUs that this rank may use, as CUDA_VISIBLE_DEVICES says; None where it does not say.
        threads: that it would compute with.
        cores: that it may run on.
        memory_nodes: NUMA nodes that it may allocate on, such as "0-1".
        per_task: Slurm was asked for GPUs per task.
    """

    host: str
    local_rank: int
    device: int | None
    visible: str | None
    threads: int
    cores: int
    memory_nodes: str
    per_task: bool = False
    rank: int = 0
    gang: int | None = None

    def at(self, *, rank: int, gang: int | None) -> Place:
        return replace(self, rank=rank, gang=gang)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the first and the last member of a gang reach each other."""

    gang: int
    latency_microseconds: float
    gigabytes_per_second: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or may be meant; and what to set."""

    is_error: bool
    text: str


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str] | None:
    """The GPUs that this process is allowed, in order; None where nobody restricts it."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [name for name in text.split(",") if name not in ("", "-1", "NoDevFiles")]


def physical_device(index: int, environ: Mapping[str, str] = os.environ) -> int:
    """The number on the host of the GPU that is `index` for this process, as far as it has one."""
    names = visible_devices(environ)
    if names is None or index >= len(names) or not names[index].isdigit():
        return index
    return int(names[index])


def memory_nodes() -> str:
    """The NUMA nodes that this process may allocate on, as the kernel lists them."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            found = [line.split()[-1] for line in file if line.startswith("Mems_allowed_list:")]
    except OSError:
        found = []
    return found[0] if found else "?"


def judge(places: Sequence[Place]) -> list[Finding]:
    """What is wrong with these places, errors first."""
    return sorted([*_shared_devices(places), *_threads(places), *_split_gangs(places)], key=lambda f: not f.is_error)


def _shared_devices(places: Sequence[Place]) -> list[Finding]:
    by_device: dict[tuple[str, int], list[Place]] = defaultdict(list)
    for place in places:
        if place.device is not None and place.gang is not None:  # the master computes nothing
            by_device[(place.host, place.device)].append(place)
    findings = []
    for (host, device), users in sorted(by_device.items()):
        if len(users) < 2:
            continue
        ranks = ", ".join(str(place.rank) for place in users)
        text = f"ranks {ranks} on {host} share GPU {device}"
        gangs = [place.gang for place in users]
        if any(place.per_task for place in users):
            why = "--gpus-per-task gives all of mpirun's ranks of a node the same GPU"
            findings.append(Finding(True, f"{text}: {why}; {ASK_PER_NODE}"))
        elif len(set(gangs)) < len(gangs):
            why = "NCCL refuses two ranks of one communicator on a device"
            findings.append(Finding(True, f"{text} and belong to one gang: {why}; start one rank per GPU"))
        else:
            findings.append(Finding(False, f"{text}, of different gangs: fine if it is meant, and memory suffices"))
    return findings


def _threads(places: Sequence[Place]) -> list[Finding]:
    findings = []
    for host in sorted({place.host for place in places}):
        own = [place for place in places if place.host == host and place.gang is not None]
        wanted, cores = sum(place.threads for place in own), max((place.cores for place in own), default=0)
        if wanted > cores:
            findings.append(
                Finding(False, f"{host}: the workers' {wanted} threads share {cores} cores; start fewer ranks there")
            )
    return findings


def _split_gangs(places: Sequence[Place]) -> list[Finding]:
    hosts: dict[int, set[str]] = defaultdict(set)
    sizes: dict[int, int] = defaultdict(int)
    for place in places:
        if place.gang is not None:
            hosts[place.gang].add(place.host)
            sizes[place.gang] += 1
    largest = max((sum(p.host == host for p in places) for host in {p.host for p in places}), default=0)
    return [
        Finding(False, f"gang {gang} is across {len(names)} hosts here; a search keeps gangs inside hosts if it can")
        for gang, names in sorted(hosts.items())
        if len(names) > 1 and sizes[gang] <= largest
    ]
