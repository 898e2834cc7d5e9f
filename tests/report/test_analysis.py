"""A run as pandas and TensorBoard see it; and that reading one runs none of its code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nord_hpc
from nord_hpc import job as jobs
from nord_hpc.cli import wiring
from nord_hpc.cluster import parts
from nord_hpc.errors import BadInput
from nord_hpc.report.analysis import Run
from nord_hpc.report.tensorboard import write_events
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.store.summary import rows, summarize

JOB: dict[str, Any] = {
    "name": "search",
    "dataset": {"name": "digits", "fraction": 0.2},
    "space": {
        "name": "hyperparameters",
        "parameters": {"training.optimizer.lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True}},
    },
    "strategy": {"name": "random_search"},
    "training": {"epochs": 2, "batch_size": 32},
    "objective": {"metric": "cross_entropy", "direction": "minimize"},
    "budget": {"trials": 4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("search")
    run = parts.create_run_folder(folder / "run", jobs.from_mapping(JOB, folder=folder))
    before = {number: wiring.signal.getsignal(number) for number in wiring.STOP_SIGNALS}
    assert wiring.run_inline(run, on_tick=lambda: None) == wiring.DONE
    for number, handler in before.items():
        wiring.signal.signal(number, handler)
    return run


def test_trials_summary_and_best(finished: RunFolder) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pip install 'nord_hpc[analysis]'")
    run = nord_hpc.load(str(finished.path))
    assert isinstance(run, Run)
    frame, table = run.trials, rows(finished.history())
    assert list(frame.index) == [0, 1, 2, 3] and frame.index.name == "number"
    for row in table:
        of = frame.loc[row["number"]]
        assert of["fitness"] == row["fitness"] == of["metric.cross_entropy"]
        assert of["metric.accuracy"] == row["metrics"]["accuracy"]
        assert of["setting.training.optimizer.lr"] == row["settings"]["training.optimizer.lr"]
        assert (of["epochs"], of["fraction"], of["commit"]) == (2, 1.0, row["commit"])
        assert [point["epoch"] for point in of["curve"]] == [1, 2]
    assert str(frame["commit"].dtype) == "Int64" and pandas.isna(frame["reuses"]).all()
    assert run.summary == summarize(finished.history(), finished.recorded_job())
    assert run.job == finished.job().to_json()
    best = run.best
    assert best is not None
    assert best["number"] == frame["fitness"].idxmin() and best["fitness"] == frame["fitness"].min()
    assert best["test"]["accuracy"] == finished.history().test["metrics"]["accuracy"]  # type: ignore[index]
    assert repr(run) == f"<Run {finished.path}: 4 trials, finished>"


def test_a_run_without_trials(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs pip install 'nord_hpc[analysis]'")
    run = nord_hpc.load(parts.create_run_folder(tmp_path / "run", jobs.from_mapping(JOB, folder=tmp_path)).path)
    assert len(run.trials) == 0 and run.best is None
    assert run.summary["state"] == "interrupted"
    with pytest.raises(BadInput, match="there is no such run folder"):
        nord_hpc.load(tmp_path / "absent")


def test_no_code_of_the_folder_is_run(tmp_path: Path) -> None:
    """A folder from a stranger whose plug-in would leave a trace."""
    trace = tmp_path / "trace"
    (tmp_path / "mine.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nfrom nord_hpc.spaces.conv_graph import ConvGraph as Mine\n"
    )
    job = {**JOB, "space": {"name": "mine.py:Mine"}, "evaluator": {"name": "synthetic"}}
    folder = parts.create_run_folder(tmp_path / "run", jobs.from_mapping(job, folder=tmp_path)).path
    assert trace.exists(), "the making of the job imports it"
    trace.unlink()
    program = f"import nord_hpc; run = nord_hpc.load({str(folder)!r}); run.summary, run.best, run.job, repr(run)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not trace.exists()


def test_a_missing_pandas_is_named(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadInput, match=r"trials: needs pandas; install it with: pip install 'nord_hpc\[analysis\]'"):
        nord_hpc.load(finished.path).trials  # noqa: B018


def test_tensorboard_reads_the_events(finished: RunFolder, tmp_path: Path) -> None:
    reason = "needs pip install 'nord_hpc[tensorboard]'"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    history, job = finished.history(), finished.recorded_job()
    assert write_events(history, job, tmp_path / "events") == 4

    def scalars(folder: str, tag: str) -> list[tuple[int, float]]:
        read = accumulator.EventAccumulator(str(tmp_path / "events" / folder))
        read.Reload()
        return [(event.step, event.value) for event in read.Scalars(tag)]

    values = [history.entries[number].outcome.fitness for number in history.commit_order]  # type: ignore[union-attr]
    assert scalars("search", "fitness") == [(step, pytest.approx(value, rel=1e-6)) for step, value in enumerate(values)]
    best = [min(values[: step + 1]) for step in range(4)]  # type: ignore[type-var]
    assert scalars("search", "best") == [(step, pytest.approx(value, rel=1e-6)) for step, value in enumerate(best)]
    curve = history.entries[2].outcome.metrics["curve"]  # type: ignore[union-attr]
    expected = [(point["epoch"], pytest.approx(point["accuracy"], rel=1e-6)) for point in curve]
    assert scalars("trial-2", "curve/accuracy") == expected
    with pytest.raises(BadInput, match="holds events already; set another folder"):
        write_events(history, job, tmp_path / "events")
