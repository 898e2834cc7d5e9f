"""Retraining one network of a search: what is trained, what is refused, and that a stopped one goes on to the bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nord_hpc import job as jobs
from nord_hpc.cli import retrain, retrain_life, wiring
from nord_hpc.cluster import parts
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.store.retrain_folder import RetrainFolder
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.trial import Fidelity

JOB: dict[str, Any] = {
    "name": "search",
    "dataset": {"name": "digits", "fraction": 0.2},
    "space": {"name": "nasnet_cell", "blocks": 1, "filters": 4, "repeats": 1, "stages": 2, "stem_multiplier": 1},
    "strategy": {"name": "random_search"},
    "training": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.8}},
    "budget": {"trials": 2},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run folder of a finished search of two trials."""
    folder = tmp_path_factory.mktemp("search")
    run = parts.create_run_folder(folder / "run", jobs.from_mapping(JOB, folder=folder))
    assert wiring.run_inline(run, on_tick=lambda: None) == wiring.DONE
    return run


def create(
    source: RunFolder, *overrides: str, out: Path, trial: str = "best", ranks: int = 1, epochs: int = 3
) -> RetrainFolder:
    return retrain._create(source, trial, [f"training.epochs={epochs}", *overrides], n_ranks=ranks, out=out)


def live(folder: RetrainFolder, on_tick: Callable[[], None] = lambda: None) -> str:
    return retrain_life.run_inline(folder, on_tick=on_tick)


def test_a_retraining_leaves_all_that_is_to_be_known(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, out=tmp_path / "new")
    assert live(folder) == retrain_life.FINISHED
    result = folder.result()
    assert result is not None
    best = retrain.best_entry(searched.history(), searched.job())
    assert best is not None
    trial = best.trial
    assert (result["trial"], result["source"]) == (trial.number, str(searched.path.resolve()))
    assert [point["epoch"] for point in result["curve"]] == [1, 2, 3]
    assert result["curve"][-1]["accuracy"] == result["validation"]["accuracy"]
    assert result["test"]["n_samples"] == 359 and not result["test"]["retrained"]
    assert (folder.path / result["weights"]).is_file()
    assert not folder.state_file.exists()
    assert folder.curve_file.read_text().splitlines()[0].startswith("epoch,train_loss,accuracy")
    assert len(folder.curve_file.read_text().splitlines()) == 4
    assert [record["kind"] for record in folder.lives()] == ["began", "finished"]
    assert result["provenance"]["backend"] == "single"
    # The search's network and data, with a seed of its own.
    plan = folder.plan()
    assert plan.trial.descriptor == trial.descriptor
    assert plan.trial.seed != trial.seed
    assert plan.found["fitness"] == best.outcome.fitness  # type: ignore[union-attr]
    assert folder.run.job().dataset == searched.job().dataset


def test_a_stopped_retraining_goes_on_to_the_same_bits(searched: RunFolder, tmp_path: Path) -> None:
    whole = create(searched, out=tmp_path / "whole")
    assert live(whole) == retrain_life.FINISHED
    broken = create(searched, out=tmp_path / "broken")

    def stop_after(n_epochs: int) -> Callable[[], None]:
        def on_tick() -> None:
            if len(broken.curve()) == n_epochs:
                os.kill(os.getpid(), signal.SIGTERM)

        return on_tick

    for n_epochs in (1, 2):
        assert live(broken, stop_after(n_epochs)) == retrain_life.STOPPED
        assert len(broken.curve()) == n_epochs
        assert broken.result() is None
    assert live(broken) == retrain_life.FINISHED
    first, second = whole.result(), broken.result()
    assert first is not None and second is not None
    for name in ("weights_sha256", "curve", "test", "validation"):
        assert first[name] == second[name]
    assert [life["after_epoch"] for life in second["lives"]] == [0, 1, 2]


def test_a_kill_between_training_and_test_costs_the_test_alone(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, out=tmp_path / "new", epochs=1)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrainFolder, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            live(folder)
    folder.lives_file.write_text(folder.lives_file.read_text() + '{"kind": "fin')  # cut off in writing
    assert len(folder.curve()) == 1
    assert live(folder) == retrain_life.FINISHED
    assert [record["kind"] for record in folder.lives()] == ["began", "began", "finished"]


def test_a_changed_space_makes_the_network_anew(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, "space.repeats=2", "space.filters=6", "seed=5", out=tmp_path / "new", trial="1")
    plan, found = folder.plan(), searched.history().entries[1].trial
    space = parts.make_space(folder.run.job())
    assert plan.trial.genotype == found.genotype
    assert plan.trial.descriptor == space.to_descriptor(found.genotype).to_json()
    names = [layer["name"] for layer in plan.trial.descriptor["layers"]]
    assert len({name.split(".")[0] for name in names if name.startswith("cell")}) == 2 + 1 + 2
    assert plan.trial.n_parameters > found.n_parameters
    assert plan.trial.fidelity == Fidelity(epochs=3)
    assert plan.found["n_parameters"] == found.n_parameters
    # Another seed of the job is another seed of the training.
    other = create(searched, "space.repeats=2", "space.filters=6", out=tmp_path / "other", trial="1")
    assert other.plan().trial.seed != plan.trial.seed


def test_another_class_does_not_get_the_options_of_the_one_before(searched: RunFolder, tmp_path: Path) -> None:
    overrides = ("training.optimizer.name=adam", "dataset.name=digits", "dataset.fraction=0.3")
    job = create(searched, *overrides, out=tmp_path / "new").run.job()
    assert (job.training.optimizer.name, job.training.optimizer.lr) == ("adam", 0.05)
    assert "momentum" not in job.training.optimizer.options
    assert job.dataset.fraction == 0.3
    job = create(searched, "training.optimizer.lr=0.1", out=tmp_path / "same").run.job()
    assert job.training.optimizer.options["momentum"] == 0.8


def test_what_the_trial_sets_counts_unless_the_user_sets_it(searched: RunFolder) -> None:
    settings = {"training.optimizer.lr": 1e-05, "training.batch_size": 32, "simulated": 3}
    trial = replace(searched.history().entries[0].trial, settings=settings)
    job = retrain._job(searched, searched.job(), trial, ["training.batch_size=16"], n_ranks=1)
    assert (job.training.optimizer.lr, job.training.batch_size) == (1e-05, 16)


def test_shards_are_spread_over_all_ranks(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, out=tmp_path / "two", ranks=2)
    assert (folder.plan().trial.shards, folder.run.job().resources.gang) == (2, 2)
    folder = create(searched, "resources.shards=6", "training.batch_size=60", out=tmp_path / "six", ranks=3)
    assert folder.plan().trial.shards == 6
    with pytest.raises(BadInput, match="its 6 shards cannot be spread over 4 ranks; set -n to one of 1, 2, 3, 6"):
        retrain._reopen(folder.path, 4)
    assert retrain._reopen(folder.path, 2).path == folder.path
    with pytest.raises(
        BadInput, match=r"resources\.shards 6 cannot be spread over 4 ranks evenly; set a multiple of 4"
    ):
        create(searched, "resources.shards=6", "training.batch_size=60", out=tmp_path / "four", ranks=4)


@pytest.mark.parametrize(
    ("trial", "overrides", "message"),
    [
        ("7", [], "--trial 7: .* has no such trial; its trials are 0 to 1"),
        ("last", [], "--trial last: set best, or the number of a trial"),
        ("best", ["training.epoch=3"], r"training\.epoch: is not a known key"),
        ("best", ["dataset.fraction=2"], r"dataset\.fraction: 2 is wrong; set a number of at most 1"),
        ("best", ["dataset.name=didgits"], r"unknown dataset 'didgits': did you mean digits\?"),
        ("best", ["dataset"], "--set dataset: is not FIELD=VALUE"),
        ("best", ["space.blocks=2"], "space: trial [01] is no point of the space as it is set now; override only what"),
        ("best", ["space.name=conv_graph"], "space: trial [01] is no point of the space"),
        (
            "best",
            ["evaluator.name=synthetic"],
            r"evaluator\.name: networks are retrained by training, not by synthetic; add --set evaluator",
        ),
        ("best", ["dataset.name=activity_recognition"], "dataset.path"),
        ("best", ["limits.memory_gib=0.000001"], "its network does not fit this data: the network needs about"),
        ("best", ["objective.metric=perplexity"], r"objective\.metric: perplexity is not for classification data"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    searched: RunFolder, tmp_path: Path, trial: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        create(searched, *overrides, out=tmp_path / "new", trial=trial)
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_results_has_nothing_to_train(tmp_path: Path) -> None:
    run = parts.create_run_folder(tmp_path / "run", jobs.from_mapping(JOB, folder=tmp_path))
    with pytest.raises(BadInput, match="run: no trial has completed, so there is no network to train"):
        create(run, out=tmp_path / "new")
    with pytest.raises(BadInput, match="has no such trial; it has none"):
        create(run, out=tmp_path / "new", trial="0")
    assert not (tmp_path / "new").exists()


def test_folders_are_not_mixed_up(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, out=tmp_path / "new")
    with pytest.raises(BadInput, match=r"already holds a retraining; continue it with: nord-hpc retrain .*new"):
        create(searched, out=folder.path)
    with pytest.raises(BadInput, match="already holds a run"):
        create(searched, out=searched.path)
    with pytest.raises(BadInput, match="is a retraining already and goes on as it was set; leave all options but -n"):
        retrain.retrain(folder.path, epochs=4)
    with pytest.raises(BadInput, match="there is no such run folder"):
        retrain.retrain(tmp_path / "nowhere")
    folder.plan_file.write_text(json.dumps({"trial": {}}))
    with pytest.raises(StoreError, match=r"retrain\.json: cannot be read"):
        retrain.retrain(folder.path)


def test_a_network_that_fails_says_why(searched: RunFolder, tmp_path: Path) -> None:
    folder = create(searched, "training.optimizer.lr=1e30", out=tmp_path / "new")
    assert live(folder) == retrain_life.FAILED
    assert folder.result() is None
    assert folder.lives()[-1]["reason"].startswith("the training loss is not finite in epoch 1, step")
