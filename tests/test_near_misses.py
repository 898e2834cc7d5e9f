"""What is misspelt in a job file is named with what it is close to, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nord_hpc import job as jobs
from nord_hpc import registry
from nord_hpc.cli import wiring
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain

JOB: dict[str, Any] = {
    "name": "job",
    "space": {"name": "conv_graph"},
    "strategy": {"name": "random_search"},
    "budget": {"trials": 5},
}
KEY = "is not a known key; remove it, or check its spelling and indentation"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainng.epochs=2", f"trainng: {KEY} (did you mean training?)"),
        ("training.epoch=3", f"training.epoch: {KEY} (did you mean epochs?)"),
        ("resources.shard=2", f"resources.shard: {KEY} (did you mean shards?)"),
        ("evaluator.head.layer=[3]", f"evaluator.head.layer: {KEY} (did you mean layers?)"),
        ("space.max_layer=3", f"space.max_layer: {KEY} (did you mean max_layers?)"),
        ("dataset.fracton=0.5", f"dataset.fracton: {KEY} (did you mean fraction?)"),
        ("order.mode=virtul", "\"virtul\" is not a choice; set 'virtual' or 'arrival' (did you mean virtual?)"),
        ("resources.backend=horovd", "or FILE.py:CLASS (did you mean horovod?)"),
        ("strategy.name=regularised_evolution", "did you mean regularized_evolution?"),
        ("space.name=nasbench102", "did you mean nasbench"),
        ("dataset.name=digit", "did you mean digits?"),
        ("evaluator.name=trainig", "did you mean training?"),
        ("training.optimizer.name=adm", "set one of adam, adamw, rmsprop, sgd (did you mean adam?)"),
        ("training.optimizer.weight_decy=0.1", "did you mean weight_decay?"),
        ("objective.metric=accurcy", "did you mean accuracy?"),
    ],
)
def test_the_close_one_is_named(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(str(JOB))
    with pytest.raises(BadInput) as caught:
        wiring.check(jobs.load(file, overrides=[override]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["foo=1", "training.zzz=1", "order.mode=q"])
def test_what_is_close_to_nothing_gets_no_hint(tmp_path: Path, override: str) -> None:
    with pytest.raises(BadInput) as caught:
        jobs.from_mapping(jobs.read_mapping(job_file(tmp_path), overrides=[override]), folder=tmp_path)
    assert "did you mean" not in str(caught.value)


def job_file(folder: Path) -> Path:
    file = folder / "job.yaml"
    file.write_text(str(JOB))
    return file


def test_a_misspelt_section_says_more_than_a_missing_one(tmp_path: Path) -> None:
    data = {"budgets" if key == "budget" else key: value for key, value in JOB.items()}
    with pytest.raises(BadInput, match=r"job: budgets: .* \(did you mean budget\?\) \(and 1 more\)"):
        jobs.from_mapping(data, folder=tmp_path)


def test_hints_come_from_what_was_validated_and_not_from_the_job() -> None:
    """A model of another kind has keys of its own: `seeds` there is not the job's `seed`."""
    from pydantic import BaseModel, ConfigDict, ValidationError

    class Other(BaseModel):
        model_config = ConfigDict(extra="forbid")
        n_seeds: int = 1

    with pytest.raises(ValidationError) as caught:
        Other(seeds=3)  # type: ignore[call-arg]
    assert "did you mean" not in explain(caught.value)
    assert explain(caught.value, models=(Other,)).endswith("(did you mean n_seeds?)")


def test_a_misspelt_class_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class MySpace:\n    pass\n")
    with pytest.raises(BadInput, match=r"defines no MySpce \(did you mean MySpace\?\)"):
        registry.resolve("space", "mine.py:MySpce", folder=tmp_path)
