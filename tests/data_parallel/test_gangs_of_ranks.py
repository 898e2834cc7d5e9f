"""The backends between real ranks: the same contract for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.data_parallel import available

SCRIPT = Path(__file__).with_name("gang_script.py")

pytestmark = pytest.mark.mpi

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["horovod", "torch_ddp"])
def found(request: pytest.FixtureRequest, run_ranks: Callable[..., Results]) -> tuple[str, Results]:
    reason = available(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param, run_ranks(SCRIPT, request.param, n=3)


def test_collectives(found: tuple[str, Results]) -> None:
    name, ranks = found
    third = [3 * value for value in (1.5, -2.0)]
    for rank, seen in enumerate(ranks):
        got = seen["collectives"]
        assert got["name"] == name
        assert got["place"] == [rank, 3]
        assert [row[:2] for row in got["gathered"]] == [[1.5, -2.0], [3.0, -4.0], third]
        assert got["summed"] == pytest.approx([9.0, -12.0, 6e-3])
        assert got["counts"] == [2, 7]
        assert got["wide"] == ["torch.float64", [3, 4], pytest.approx(4.0, abs=1e-15)]


def test_fifty_lives_with_changing_members(found: tuple[str, Results]) -> None:
    _, ranks = found
    sums = {0: 1.0, 1: 3.0, 2: 2.0}  # of the ranks lead and lead + 1, by lead
    for rank, seen in enumerate(ranks):
        for life, value in enumerate(seen["lives"]):
            lead = life % 3
            assert value == (sums[lead] if rank in (lead, (lead + 1) % 3) else None)


def test_lives_leave_no_files_and_no_threads(found: tuple[str, Results]) -> None:
    for seen in found[1]:
        early, end = seen["things"]
        assert end[0] <= early[0] + 2
        assert end[1] <= early[1] + 2


def test_failure_of_a_member_releases_its_partner(found: tuple[str, Results]) -> None:
    _, ranks = found
    seconds, _, message = ranks[0]["failing"].partition(" ")
    assert float(seconds) < 5
    assert message.startswith("a partner of this gang failed or is gone")
    assert ranks[1]["failing"] == "this member fails"
    assert [seen["after"] for seen in ranks] == [1.0, 1.0, None]


def test_a_member_that_never_comes_breaks_the_gang(found: tuple[str, Results]) -> None:
    _, ranks = found
    assert float(ranks[0]["late"]) < 6
    assert float(ranks[1]["late"]) >= 6
    assert [seen["after_late"] for seen in ranks] == [1.0, 1.0, None]
