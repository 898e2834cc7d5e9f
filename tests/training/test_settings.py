"""Optimizers, devices and what is refused before any training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nord_hpc.errors import BadInput
from nord_hpc.job import Job, OptimizerSettings
from nord_hpc.training import device, optimizers
from nord_hpc.training.checks import check_job

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def make_job(**sections: Any) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "space": {"name": "conv_graph"},
            "strategy": {"name": "random_search"},
            "budget": {"trials": 1},
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "adm"}, "unknown optimizer 'adm'; set one of adam, adamw, rmsprop, sgd"),
        (
            {"name": "sgd", "momentun": 0.9},
            r"momentun: is no option of sgd: did you mean momentum\? set any of lr, mom",
        ),
        ({"name": "adam", "betas": "high"}, "betas: 'high' is text; set a number"),
    ],
)
def test_optimizer_settings_are_checked(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=rf"^training\.optimizer\.{message}" if ":" in message else message):
        check_job(make_job(training={"optimizer": optimizer}))


def test_optimizer_values_are_checked_when_built() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    settings = OptimizerSettings.model_validate({"name": "sgd", "lr": 0.1, "nesterov": True})
    with pytest.raises(BadInput, match=r"training\.optimizer: Nesterov momentum requires .* options of sgd"):
        optimizers.build(settings, parameter, lr=0.1)


def test_synchronized_batch_norm_and_exact_reduction_exclude_each_other() -> None:
    training = {"sync_batch_norm": True}
    with pytest.raises(BadInput, match=r"set resources\.reduction to fast, or training\.sync_batch_norm to false"):
        check_job(make_job(training=training, resources={"reduction": "exact"}))
    check_job(make_job(training=training, resources={"reduction": "fast"}))
    check_job(make_job(training=training))


def test_odd_direction_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="nord_hpc"):
        check_job(make_job(objective={"metric": "cross_entropy", "direction": "minimize"}))
        assert caplog.text == ""
        check_job(make_job(objective={"metric": "cross_entropy"}))
    assert "the search will maximize cross_entropy" in caplog.text


def test_gpus_are_dealt_by_the_rank_within_the_node() -> None:
    for variable in device.LOCAL_RANK_VARIABLES:
        assert device.choose_device("auto", environ={variable: "5"}, n_gpus=4) == torch.device("cuda", 1)
    assert device.choose_device("cuda", environ={}, n_gpus=4) == torch.device("cuda", 0)
    assert device.choose_device("cpu", environ={}, n_gpus=4) == CPU
    assert device.choose_device("auto", environ={"SLURM_LOCALID": "3"}, n_gpus=0) == CPU
    with pytest.raises(BadInput, match=r"resources\.device: cuda is set and no GPU is visible; set it to auto or cpu"):
        device.choose_device("cuda", environ={}, n_gpus=0)


def test_reduction_and_precision() -> None:
    def reduction(requested: Any, where: torch.device, shards: int, sync: bool = False) -> str:
        return device.resolve_reduction(requested, device=where, shards=shards, sync_batch_norm=sync)

    assert reduction("auto", CPU, 8) == "exact"
    assert reduction("auto", CPU, 9) == "fast"
    assert reduction("auto", CPU, 2, sync=True) == "fast"
    assert reduction("auto", GPU, 2) == "fast"
    assert reduction("exact", GPU, 16) == "exact"
    assert device.resolve_precision("auto", CPU) == "fp32"
    assert device.resolve_precision("bf16", CPU) == "bf16"


@pytest.fixture
def free_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_process_is_prepared(free_algorithms: None) -> None:
    device.prepare_process(CPU, threads=1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
