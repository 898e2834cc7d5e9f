"""A half-trained network is resumed on gangs of real ranks: rates and weights are those of an unbroken training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.data_parallel import available

SCRIPT = Path(__file__).with_name("checkpoint_script.py")

pytestmark = pytest.mark.mpi

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["horovod", "torch_ddp"])
def ranks(request: pytest.FixtureRequest, run_ranks: Callable[..., Results]) -> Results:
    reason = available(request.param)
    if reason is not None:
        pytest.skip(reason)
    return run_ranks(SCRIPT, request.param, n=2)


@pytest.mark.parametrize(
    ("case", "lr"), [("sgd", 0.05), ("adam", 0.005), ("momentum", 0.02), ("adam on fewer ranks", 0.005)]
)
def test_rates_and_weights_are_those_of_an_unbroken_training(ranks: Results, case: str, lr: float) -> None:
    for seen in ranks:
        found = seen[case]
        assert found["stopped"] and found["epochs"] == [1, 2, 3, 4]
        assert [epoch["rate"] for epoch in found["resumed"]] == [lr, lr, lr / 2, lr / 2]
        assert found["resumed"] == found["unbroken"] == ranks[0][case]["unbroken"]
        assert len({epoch["digest"] for epoch in found["resumed"]}) == 4
        assert found["metrics"][0] == found["metrics"][1] and 0 < found["metrics"][0]["accuracy"] <= 1
        assert found["equal curves"]


def test_all_members_say_what_the_first_one_reads(ranks: Results) -> None:
    text, folder = ranks[0]["damaged"]
    assert "cannot be read as a checkpoint" in text and text.endswith("; remove it to start anew")
    assert folder.endswith("damaged-folder: cannot be read as a checkpoint: Is a directory")
    assert ranks[1]["damaged"] == [text, folder]
