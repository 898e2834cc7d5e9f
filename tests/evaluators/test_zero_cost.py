"""The evaluator of zero-cost scores: as objective, as lowest fidelity beside training, and in whole searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nord_hpc import job as jobs
from nord_hpc import proxies
from nord_hpc.cli import wiring
from nord_hpc.cluster import parts
from nord_hpc.cluster.transport_inline import InlineGang
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, TrialFailed
from nord_hpc.evaluators.zero_cost import ScoreName, ZeroCostEvaluator
from nord_hpc.job import Job
from nord_hpc.trial import Fidelity, Trial

UNTRAINED, FULL = Fidelity(epochs=0), Fidelity(epochs=1)


class NoControl:
    def check(self) -> None: ...


def job_of(tmp_path: Path, **sections: Any) -> Job:
    base = {
        "name": "scores",
        "dataset": {"name": "digits", "fraction": 0.2},
        "space": {"name": "conv_graph", "max_layers": 3, "channels": [4, 8]},
        "strategy": {"name": "random_search"},
        "evaluator": {"name": "zero_cost", "scores": ["naswot", "snip"]},
        "training": {"epochs": 1},
        "budget": {"trials": 6},
    }
    return jobs.from_mapping({**base, **sections}, folder=tmp_path)


def evaluator_of(job: Job) -> Any:
    return parts.make_evaluator(job, job.folder)


def network(channels: int = 4) -> NeuralDescriptor:
    descriptor = NeuralDescriptor()
    descriptor.add_layer_sequential("Conv2d", {"out_channels": channels, "kernel_size": 3})
    descriptor.add_layer_sequential("ReLU")
    return descriptor


def trial_of(descriptor: NeuralDescriptor, fidelity: Fidelity = UNTRAINED, *, seed: int = 1) -> Trial:
    return Trial(0, None, (), descriptor.to_json(), descriptor.canonical_hash(), fidelity, seed)


def evaluate(evaluator: Any, trial: Trial) -> Any:
    gang = InlineGang(lambda _: SingleGang())
    return evaluator.evaluate(trial, gang=gang, control=NoControl(), keep_above=None)


def test_a_score_as_objective_is_the_fitness_at_any_fidelity(tmp_path: Path) -> None:
    evaluator = evaluator_of(job_of(tmp_path, objective={"metric": "synflow"}))
    outcomes = [evaluate(evaluator, trial_of(network(), fidelity)) for fidelity in (UNTRAINED, FULL)]
    assert outcomes[0].metrics == outcomes[1].metrics
    assert list(outcomes[0].metrics) == ["synflow", "naswot", "snip", "n_parameters", "multiply_adds"]
    assert outcomes[0].fitness == outcomes[0].metrics["synflow"] > 0
    assert list(tmp_path.iterdir()) == []
    # The same network and batch as training would have, and the same batch for all trials.
    training = evaluator._training
    x, y = evaluator._example("train")
    assert x.shape == (64, 1, 8, 8) and len(set(map(bytes, x.numpy()))) == 64
    expected = proxies.score_network(
        training.untrained_network(trial_of(network())), x, y, ["synflow", "naswot", "snip"]
    )
    assert outcomes[0].metrics == expected
    other = evaluate(evaluator, trial_of(network(), seed=2))
    assert other.metrics["snip"] != expected["snip"]


def test_sizes_may_be_the_objective_too_and_small(tmp_path: Path) -> None:
    evaluator = evaluator_of(job_of(tmp_path, objective={"metric": "n_parameters", "direction": "minimize"}))
    assert evaluate(evaluator, trial_of(network())).fitness == 9 * 4 + 4 + 36 * 4 * 10 + 10


def test_beside_training_only_trials_without_epochs_have_a_score_for_fitness(tmp_path: Path) -> None:
    evaluator = evaluator_of(job_of(tmp_path))
    scored, trained = (evaluate(evaluator, trial_of(network(), fidelity)) for fidelity in (UNTRAINED, FULL))
    assert scored.fitness == scored.metrics["naswot"]
    assert trained.fitness == trained.metrics["accuracy"] and 0 <= trained.fitness <= 1
    assert trained.metrics["naswot"] == scored.metrics["naswot"]
    assert len(trained.metrics["curve"]) == 1
    plain = evaluator_of(job_of(tmp_path, evaluator={"name": "training"}))
    assert evaluate(plain, trial_of(network(), FULL)).fitness == trained.fitness
    assert evaluator.test(trial_of(network(), FULL), control=NoControl())["n_samples"] == 359
    assert set(evaluator.test(trial_of(network()), control=NoControl())) == {"naswot", "snip", *proxies.SIZES}


def test_a_job_that_minimizes_gets_good_scores_as_small_fitness(tmp_path: Path) -> None:
    objective = {"metric": "cross_entropy", "direction": "minimize"}
    outcome = evaluate(evaluator_of(job_of(tmp_path, objective=objective)), trial_of(network()))
    assert outcome.fitness == -outcome.metrics["naswot"]


def test_scoring_is_predicted_to_cost_less_than_training(tmp_path: Path) -> None:
    evaluator = evaluator_of(job_of(tmp_path))
    training = evaluator_of(job_of(tmp_path, evaluator={"name": "training"}))
    scored, trained = (evaluator.examine(network(), fidelity) for fidelity in (UNTRAINED, FULL))
    plain = training.examine(network(), FULL)
    assert trained.cost == scored.cost + plain.cost and 0 < scored.cost < plain.cost
    assert (scored.n_parameters, scored.multiply_adds) == (plain.n_parameters, plain.multiply_adds)


def test_a_score_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    descriptor = network()
    for _ in range(3):
        descriptor.add_layer_sequential("ScaleLayer", {"scale": 1e150})
    evaluator = evaluator_of(job_of(tmp_path, objective={"metric": "synflow"}))
    with pytest.raises(TrialFailed, match="the score synflow is not finite"):
        evaluate(evaluator, trial_of(descriptor))


def test_data_with_numbers_to_predict_can_be_scored(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=x[:, :1])
    dataset = {"name": "arrays", "path": "data.npz", "task": "regression"}
    job = job_of(tmp_path, dataset=dataset, objective={"metric": "snip"}, evaluator={"name": "zero_cost"})
    descriptor = NeuralDescriptor()
    descriptor.add_layer_sequential("Linear", {"out_features": 3})
    assert evaluate(evaluator_of(job), trial_of(descriptor)).fitness > 0


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"training\.epochs: 0 trains nothing, so there is no accuracy; set objective"):
        evaluator_of(job_of(tmp_path, training={"epochs": 0}))
    with pytest.raises(ValidationError, match="scores snip, snip names one twice; name each once"):
        ZeroCostEvaluator.Options(scores=("snip", "snip"))
    with pytest.raises(BadInput, match=r"evaluator\.scores"):
        job_of(tmp_path, evaluator={"name": "zero_cost", "scores": ["fisher"]})
    assert set(ScoreName.__args__) == {*proxies.NAMES, *proxies.SIZES}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("process_as_it_was")
def test_a_screened_search_trains_the_best_of_each_group(tmp_path: Path) -> None:
    job = job_of(
        tmp_path,
        strategy={"name": "screened", "candidates": 3, "strategy": {"name": "random_search"}},
        budget={"trials": 16},
        order={"virtual_gangs": 2, "run_ahead": 0},
    )
    folder = parts.create_run_folder(tmp_path / "run", job)
    assert wiring.run_inline(folder, on_tick=lambda: None) == wiring.DONE
    entries = folder.history().entries
    trained = [entry for entry in entries.values() if entry.trial.fidelity == FULL]
    assert len(trained) >= 3
    scores = {n: e.outcome.fitness for n, e in entries.items() if e.trial.fidelity == UNTRAINED and e.outcome}
    # Candidates are asked for group by group.
    numbers = sorted(scores)
    groups = {number: numbers[at - at % 3 : at - at % 3 + 3] for at, number in enumerate(numbers)}
    for entry in trained:
        (candidate,) = entry.trial.parents
        assert entry.trial.genotype == entries[candidate].trial.genotype
        assert len(groups[candidate]) == 3
        assert scores[candidate] == max(scores[number] for number in groups[candidate])
    best = folder.history().best(maximize=True, fidelity=job.full_fidelity)
    assert best is not None and best.outcome is not None and best.outcome.fitness <= 1
    assert folder.history().test is not None
