"""Where a data set's arrays live: on the device, in the host's memory, or mapped; chosen by size, said in a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Storage = Literal["device", "host", "mmap"]


def choose_storage(
    setting: Literal["auto", "device", "host", "mmap"], *, normalized_bytes: int, device: str
) -> tuple[Storage, str]:
    """The storage, and why.

    Args:
        setting: from the job; what it asks for it gets, except the memory of a GPU that is not there.
        normalized_bytes: of all parts as float32.
        device: "cpu", "cuda" or "cuda:N", where the training takes place.
    """
    on_gpu = device.startswith("cuda")
    if setting == "device" and not on_gpu:
        return "host", "device is asked for, but the training is on the CPU, so the host's memory it is"
    if setting != "auto":
        return setting, "as the job asks"
    size = shown_bytes(normalized_bytes)
    if on_gpu:
        free = _free_gpu_bytes(device)
        if normalized_bytes <= free / 2:
            return "device", f"{size} as float32 fits half of {shown_bytes(free)} free on the GPU"
    total = machine_bytes()
    if normalized_bytes <= total / 4:
        return "host", f"{size} as float32 fits a quarter of {shown_bytes(total)} of memory"
    return "mmap", f"{size} as float32 does not fit a quarter of {shown_bytes(total)} of memory"


def machine_bytes() -> int:
    """Memory that this process may use: of the machine, or of the control group that holds it, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue  # no control groups of that version, or no limit ("max")
    return total


def shown_bytes(n: float) -> str:
    """A size for people: "188 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _free_gpu_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.mem_get_info(torch.device(device))[0])
