"""The reference pages agree with the code: job fields, record kinds, snapshot columns, and the digest's own script."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from nord_hpc.store import snapshot
from nord_hpc.store.history import History
from nord_hpc.trial import FailureKind

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(DOCS))
    import make_job_reference

    return make_job_reference


def test_job_file_page_is_up_to_date(generator: object) -> None:
    page = (DOCS / "job_file.md").read_text(encoding="utf-8")
    assert page == generator.page(), "run: python docs/make_job_reference.py"  # type: ignore[attr-defined]


def test_job_file_page_has_defaults_ranges_units_and_meanings(generator: object) -> None:
    class Example(BaseModel):
        """An example.

        Attributes:
            low, high: ends of it,
                on two lines.
            seconds: a | b.
            kind: one of two.
            sizes: of all.
        """

        low: int = Field(1, ge=0, lt=5)
        high: int
        seconds: float | None = Field(None, gt=0)
        kind: Literal["a", "b"] | int = "a"
        sizes: tuple[int, ...] = (1, 2)

    (table,) = generator._table(Example)  # type: ignore[attr-defined]
    assert table.splitlines()[2:] == [
        "| `low` | `1` | int ≥ 0, < 5 |  | ends of it, on two lines. |",
        "| `high` | required | int |  | ends of it, on two lines. |",
        "| `seconds` | `null` | float > 0, or null | s | a \\| b. |",
        '| `kind` | `"a"` | `a` or `b` or int |  | one of two. |',
        "| `sizes` | `[1, 2]` | list of int |  | of all. |",
    ]


def test_a_field_without_a_description_is_refused(generator: object) -> None:
    class Silent(BaseModel):
        """Says nothing of its field."""

        size: int = 1

    with pytest.raises(AssertionError, match=r"Silent\.size: describe it in its docstring"):
        generator._table(Silent)  # type: ignore[attr-defined]


def test_run_folder_page_names_every_record_and_column() -> None:
    page = (DOCS / "run_folder.md").read_text(encoding="utf-8")
    first_cells = [cell for line in re.findall(r"^\| (`[^|]+) \|", page, re.M) for cell in re.findall(r"`(\w+)`", line)]
    kinds = {name.removeprefix("_add_") for name in vars(History) if name.startswith("_add_")}
    assert kinds <= set(first_cells)
    columns = {*snapshot.NUMBERS, *snapshot.TEXTS, *snapshot.AS_JSON}
    assert columns <= set(first_cells)
    assert set(first_cells) - kinds - columns <= {"journal"}  # a file, and nothing that is gone


def test_architecture_page_names_every_failure() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert {kind.value for kind in FailureKind} == set(re.findall(r"\*failed\* \(`(\w+)`\)", page))


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real run: five networks trained on digits."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    settings = [
        "budget.trials=5",
        "training.epochs=1",
        "strategy.population=3",
        "strategy.sample=2",
        "order.virtual_gangs=2",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    job = str(ROOT / "jobs/digits_evolution.yaml")
    nord_hpc("run", job, "-n", "1", "--out", str(folder), *options)
    return folder


def nord_hpc(*arguments: str) -> str:
    command = [sys.executable, "-m", "nord_hpc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def recomputed(trials: str) -> str:
    command = [sys.executable, "-I", str(DOCS / "check_history.py")]
    done = subprocess.run(command, input=trials, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_digest_is_recomputed_without_nord_hpc(trained_run: Path) -> None:
    trials = nord_hpc("trials", str(trained_run), "--json")
    assert recomputed(trials) == json.loads(nord_hpc("status", str(trained_run), "--json"))["history_sha256"]
    code = [line for line in (DOCS / "check_history.py").read_text().splitlines() if line]
    assert len(code) <= 20 and not any("nord_hpc" in line for line in code if "import" in line)


def test_the_digest_sees_every_field_and_the_order_of_commits(trained_run: Path) -> None:
    rows = json.loads(nord_hpc("trials", str(trained_run), "--json"))
    digests = {recomputed(json.dumps(rows))}
    changes = {"fitness": 0.123, "parents": [0], "descriptor_hash": "x", "seed": 1, "state": "failed", "number": 77}
    for field, value in {**changes, "fidelity": {"epochs": 9, "fraction": 1.0}}.items():
        digests.add(recomputed(json.dumps([{**rows[0], field: value}, *rows[1:]])))
    swapped = [{**rows[0], "commit": rows[1]["commit"]}, {**rows[1], "commit": rows[0]["commit"]}, *rows[2:]]
    digests.add(recomputed(json.dumps(swapped)))
    assert len(digests) == 9
    waiting = {**rows[0], "number": 99, "commit": None}
    assert recomputed(json.dumps([*rows, waiting])) in digests
