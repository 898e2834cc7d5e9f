"""Prepared arrays: one process makes them for all, a killed one leaves nothing that is taken for whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, open_dataset, prepared
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

SOURCE = '''
import os
from pathlib import Path
import numpy as np
from pydantic import BaseModel, ConfigDict
from nord_hpc.datasets import RawData

class Counted:
    """Appends a line to loads.log for each load; 9 MB as float32."""
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        tell_files: bool = True

    def __init__(self, options, *, path, cache):
        self.path = path
        if options.tell_files:
            self.files = lambda: [path / "x.bin"]

    def load(self):
        log = os.open(self.path / "loads.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{os.getpid()}\\n".encode())
        os.close(log)
        x = np.fromfile(self.path / "x.bin", dtype=np.uint8).reshape(-1, 3, 30, 25)
        return RawData(x_train=x, y_train=np.arange(len(x)) % 5, source="test", licence="none")
'''

OPEN = """
import hashlib, json, os, sys, time
from pathlib import Path
import numpy as np
from nord_hpc.datasets import open_dataset, prepared
from nord_hpc.job import DatasetSettings
folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
if "die" in options:
    where = options.pop("die")
    setattr(prepared, where, lambda *a, **k: os.kill(os.getpid(), 9))
print("ready", flush=True)
sys.stdin.readline()
d = open_dataset(DatasetSettings(name="source.py:Counted", path=".", **options), folder=folder, cache=folder / "cache")
digest = hashlib.sha256(np.asarray(d.train.x).tobytes() + d.train.y.tobytes()).hexdigest()
print(digest, type(d.train.x).__name__, os.stat(d.train.x.filename).st_ino)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source.py").write_text(SOURCE)
    np.random.default_rng(0).integers(0, 256, 1000 * 2250).astype(np.uint8).tofile(tmp_path / "x.bin")
    return tmp_path


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A process that is about to open the data set, once it is told to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, str(folder), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def opened(folder: Path, **options: Any) -> Dataset:
    settings = DatasetSettings(name="source.py:Counted", path=".", **options)
    return open_dataset(settings, folder=folder, cache=folder / "cache")


def n_loads(folder: Path) -> int:
    return len((folder / "loads.log").read_text().splitlines())


def folders_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache" / "prepared").iterdir() if path.is_dir()]


@pytest.mark.parametrize(("tell_files", "loads"), [(True, 1), (False, 4)])
def test_four_processes_share_one_copy(folder: Path, tell_files: bool, loads: int) -> None:
    processes = [start(folder, tell_files=tell_files) for _ in range(4)]
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        outputs.append(stdout)
    assert len(set(outputs)) == 1 and " memmap " in outputs[0]  # one content, one file
    assert n_loads(folder) == loads and len(folders_of(folder)) == 1


def test_a_killed_preparation_is_cleared_and_made_again(folder: Path) -> None:
    for where in ("_write_marker", "_put_in_place"):
        process = start(folder, die=where)
        process.communicate("go\n", timeout=60)
        assert process.returncode == -signal.SIGKILL
        left = folders_of(folder)
        assert len(left) == 1 and left[0].name.startswith(".")
    d = opened(folder)
    assert isinstance(d.train.x, np.memmap) and n_loads(folder) == 3
    assert [path.name[0] == "." for path in folders_of(folder)] == [False]
    opened(folder)
    assert n_loads(folder) == 3


@pytest.mark.parametrize("damage", ["truncated", "grown", "missing", "marker"])
def test_a_damaged_folder_is_made_again(folder: Path, damage: str) -> None:
    first = np.array(opened(folder).train.x)
    (made,) = folders_of(folder)
    if damage == "truncated":
        os.truncate(made / "x_train.npy", 1000)
    elif damage == "grown":
        os.truncate(made / "x_train.npy", 100_000_000)
    elif damage == "missing":
        (made / "y_test.npy").unlink()
    else:
        marker = (made / prepared.MARKER).read_text()
        (made / prepared.MARKER).write_text(marker.replace('"n_outputs": 5', '"n_outputs": 6'))
    second = opened(folder)
    assert np.array_equal(first, second.train.x) and second.info.n_outputs == 5 and n_loads(folder) == 2


def test_what_the_content_follows_from_is_in_the_key(folder: Path) -> None:
    opened(folder)
    for n, options in enumerate(({"validation": 0.3}, {"fraction": 0.9}, {"split_seed": 1}, {"storage": "mmap"}), 2):
        opened(folder, **options)
        assert n_loads(folder) == n
    opened(folder, storage="host")
    assert n_loads(folder) == 5  # host is what auto chose
    x = np.fromfile(folder / "x.bin", dtype=np.uint8)
    (255 - x).tofile(folder / "x.bin")
    os.utime(folder / "x.bin", ns=(1, 1))
    other = opened(folder)
    assert n_loads(folder) == 6 and other.info.mean[0] == pytest.approx(127.5, abs=1)


def test_prepared_equals_made_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nord_hpc.datasets import dataset

    mapped = opened(folder)
    monkeypatch.setattr(dataset, "SMALL_BYTES", 10**9)
    for file in folders_of(folder)[0].iterdir():
        file.unlink()
    memory = opened(folder)
    assert not isinstance(memory.train.x, np.memmap)
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(mapped, name).x, getattr(memory, name).x)
        assert np.array_equal(getattr(mapped, name).y, getattr(memory, name).y)
    assert memory.info.mean == mapped.info.mean and mapped.info.storage_reason.endswith(str(folders_of(folder)[0]))


def test_a_lock_that_is_not_freed_is_named(tmp_path: Path) -> None:
    with (
        prepared.preparing(tmp_path, "k"),
        pytest.raises(BadInput, match=r"prepared/k.lock: another process has held this lock for 0.2 seconds"),
        prepared.preparing(tmp_path, "k", wait_seconds=0.2),
    ):
        pass


def test_an_unwritable_cache_is_named(folder: Path) -> None:
    (folder / "cache").write_text("a file")
    with pytest.raises(BadInput, match=r"cache/prepared: cannot be written: .*; set NORD_HPC_CACHE to a folder on"):
        opened(folder)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORD_HPC_CACHE", "/one")
    assert prepared.cache_folder() == Path("/one")
    monkeypatch.delenv("NORD_HPC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert prepared.cache_folder() == Path("/two/nord_hpc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert prepared.cache_folder() == Path.home() / ".cache" / "nord_hpc"
