"""The index of a record file: made once, whole or not at all; its values, and how fast it answers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import pytest
from nasbench101_example import (
    BEST_HASH,
    CHAIN,
    FIRST_HASH,
    FIVE,
    FOUR,
    POOLED,
    ROOT,
    matrix_of,
    needs_files,
    payload,
    write_records,
)

from nord_hpc.errors import BadInput
from nord_hpc.evaluators.nasbench101 import records, table
from nord_hpc.evaluators.nasbench101.records import read_rows
from nord_hpc.evaluators.nasbench101.table import Run, open_table
from nord_hpc.nasbench101 import CONV3X3, INPUT, OUTPUT, ModelSpec


def test_budgets_and_repeats(tmp_path: Path) -> None:
    rows = [(CHAIN, 4, 0.25), (POOLED, 108, 0.75), (CHAIN, 108, 0.5), (CHAIN, 4, 0.125), (CHAIN, 4, 0.375)]
    file = write_records(
        tmp_path / "records",
        *[payload(spec, epochs=n, accuracy=a, seconds=n * 10.0 + a) for spec, n, a in rows],
    )
    made = open_table(file, cache=tmp_path)
    assert (len(made), made.n_rows, made.budgets, made.path) == (2, 5, (4, 108), file)
    runs = made.query(CHAIN.module_hash, 4)
    assert runs[0] == Run(40.25, 0.25 + 0.05, 0.25, 0.25 - 0.01)
    assert [run.validation_accuracy for run in runs] == [0.25, 0.125, 0.375]
    assert [run.validation_accuracy for run in made.query(CHAIN.module_hash, 108)] == [0.5]
    assert made.query(POOLED.module_hash, 4) == ()
    assert made.query(POOLED.module_hash, 12) == ()
    assert made.query("0" * 32, 108) == ()
    assert made.query("f" * 32, 108) == ()
    cells = {made.module_hash(cell): cell for cell in range(len(made))}
    assert list(cells) == sorted([CHAIN.module_hash, POOLED.module_hash])
    assert made.spec(cells[POOLED.module_hash]) == POOLED
    assert made.find(POOLED.module_hash) == cells[POOLED.module_hash]
    assert made.n_parameters(cells[CHAIN.module_hash]) == 1234567


def test_hashes_with_equal_beginnings_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = "00ff" * 4
    hashes = [start + "0" * 16, start + "8" * 16, start + "f" * 16]
    monkeypatch.setattr(ModelSpec, "module_hash", property(lambda spec: hashes[spec.n_vertices - 2]))
    specs = [
        ModelSpec(matrix_of(n, " ".join(f"{i}-{i + 1}" for i in range(n - 1))), [INPUT, *[CONV3X3] * (n - 2), OUTPUT])
        for n in (2, 3, 4)
    ]
    file = write_records(tmp_path / "records", *[payload(s, accuracy=s.n_vertices / 8) for s in reversed(specs)])
    made = open_table(file, cache=tmp_path)
    assert [made.query(h, 108)[0].validation_accuracy for h in hashes] == [2 / 8, 3 / 8, 4 / 8]
    assert made.find(start + "0" * 15 + "1") is None


def test_the_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_records(tmp_path / "records", payload(CHAIN, accuracy=0.5))
    open_table(file, cache=tmp_path)
    monkeypatch.setattr(table, "read_rows", lambda path: pytest.fail("it is read again"))
    assert open_table(file, cache=tmp_path).query(CHAIN.module_hash, 108)[0].validation_accuracy == 0.5
    monkeypatch.setattr(table, "read_rows", records.read_rows)
    write_records(file, payload(CHAIN, accuracy=0.25), payload(POOLED))
    changed = open_table(file, cache=tmp_path)
    assert changed.query(CHAIN.module_hash, 108)[0].validation_accuracy == 0.25
    assert len(changed) == 2


@needs_files
def test_processes_that_come_together_share_one_index(tmp_path: Path) -> None:
    code = "import sys; from nord_hpc.evaluators.nasbench101 import open_table; print(len(open_table(sys.argv[1])))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(FOUR)],
            cwd=ROOT,
            env={**os.environ, "NORD_HPC_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["91"] * 3
    folders = [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_wrong_files_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORD_HPC_NASBENCH101", raising=False)
    with pytest.raises(
        BadInput, match=r"set path \(evaluator.path in a job\) or NORD_HPC_NASBENCH101 to nasbench_full"
    ):
        open_table(cache=tmp_path)
    with pytest.raises(BadInput, match="nothing: cannot be read: No such file or directory; set path to a record file"):
        open_table(tmp_path / "nothing", cache=tmp_path)
    empty = write_records(tmp_path / "empty")
    with pytest.raises(BadInput, match="empty: holds no records; set path to a record file of NAS-Bench-101"):
        open_table(empty, cache=tmp_path)
    wrong = write_records(tmp_path / "wrong", payload(CHAIN), payload(POOLED, module_hash="12" * 16))
    message = f"wrong: record 1: the hash {'12' * 16} is not that of its cell, {POOLED.module_hash}"
    with pytest.raises(BadInput, match=message):
        open_table(wrong, cache=tmp_path)
    labels = write_records(tmp_path / "labels", payload(CHAIN, operations="input,conv7x7,output"))
    with pytest.raises(BadInput, match="labels: record 0: the cell's operation 'conv7x7' is not in NAS-Bench-101"):
        open_table(labels, cache=tmp_path)
    assert [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()] == []


def test_the_path_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_records(tmp_path / "records", payload(CHAIN))
    monkeypatch.setenv("NORD_HPC_NASBENCH101", str(file))
    assert open_table(cache=tmp_path).path == file


@needs_files
def test_all_values_of_a_real_file_come_back(tmp_path: Path) -> None:
    made = open_table(FOUR, cache=tmp_path)
    assert (len(made), made.n_rows, made.budgets) == (91, 1092, (4, 12, 36, 108))
    expected: dict[tuple[str, int], list[Run]] = {}
    for row in read_rows(FOUR):
        expected.setdefault((row.module_hash, row.epochs), []).append(Run(*row.evaluations[-1][1:]))
        cell = made.find(row.module_hash)
        assert cell is not None
        assert made.n_parameters(cell) == row.n_parameters
        assert made.spec(cell).module_hash == row.module_hash
    assert len(expected) == 91 * 4
    for (module_hash, epochs), runs in expected.items():
        assert len(runs) == 3
        assert made.query(module_hash, epochs) == tuple(runs)
    assert made.query(FIRST_HASH, 36)[0].validation_accuracy == pytest.approx(0.917468, abs=1e-6)


@needs_files
def test_the_best_cell_of_a_real_file(tmp_path: Path) -> None:
    made = open_table(FOUR, cache=tmp_path)
    means = {
        made.module_hash(cell): fmean(run.validation_accuracy for run in made.runs(cell, 108)) for cell in range(91)
    }
    best = max(means, key=lambda module_hash: means[module_hash])
    assert best == BEST_HASH
    assert round(means[best], 4) == 0.9425
    assert round(fmean(run.test_accuracy for run in made.query(best, 108)), 4) == 0.9335


@needs_files
@pytest.mark.timing
def test_it_opens_and_answers_fast(tmp_path: Path) -> None:
    open_table(FIVE, cache=tmp_path)
    began = time.perf_counter()
    made = open_table(FIVE, cache=tmp_path)
    assert time.perf_counter() - began < 2
    hashes = [made.module_hash(cell) for cell in range(len(made))]
    random.Random(0).shuffle(hashes)
    assert min(_microseconds(made, hashes) for _ in range(5)) < 20


def _microseconds(made: table.Table, hashes: list[str]) -> float:
    began = time.perf_counter()
    for module_hash in hashes:
        assert made.query(module_hash, 4)
    return (time.perf_counter() - began) * 1e6 / len(hashes)
