"""Evaluations by gangs of real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.data_parallel import available

SCRIPT = Path(__file__).with_name("gang_evaluation_script.py")

pytestmark = pytest.mark.mpi

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["horovod", "torch_ddp"])
def found(request: pytest.FixtureRequest, run_ranks: Callable[..., Results]) -> tuple[str, Results]:
    reason = available(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param, run_ranks(SCRIPT, request.param, n=2)


def test_layer_that_feeds_nothing_changes_nothing(found: tuple[str, Results]) -> None:
    for seen in found[1]:
        assert seen["dead branch True"] == seen["dead branch False"]


def test_members_return_one_outcome_and_so_does_a_gang_of_one(found: tuple[str, Results]) -> None:
    name, (first, second) = found
    assert first["after"] == second["after"]
    for key in ("fitness", "metrics"):
        assert first["alone"][key] == first["after"][key] == first["dead branch False"][key]
    assert first["after"]["provenance"] == {
        "backend": name,
        "gang": 2,
        "reduction": "exact",
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
    }
    assert first["alone"]["provenance"]["backend"] == "single"
    assert all(len(point["weights_sha256"]) == 64 for point in first["after"]["metrics"]["curve"])


def test_failure_of_a_member_breaks_the_gang_and_no_more(found: tuple[str, Results]) -> None:
    assert [seen["failing"] for seen in found[1]] == ["GangBroken", "ZeroDivisionError"]
    assert found[1][0]["after"] == found[1][0]["dead branch False"]


def test_leader_keeps_the_weights(found: tuple[str, Results]) -> None:
    assert found[1][0]["weights"] == ["trial-0.safetensors", "trial-1.safetensors"]
