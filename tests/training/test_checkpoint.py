"""Checkpoints of a training in one process: what a break changes (nothing), and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import stopping
import torch
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.training import weights
from nord_hpc.training.trainer import Given

ADAM = {"name": "adam", "lr": 0.005}
SGD = {"name": "sgd", "lr": 0.05}


def broken(path: Path, *, stop_after: int = 2, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The result of a training that was stopped and resumed, and all that its epochs showed."""
    stopped, begun = stopping.run(SingleGang(), path, stop_after=stop_after, **options)
    assert stopped is None and len(begun) == stop_after
    result, ended = stopping.run(SingleGang(), path, **options)
    return result, [*begun, *ended]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": SGD},
        {"optimizer": {**SGD, "momentum": 0.9, "nesterov": True}},
        {"optimizer": {**ADAM, "amsgrad": True}, "schedule": "cosine"},
        {"optimizer": {"name": "rmsprop", "lr": 0.001, "centered": True}, "shards": 1},
        {"optimizer": {"name": "adamw", "lr": 0.005}, "shards": 5, "schedule": "linear", "scale_lr": "linear"},
        {"optimizer": SGD, "reduction": "fast"},
    ],
)
def test_a_break_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, shown = stopping.run(SingleGang(), **options)
    assert whole is not None
    for stop_after in (1, 3):
        resumed, again = broken(tmp_path / f"{stop_after}", stop_after=stop_after, **options)
        assert again == shown and resumed.curve == whole.curve and resumed.steps == whole.steps


@pytest.mark.parametrize("every_step", [False, True])
def test_the_rate_goes_on_where_it_was(tmp_path: Path, every_step: bool) -> None:
    _, shown = broken(tmp_path / "c", optimizer=SGD, halving=stopping.Halving(every_step=every_step))
    assert [epoch["rate"] for epoch in shown] == [0.05, 0.05, 0.025, 0.025]


class _Frozen(nn.Module):
    """As written by a person who trains the last layer alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Linear(64, 8).requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.body(x.flatten(1))))
        return y


def schedulers() -> dict[str, Any]:
    lr_scheduler = torch.optim.lr_scheduler
    return {
        "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2),
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4),
        "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3]),
        "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.8**epoch),
    }


@pytest.mark.parametrize("name", ["plateau", "cosine", "milestones", "lambda"])
def test_schedulers_of_torch_go_on(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"optimizer": SGD, "given": Given(scheduler=schedulers()[name])}
    whole, shown = stopping.run(SingleGang(), network=_Frozen(), **options)
    stopping.run(SingleGang(), tmp_path / "c", stop_after=2, network=_Frozen(), **options)
    resumed, ended = stopping.run(SingleGang(), tmp_path / "c", network=_Frozen(), **options)
    assert whole is not None and resumed is not None
    assert ended == shown[2:] and resumed.curve == whole.curve


def test_a_step_scheduler_of_torch_goes_on(tmp_path: Path) -> None:
    def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4 * stopping.N_STEPS + 1)

    given = Given(scheduler=one_cycle, schedule_every="step")
    options: dict[str, Any] = {"optimizer": {**SGD, "momentum": 0.9}, "given": given}
    whole, _ = stopping.run(SingleGang(), **options)
    resumed, _ = broken(tmp_path / "c", **options)
    assert whole is not None and resumed.curve == whole.curve


def test_an_optimizer_of_the_networks_own_parameters_goes_on(tmp_path: Path) -> None:
    given = Given(optimizer=torch.optim.Adafactor, optimizer_options={"lr": 0.01})
    options: dict[str, Any] = {"optimizer": ADAM, "given": given}
    whole, _ = stopping.run(SingleGang(), **options)
    resumed, _ = broken(tmp_path / "c", **options)
    assert whole is not None and resumed.curve == whole.curve


def test_more_epochs_go_on_from_a_finished_training(tmp_path: Path) -> None:
    """Where the rate does not depend on how many epochs there are, a short training is the beginning of a long one."""
    whole, _ = stopping.run(SingleGang(), optimizer=ADAM)
    short, _ = stopping.run(SingleGang(), tmp_path / "c", optimizer=ADAM, epochs=2)
    longer, shown = stopping.run(SingleGang(), tmp_path / "c", optimizer=ADAM, epochs=4)
    again, nothing = stopping.run(SingleGang(), tmp_path / "c", optimizer=ADAM, epochs=4)
    assert whole is not None and short is not None and longer is not None and again is not None
    assert longer.curve == again.curve == whole.curve and [epoch["epoch"] for epoch in shown] == [3, 4]
    assert nothing == []
    with pytest.raises(StoreError, match="is of a training after 4 epochs, more than 2"):
        stopping.run(SingleGang(), tmp_path / "c", optimizer=ADAM, epochs=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {**ADAM, "lr": 0.1}}, r"of a training with optimizer \{.*'lr': 0.005.*\}, not \{.*'lr': 0.1"),
        ({"optimizer": SGD}, "of a training with optimizer "),
        ({"shards": 1}, "of a training with parts 2, not 1"),
        ({"network": _Frozen()}, "of a training with network "),
        ({"schedule": "cosine"}, "of a training with schedule constant, not cosine"),
        ({"halving": stopping.Halving()}, "of a training with scheduler class None, not StepLR"),
    ],
)
def test_another_training_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stopping.run(SingleGang(), tmp_path / "c", optimizer=ADAM, epochs=1)
    with pytest.raises(StoreError, match=message):
        stopping.run(SingleGang(), tmp_path / "c", **{"optimizer": ADAM, "epochs": 2, **change})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    stopping.run(SingleGang(), path, optimizer=SGD, epochs=1)
    whole = path.read_bytes()
    other = safetensors.torch.save({"a": torch.zeros(1)}, metadata={weights.METADATA_KEY: json.dumps({"trial": "1"})})
    for content in (b"", whole[:-1], whole[: len(whole) // 2], b"x" * 100, other):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"c: cannot be read as a checkpoint: .*; remove it to start anew"):
            stopping.run(SingleGang(), path, optimizer=SGD, epochs=1)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    stopping.run(SingleGang(), path, optimizer=SGD, epochs=1)
    before = path.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        stopping.run(SingleGang(), path, optimizer=SGD, epochs=2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_state_of_python_objects_is_refused(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "odd": {1, 2}}

    given = Given(optimizer=Odd, optimizer_options={"lr": 0.1})
    with pytest.raises(BadInput, match=r"the optimizer's state optimizer.odd is a set, which no checkpoint can hold"):
        stopping.run(SingleGang(), tmp_path / "c", optimizer=SGD, given=given, epochs=1)
