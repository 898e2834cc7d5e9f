"""Confirming finalists: which they are, that seeds add up, how one is chosen and tested once, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mpi.commands import needs_mpirun, nord
from scipy import stats

from nord_hpc import job as jobs
from nord_hpc.cli import confirm, export, wiring
from nord_hpc.cluster import parts, worker
from nord_hpc.errors import BadInput
from nord_hpc.store.run_folder import RunFolder

JOB: dict[str, Any] = {
    "name": "search",
    "seed": 3,
    "dataset": {"name": "digits", "fraction": 0.2},
    "space": {"name": "conv_graph", "max_layers": 2, "channels": [2, 4], "max_poolings": 1},
    "strategy": {"name": "random_search"},
    "training": {"epochs": 1, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}},
    "budget": {"trials": 5},
    "checkpoint": {"keep_weights": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("search")
    run = parts.create_run_folder(folder / "run", jobs.from_mapping(JOB, folder=folder))
    assert wiring.run_inline(run, on_tick=lambda: None) == wiring.DONE
    return run


@pytest.fixture
def searched(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy, as a confirmation goes into it."""
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))


def confirmed(source: RunFolder, *, top: int, seeds: int, out: Path | None = None) -> tuple[RunFolder, dict[str, Any]]:
    out = out or source.path / "confirm"
    opened = confirm.prepare(source, top=top, seeds=seeds, given=(), n_workers=1, out=out)
    assert confirm._run(opened, None) == wiring.DONE
    return opened, confirm.conclude(source, opened, top=top)


def test_finalists_are_the_best_different_networks(finished: RunFolder) -> None:
    history, job = finished.history(), finished.job()
    found = confirm.finalists(history, job, 3)
    outcomes = [entry.outcome for entry in history.entries.values()]
    fitness = sorted((outcome.fitness for outcome in outcomes if outcome and outcome.fitness), reverse=True)
    assert [entry.outcome.fitness for entry in found] == fitness[:3]  # type: ignore[union-attr]
    assert len({entry.trial.descriptor_hash for entry in found}) == 3
    # The same network again, with better luck, takes the place of the first, and no second one.
    lucky = history.entries[found[2].trial.number]
    twin = history.entries[found[0].trial.number]
    object.__setattr__(lucky.trial, "descriptor_hash", twin.trial.descriptor_hash)
    again = confirm.finalists(history, job, 3)
    assert lucky.trial.number not in [entry.trial.number for entry in again]


def test_mean_interval_choice_and_one_test(searched: RunFolder, tmp_path: Path) -> None:
    opened, result = confirmed(searched, top=2, seeds=2)
    history = opened.history()
    best = confirm.finalists(searched.history(), searched.job(), 2)
    assert [group["trial"] for group in result["finalists"]] == [entry.trial.number for entry in best]
    assert [group["trials"] for group in result["finalists"]] == [[0, 2], [1, 3]]
    for place, group in enumerate(result["finalists"]):
        for number, value in zip(group["trials"], group["values"], strict=True):
            trial = history.entries[number].trial
            assert trial.genotype == best[place].trial.genotype
            assert history.entries[number].outcome.fitness == value  # type: ignore[union-attr]
        first, second = group["values"]
        assert group["mean"] == pytest.approx((first + second) / 2, abs=1e-15)
        half = stats.t.ppf(0.975, 1) * abs(first - second) / math.sqrt(2) / math.sqrt(2)
        assert group["interval"] == pytest.approx([group["mean"] - half, group["mean"] + half], abs=1e-12)
    assert len({entry.trial.seed for entry in history.entries.values()}) == 4
    chosen = max(result["finalists"], key=lambda group: group["mean"])
    assert result["chosen"] == chosen["trial"]
    assert result["network"] in chosen["trials"]
    taken = history.entries[result["network"]].outcome
    assert taken is not None and taken.fitness == max(chosen["values"])
    # Only the chosen one was tested, after the choice.
    tests = [record for record in journal_records(opened) if record["kind"] == "test"]
    assert [test["number"] for test in tests] == [result["network"]]
    assert len(result["test"]["values"]) == 2 and result["test"]["network"]["n_samples"] == 359
    assert result["test"]["network"]["accuracy"] in result["test"]["values"]
    # Its network is exported with the figure of the test.
    record = export.write(export.find(opened.path, str(result["network"])), tmp_path / "net.pt2", "torch")
    assert record["scored"]["test"]["accuracy"] == result["test"]["network"]["accuracy"]


def journal_records(opened: RunFolder) -> list[dict[str, Any]]:
    from nord_hpc.store import journal

    return list(journal.read(opened.journal_file))


def test_more_seeds_are_added_and_nothing_is_done_twice(searched: RunFolder) -> None:
    opened, first = confirmed(searched, top=2, seeds=1)
    assert first["finalists"][0]["interval"] is None and first["finalists"][0]["deviation"] is None
    n_records = len(journal_records(opened))
    opened, again = confirmed(searched, top=2, seeds=1)
    assert again == first
    assert len(journal_records(opened)) == n_records, "something was done again"
    opened, more = confirmed(searched, top=2, seeds=2)
    assert [group["values"][0] for group in more["finalists"]] == [group["values"][0] for group in first["finalists"]]
    assert [len(group["values"]) for group in more["finalists"]] == [2, 2]
    starts = [record["number"] for record in journal_records(opened) if record["kind"] == "started"]
    assert sorted(starts) == [0, 1, 2, 3]
    _, fresh = confirmed(searched, top=2, seeds=2, out=searched.path.parent / "fresh")
    assert fresh["history_sha256"] == more["history_sha256"]


def test_a_stopped_confirmation_goes_on(searched: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    out = searched.path / "confirm"
    opened = confirm.prepare(searched, top=2, seeds=2, given=(), n_workers=1, out=out)
    evaluate = worker.evaluate
    calls = 0

    def evaluate_and_stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        report = evaluate(*arguments, **options)
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return report

    monkeypatch.setattr(worker, "evaluate", evaluate_and_stop)
    assert wiring.run_inline(opened, on_tick=lambda: None) == wiring.INTERRUPTED
    assert sum(record["kind"] == "finished" for record in journal_records(opened)) == 2
    _, result = confirmed(searched, top=2, seeds=2)
    assert [len(group["values"]) for group in result["finalists"]] == [2, 2]
    assert sum(record["kind"] == "finished" for record in journal_records(opened)) == 4, "a training was done again"


def test_a_finalist_that_failed_once_is_not_chosen_before_whole_ones() -> None:
    def group(trial: int, values: tuple[float, ...], n: int) -> confirm.Finalist:
        return confirm.Finalist(trial, 0.5, values, tuple(range(n)), 1, 1, **confirm._statistics(values))

    whole, broken = group(4, (0.7, 0.8), 2), group(2, (0.95,), 2)
    assert confirm.choose([broken, whole], maximize=True) == whole
    assert confirm.choose([broken], maximize=True) == broken
    assert confirm.choose([group(1, (), 2)], maximize=True) is None
    assert confirm.choose([group(7, (0.7, 0.8), 2), whole], maximize=True) == whole, "ties go to the lower number"
    assert confirm.choose([group(7, (0.1, 0.2), 2), whole], maximize=False).trial == 7  # type: ignore[union-attr]


def test_what_is_refused(searched: RunFolder, tmp_path: Path) -> None:
    def prepare(*given: str, top: int = 2, seeds: int = 1) -> RunFolder:
        return confirm.prepare(searched, top=top, seeds=seeds, given=given, n_workers=1, out=searched.path / "confirm")

    with pytest.raises(BadInput, match=r"--top 9: .* has [45] different networks that completed; set --top to at most"):
        prepare(top=9)
    with pytest.raises(BadInput, match=r"trial \d is no point of the space as it is set now"):
        prepare("space.channels=[32]")
    assert not (searched.path / "confirm").exists()
    prepare()
    with pytest.raises(BadInput, match=r"was begun with other training.epochs; set these as before, or another --out"):
        prepare("training.epochs=2")
    with pytest.raises(BadInput, match=r"confirms other networks of this search; set --top as before"):
        prepare(top=3)
    empty = jobs.from_mapping({**JOB, "name": "empty"}, folder=tmp_path)
    unused = parts.create_run_folder(tmp_path / "empty", empty)
    with pytest.raises(BadInput, match=r"no trial has completed, so there is nothing to confirm"):
        confirm.prepare(unused, top=1, seeds=1, given=(), n_workers=1, out=tmp_path / "x")
    with pytest.raises(BadInput, match=r"holds a run that is no confirmation; set --out to another"):
        confirm.prepare(searched, top=2, seeds=1, given=(), n_workers=1, out=unused.path)


def test_trainings_get_the_ranks_that_are_to_spare(finished: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))
    copy.save_job(copy.job(overrides=("resources={shards: 8, gang: 2}",)))

    def gang(n_workers: int, *given: str) -> int | str:
        return confirm._job(copy, copy.job(), given, top=2, seeds=2, n_workers=n_workers).resources.gang

    assert [gang(n) for n in (1, 8, 15, 16, 31, 32, 64)] == [2, 2, 2, 4, 4, 8, 8]
    assert gang(64, "resources.gang=1") == 1, "the user's own choice stays"


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_command_on_ranks_gives_what_one_process_gives(searched: RunFolder, tmp_path: Path) -> None:
    done = nord("confirm", searched.path, "--top", "2", "--seeds", "2", "-n", "3", "--json", cwd=tmp_path, timeout=100)
    result = json.loads(done.stdout)
    other = tmp_path / "inline"
    inline = confirm.prepare(searched, top=2, seeds=2, given=(), n_workers=1, out=other)
    assert confirm._run(inline, None) == wiring.DONE
    assert confirm.conclude(searched, inline, top=2)["history_sha256"] == result["history_sha256"]
    shown = nord("confirm", searched.path, "--top", "2", "--seeds", "2", cwd=tmp_path).stdout
    assert f"* chosen by the mean: trial {result['chosen']}" in shown
    assert f"test accuracy {result['test']['mean']:.4f} (mean of its 2 trainings, deviation" in shown
