"""`nord-hpc doctor --mpi`, started by mpirun or srun: a table of ranks, hosts, gangs and devices, and their speed."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from nord_hpc.cli import wiring
from nord_hpc.cluster import launch, placement
from nord_hpc.cluster.placement import Finding, Place, Speed
from nord_hpc.data_parallel.build_horovod import cores_granted
from nord_hpc.errors import BadInput


def examine_world(*, gang: int, seconds: float, as_json: bool) -> int:
    """Be one rank of the examination; rank 0 prints it. Exit code 2 if something must be changed.

    Args:
        gang: ranks of a gang.
        seconds: for measuring each gang.

    Raises:
        BadInput: there is no launcher, or launcher and MPI do not understand each other.
    """
    if not launch.under_launcher() and "SLURM_PROCID" not in os.environ:
        raise BadInput("doctor --mpi examines the ranks of a launcher: mpirun -n RANKS nord-hpc doctor --mpi")
    from nord_hpc.cluster import survey

    launch.check_world(survey.world_size())
    survey.check_gang(gang)
    found = survey.survey(own_place(), gang=gang, seconds=seconds)
    if found is None:
        return wiring.DONE
    places, speeds = found
    findings = placement.judge(places)
    if as_json:
        found_all = {
            "ranks": [asdict(place) for place in places],
            "gangs": [asdict(speed) for speed in speeds],
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(found_all, indent=2))
    else:
        _print(Console(width=120), places, speeds, findings)
    return wiring.BAD_INPUT if any(finding.is_error for finding in findings) else wiring.DONE


def own_place() -> Place:
    """Where this process is, and the device that it would take."""
    from nord_hpc.training.device import choose_device, local_rank

    names = placement.visible_devices()
    device = choose_device("auto", environ=os.environ, n_gpus=None if names is None else len(names))
    cores = len(os.sched_getaffinity(0))
    return Place(
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        local_rank=local_rank(os.environ),
        device=None if device.type == "cpu" else placement.physical_device(device.index),
        visible=None if names is None else ",".join(names),
        threads=int(os.environ.get("OMP_NUM_THREADS") or cores_granted()[0]),
        cores=cores,
        memory_nodes=placement.memory_nodes(),
        per_task="SLURM_GPUS_PER_TASK" in os.environ,
    )


def _print(console: Console, places: list[Place], speeds: list[Speed], findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("rank", "host", "gang", "device", "visible GPUs", "threads", "cores", "NUMA nodes"):
        table.add_column(title)
    for place in places:
        table.add_row(
            str(place.rank),
            place.host,
            "master" if place.gang is None else str(place.gang),
            "CPU" if place.device is None else f"GPU {place.device}",
            place.visible or "none",
            str(place.threads),
            str(place.cores),
            place.memory_nodes,
        )
    console.print(table)
    for speed in speeds:
        console.print(
            f"gang {speed.gang}: {speed.latency_microseconds:.1f} microseconds, "
            f"{speed.gigabytes_per_second:.2f} GB/s between its first and last rank",
            highlight=False,
        )
    for finding in findings:
        console.print(f"{'wrong' if finding.is_error else 'note'}: {finding.text}", highlight=False, soft_wrap=True)
    if not findings:
        console.print("all is well", highlight=False)
