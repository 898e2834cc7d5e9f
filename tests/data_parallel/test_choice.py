"""The choice of a backend, and the one for gangs of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nord_hpc import data_parallel
from nord_hpc.data_parallel import GangPlace, available, choose
from nord_hpc.data_parallel.single import SingleBackend
from nord_hpc.errors import BadInput

ALONE = GangPlace(rank=0, size=1, key="alone")


def test_single_changes_nothing() -> None:
    with SingleBackend().open(ALONE) as gang:
        values = torch.tensor([1.0, 2.0])
        gang.all_reduce_sum_(values)
        gang.broadcast_(values, root=0)
        assert gang.all_gather(values).tolist() == [[1.0, 2.0]]
        assert (gang.name, gang.rank, gang.size) == ("single", 0, 1)


def test_single_is_for_one() -> None:
    with pytest.raises(ValueError, match="for gangs of 1, not 2"):
        SingleBackend().open(GangPlace(rank=0, size=2, key="two"))


@pytest.mark.parametrize("name", ["auto", "horovod", "torch_ddp", "single"])
def test_gangs_of_one_need_no_backend(name: str) -> None:
    assert choose(name, size=1).name == "single"


def test_auto_prefers_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "horovod" if available("horovod") is None else "torch_ddp"
    assert choose("auto", size=2).name == expected
    monkeypatch.setattr(data_parallel, "available", lambda name: "no" if name == "horovod" else None)
    assert choose("auto", size=2).name == "torch_ddp"


def test_backend_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "available", lambda name: "horovod is not installed")
    with pytest.raises(BadInput, match=r"resources\.backend: horovod cannot be used here: horovod is not installed"):
        choose("horovod", size=2)


def test_single_is_refused_for_more() -> None:
    with pytest.raises(BadInput, match=r"single is for gangs of 1, not 4; set it to horovod or torch_ddp"):
        choose("single", size=4)


def test_unknown_backend() -> None:
    with pytest.raises(BadInput, match="did you mean horovod"):
        choose("horovd", size=2)


def test_missing_module_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel.importlib.util, "find_spec", lambda name: None)
    assert available("horovod") == "horovod is not installed"
    assert available("single") is None


def test_gang_of_one_imports_no_backend() -> None:
    code = (
        "import sys; from nord_hpc.data_parallel import choose, GangPlace; "
        "choose('auto', size=1).open(GangPlace(0, 1, 'alone')).close(); "
        "print([m for m in ('horovod', 'mpi4py', 'torch') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
