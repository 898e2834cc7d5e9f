"""The evaluator that trains, on one rank."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import candidates
import pytest

from nord_hpc.errors import BadInput, Infeasible, TrialFailed
from nord_hpc.trial import Fidelity, Outcome, TrialState

ALONE, FREE = candidates.Alone(), candidates.Free()


def evaluate(tmp_path: Path, net: Any, *, seed: int = 11, keep: bool = False, **sections: Any) -> Outcome:
    made = candidates.make_job(**sections)
    evaluator = candidates.make_evaluator(made, tmp_path)
    trial = candidates.make_trial(made, net, seed=seed)
    return evaluator.evaluate(trial, gang=ALONE, control=FREE, keep_above=None if keep else math.inf)


def test_outcome(tmp_path: Path) -> None:
    outcome = evaluate(tmp_path, candidates.descriptor())
    assert outcome.state is TrialState.COMPLETED
    assert outcome.fitness == outcome.metrics["accuracy"]
    assert outcome.fitness is not None
    assert outcome.fitness > 0.3
    assert outcome.metrics["n_parameters"] == (9 * 8 + 8) + 16 + (8 * 36 * 10 + 10)
    assert outcome.metrics["steps"] == 2 * outcome.metrics["samples_used"] // 32
    curve = outcome.metrics["curve"]
    assert [point["epoch"] for point in curve] == [1, 2]
    assert curve[1]["accuracy"] == outcome.fitness
    assert curve[1]["train_loss"] == outcome.metrics["train_loss"] < curve[0]["train_loss"]
    assert list(tmp_path.iterdir()) == []


def test_names_of_layers_change_no_bit(tmp_path: Path) -> None:
    first = evaluate(tmp_path, candidates.descriptor())
    renamed = evaluate(tmp_path, candidates.descriptor(prefix="other ", dead_branch=True))
    assert renamed.metrics == first.metrics
    assert evaluate(tmp_path, candidates.descriptor(), seed=12).metrics != first.metrics


def test_untrained_network_can_be_scored(tmp_path: Path) -> None:
    outcome = evaluate(tmp_path, candidates.descriptor(), training={"epochs": 0})
    assert (outcome.metrics["steps"], outcome.metrics["train_loss"]) == (0, None)
    assert [point["epoch"] for point in outcome.metrics["curve"]] == [0]


def test_minimized_objective(tmp_path: Path) -> None:
    objective = {"metric": "cross_entropy", "direction": "minimize"}
    outcome = evaluate(tmp_path, candidates.descriptor(), objective=objective)
    assert outcome.fitness == outcome.metrics["cross_entropy"] > 0


def test_objective_that_needs_all_samples_at_once(tmp_path: Path) -> None:
    outcome = evaluate(tmp_path, candidates.descriptor(), objective={"metric": "auc"})
    assert outcome.fitness == outcome.metrics["auc"]
    assert 0.6 < outcome.metrics["auc"] <= 1
    assert "auc" not in evaluate(tmp_path, candidates.descriptor()).metrics


def test_divergence_has_no_fitness(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match="training loss is not finite in epoch 1") as caught:
        evaluate(tmp_path, candidates.descriptor(), training={"optimizer": {"name": "sgd", "lr": 1e30}})
    assert caught.value.kind == "not_finite"


def test_head_of_the_job(tmp_path: Path) -> None:
    head = {"layers": [6], "features": "pooled", "dropout": 0.1}
    outcome = evaluate(tmp_path, candidates.descriptor(), evaluator={"head": head})
    assert outcome.metrics["n_parameters"] == (9 * 8 + 8) + 16 + (8 * 6 + 6) + (6 * 10 + 10)


def test_test_uses_the_kept_weights(tmp_path: Path) -> None:
    made = candidates.make_job()
    evaluator = candidates.make_evaluator(made, tmp_path)
    trial = candidates.make_trial(made, candidates.descriptor(), number=4)
    evaluator.evaluate(trial, gang=ALONE, control=FREE, keep_above=None)
    assert [path.name for path in tmp_path.iterdir()] == ["trial-4.safetensors"]
    first = evaluator.test(trial, control=FREE)
    assert first["retrained"] is False
    assert first["n_samples"] == evaluator.dataset.info.n_test
    hits = first["accuracy"] * first["n_samples"]
    assert hits == pytest.approx(round(hits), abs=1e-9)
    assert first["accuracy"] > 0.3


@pytest.mark.parametrize(("bound", "kept"), [(0.0, True), (1.5, False)])
@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy"])
def test_only_weights_above_the_bound_are_kept(tmp_path: Path, metric: str, bound: float, kept: bool) -> None:
    objective = {"metric": metric, "direction": "maximize" if metric == "accuracy" else "minimize"}
    made = candidates.make_job(objective=objective)
    evaluator = candidates.make_evaluator(made, tmp_path)
    trial = candidates.make_trial(made, candidates.descriptor())
    # The score is the accuracy, 0 to 1, or the negated cross entropy, which is between -10 and 0.
    keep_above = bound if metric == "accuracy" else bound - (10 if kept else 0)
    evaluator.evaluate(trial, gang=ALONE, control=FREE, keep_above=keep_above)
    assert [path.name for path in tmp_path.iterdir()] == (["trial-0.safetensors"] if kept else [])


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another trial"])
def test_lost_weights_are_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    made = candidates.make_job()
    evaluator = candidates.make_evaluator(made, tmp_path)
    trial = candidates.make_trial(made, candidates.descriptor())
    evaluator.evaluate(trial, gang=ALONE, control=FREE, keep_above=None)
    expected = evaluator.test(trial, control=FREE)
    path = tmp_path / "trial-0.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(content[:100])
    else:
        other = candidates.make_trial(made, candidates.descriptor(), seed=99)
        evaluator.evaluate(other, gang=ALONE, control=FREE, keep_above=None)
    with caplog.at_level(logging.WARNING, logger="nord_hpc"):
        found = evaluator.test(trial, control=FREE)
    assert "trial 0 is trained again for its test" in caplog.text
    assert found == {**expected, "retrained": True}
    assert path.read_bytes() == content


def test_examination(tmp_path: Path) -> None:
    made = candidates.make_job()
    evaluator = candidates.make_evaluator(made, tmp_path)
    info = evaluator.dataset.info
    found = evaluator.examine(candidates.descriptor(), made.full_fidelity)
    assert (found.n_parameters, found.multiply_adds) == (2986, 36 * 9 * 8 + 8 * 36 * 10)
    steps = info.n_train // 32
    layers = 3 + 2  # the head flattens and is dense
    microseconds = 2 * 2 * steps * (300 + 60 * layers)
    samples = 3 * 2 * steps * 32 + 2 * info.n_validation
    assert found.cost == round(microseconds + found.multiply_adds * samples / 4000)
    scoring = 500 * (2 * 8 * 36) * 4  # the largest step has as much input as output
    assert found.memory_bytes == scoring + 4 * 4 * 2986
    assert evaluator.examine(candidates.descriptor(dead_branch=True), made.full_fidelity) == found
    half = evaluator.examine(candidates.descriptor(), Fidelity(epochs=2, fraction=0.5))
    assert half.cost < found.cost
    assert evaluator.examine(candidates.descriptor(), Fidelity(epochs=0)).cost >= 1


def test_too_much_memory_is_infeasible(tmp_path: Path) -> None:
    evaluator = candidates.make_evaluator(candidates.make_job(limits={"memory_gib": 1e-6}), tmp_path)
    with pytest.raises(Infeasible, match=r"needs about \d+\.\d\d GiB to train, more than limits\.memory_gib 1e-06"):
        evaluator.examine(candidates.descriptor(), Fidelity(epochs=1))


def test_share_too_small_for_the_shards_is_infeasible(tmp_path: Path) -> None:
    made = candidates.make_job(resources={"shards": 8, "gang": 1})
    evaluator = candidates.make_evaluator(made, tmp_path)
    with pytest.raises(Infeasible, match=r"training samples \(fraction 0\.01 of \d+\) do not give each of 8 shards"):
        evaluator.examine(candidates.descriptor(), Fidelity(epochs=1, fraction=0.01))


def test_data_too_small_for_the_shards_is_refused(tmp_path: Path) -> None:
    made = candidates.make_job(
        resources={"shards": 512, "gang": 1}, training={"batch_size": 1024}, dataset={"fraction": 0.3}
    )
    evaluator = candidates.make_evaluator(made, tmp_path)
    with pytest.raises(BadInput, match=r"dataset: \d+ training samples do not give each of 512 shards 2 samples; set"):
        evaluator.examine(candidates.descriptor(), Fidelity(epochs=1))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("objective", {"metric": "acc"}, r"objective\.metric: unknown metric 'acc'"),
        ("training", {"optimizer": {"name": "adan"}}, r"training\.optimizer\.name: unknown optimizer 'adan'"),
    ],
)
def test_bad_settings_are_refused_at_once(tmp_path: Path, section: str, values: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        candidates.make_evaluator(candidates.make_job(**{section: values}), tmp_path)


def test_metric_of_another_task_is_refused_with_the_data(tmp_path: Path) -> None:
    objective = {"metric": "mean_squared_error", "direction": "minimize"}
    evaluator = candidates.make_evaluator(candidates.make_job(objective=objective), tmp_path)
    with pytest.raises(BadInput, match=r"mean_squared_error is not for classification data; set one of accuracy"):
        evaluator.examine(candidates.descriptor(), Fidelity(epochs=1))


def test_examination_needs_no_torch() -> None:
    code = (
        "import sys, candidates; from pathlib import Path; from nord_hpc.trial import Fidelity; "
        "made = candidates.make_evaluator(candidates.make_job(), Path()); "
        "print(made.examine(candidates.descriptor(), Fidelity(epochs=1)).n_parameters, 'torch' in sys.modules)"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(here), str(here.parents[1])]}; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "2986 False"


def test_latency_is_measured_on_demand_and_marked_as_not_repeatable(tmp_path: Path) -> None:
    plain = evaluate(tmp_path, candidates.descriptor())
    assert "latency_ms" not in plain.metrics and "not_repeatable" not in plain.provenance
    outcome = evaluate(tmp_path, candidates.descriptor(), evaluator={"latency": True})
    assert 0 < outcome.metrics["latency_ms"] < 1000
    assert outcome.provenance["not_repeatable"] == ["latency_ms"]
    assert {name: value for name, value in outcome.metrics.items() if name != "latency_ms"} == plain.metrics
