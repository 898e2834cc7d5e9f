"""The choice of storage: each rule, and the line that tells it."""

from __future__ import annotations

import pytest

from nord_hpc.datasets import storage
from nord_hpc.datasets.storage import choose_storage, machine_bytes, shown_bytes


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "machine_bytes", lambda: 8_000_000_000)
    monkeypatch.setattr(storage, "_free_gpu_bytes", lambda device: 1_000_000_000)


def test_auto_goes_by_size() -> None:
    assert choose_storage("auto", normalized_bytes=2_000_000_000, device="cpu") == (
        "host",
        "2 GB as float32 fits a quarter of 8 GB of memory",
    )
    assert choose_storage("auto", normalized_bytes=2_000_000_001, device="cpu")[0] == "mmap"
    assert choose_storage("auto", normalized_bytes=500_000_000, device="cuda") == (
        "device",
        "500 MB as float32 fits half of 1 GB free on the GPU",
    )
    assert choose_storage("auto", normalized_bytes=500_000_001, device="cuda:1")[0] == "host"
    assert choose_storage("auto", normalized_bytes=9_000_000_000, device="cuda")[0] == "mmap"


def test_what_is_asked_for_is_given_but_for_a_gpu_that_is_not_there() -> None:
    for setting in ("device", "host", "mmap"):
        assert choose_storage(setting, normalized_bytes=10**12, device="cuda") == (setting, "as the job asks")
    chosen, reason = choose_storage("device", normalized_bytes=1, device="cpu")
    assert chosen == "host" and reason.startswith("device is asked for, but the training is on the CPU")


def test_the_machine_has_memory_and_sizes_read_well() -> None:
    assert 10**8 < machine_bytes() < 10**15
    assert [shown_bytes(n) for n in (12, 34_500, 188_160_000, 2.5e12)] == ["12 bytes", "34.5 kB", "188 MB", "2.5 TB"]
