"""Texts, numbers and classes of the cells of NAS-Bench-201."""

from __future__ import annotations

import pytest
from nasbench201_example import FIRST, NOTHING, SECOND, needs_table, table_rows

from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201 import (
    N_CELLS,
    OPERATIONS,
    architecture_of,
    cell_of,
    cell_of_index,
    index_of,
    unique_string,
)
from nord_hpc.nasbench201.cell import is_architecture


def test_the_first_cells_are_the_benchmarks() -> None:
    assert [architecture_of(cell_of_index(index)) for index in (0, 1)] == [FIRST, SECOND]
    assert (index_of(FIRST), index_of(SECOND)) == (0, 1)
    assert cell_of(FIRST) == (
        "avg_pool_3x3",
        "nor_conv_1x1",
        "skip_connect",
        "nor_conv_1x1",
        "skip_connect",
        "skip_connect",
    )


@needs_table
def test_all_numbers_are_the_tables() -> None:
    texts = [row["arch"] for row in table_rows()]
    assert texts == [architecture_of(cell_of_index(index)) for index in range(N_CELLS)]
    assert [index_of(text) for text in texts] == list(range(15_625))


def test_what_is_no_cell_is_told_so() -> None:
    assert is_architecture(FIRST)
    for text in ("", FIRST[:-1], FIRST.replace("avg_pool_3x3", "max_pool_3x3"), None, 3, [FIRST]):
        assert not is_architecture(text)
    with pytest.raises(Infeasible, match=r"'\|none~0\|' is no cell of NAS-Bench-201; set \|op~0\|\+.* none, skip_conn"):
        cell_of("|none~0|")


def test_the_benchmark_has_so_many_classes() -> None:
    cells = [cell_of_index(index) for index in range(N_CELLS)]
    assert len(set(cells)) == len(OPERATIONS) ** 6 == 15_625
    assert len({unique_string(cell, zeros=False) for cell in cells}) == 12_751
    assert len({unique_string(cell, zeros=True) for cell in cells}) == 6_466


def test_unique_strings_are_written_as_the_benchmark_does() -> None:
    pool, conv = "(0)@avg_pool_3x3", "(0)@nor_conv_1x1"
    assert unique_string(cell_of(FIRST), zeros=False) == f"{pool}+{pool}+{conv}+{conv}"
    assert unique_string(cell_of(NOTHING), zeros=True) == "#+#+#"
    assert unique_string(cell_of(NOTHING), zeros=False) == ("(((0)@none)@none+(0)@none)@none+((0)@none)@none+(0)@none")
