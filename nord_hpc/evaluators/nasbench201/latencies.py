"""Latencies of the cells of NAS-Bench-201 on named devices, from a table in one .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nord_hpc.errors import BadInput
from nord_hpc.nasbench201.cell import N_CELLS


class Latencies:
    """Milliseconds by cell and device.

    The file has an array `devices`, names, and `latency_ms`, [15,625, devices], in the benchmark's order of the cells.

    Args:
        devices: those that are wanted; all where empty.

    Raises:
        BadInput: the file cannot be read or is another one, or it does not have a device.
    """

    def __init__(self, path: Path, devices: Sequence[str]) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                known: list[str] = arrays["devices"].tolist()
                values_ND = arrays["latency_ms"].astype(np.float64)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadInput(f"{path}: cannot be read as a table of latencies: {reason}") from error
        if values_ND.shape != (N_CELLS, len(known)):
            raise BadInput(f"{path}: latency_ms is {values_ND.shape}; it should be {(N_CELLS, len(known))}")
        for device in devices:
            if device not in known:
                raise BadInput(f"{path}: has no device {device!r}; set latency.devices to some of {', '.join(known)}")
        self.devices = tuple(devices or known)
        self._values_ND = values_ND[:, [known.index(device) for device in self.devices]]

    def metrics(self, index: int) -> dict[str, float]:
        """Of one cell: latency_ms on the first device, and latency_ms_DEVICE on each."""
        values = self._values_ND[index].tolist()
        named = {f"latency_ms_{device}": value for device, value in zip(self.devices, values, strict=True)}
        return {"latency_ms": values[0], **named}
