"""The folder of a retraining: a run folder's job, code, weights and logs, with one trial, its lives and its result.

- retrain.json: the trial as it is trained here, and where it comes from
- lives.jsonl: a line when a process begins to work on it, and one when it ends other than by being killed
- result.json, curve.csv: once it has been trained and tested
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nord_hpc.errors import BadInput, StoreError
from nord_hpc.job import Job
from nord_hpc.store.history import trial_from_json, trial_to_json
from nord_hpc.store.run_folder import RunFolder, write_atomically
from nord_hpc.trial import Json, Trial

PLAN_FILE = "retrain.json"


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """What is trained.

    Attributes:
        trial: as it is trained here: network, seed and costs of this training.
        source: run folder of the search.
        chosen: how the trial was named, "best" or its number.
        found: what the search has of it: space, dataset, epochs, fitness, metrics, n_parameters, multiply_adds, test.
    """

    trial: Trial
    source: str
    chosen: str
    found: dict[str, Json]


class RetrainFolder:
    """The paths of a retraining, and what is read from them as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunFolder(path)
        self.plan_file = path / PLAN_FILE
        self.lives_file = path / "lives.jsonl"
        self.result_file = path / "result.json"
        self.curve_file = path / "curve.csv"

    @classmethod
    def is_one(cls, path: Path) -> bool:
        return (path / PLAN_FILE).is_file()

    @classmethod
    def create(cls, path: Path, job: Job, plan: RetrainPlan) -> RetrainFolder:
        """Make the folder of a new retraining.

        Raises:
            BadInput: it holds a run or a retraining already, or cannot be written.
        """
        if cls.is_one(path):
            raise BadInput(f"{path}: already holds a retraining; continue it with: nord-hpc retrain {path}")
        RunFolder.create(path, job)
        folder = cls(path)
        record = {
            "trial": trial_to_json(plan.trial),
            "source": plan.source,
            "chosen": plan.chosen,
            "found": plan.found,
        }
        write_atomically(folder.plan_file, _text(record))
        return folder

    def plan(self) -> RetrainPlan:
        try:
            record = json.loads(self.plan_file.read_text(encoding="utf-8"))
            return RetrainPlan(**{**record, "trial": trial_from_json(record["trial"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.plan_file}: cannot be read: {error}") from error

    @property
    def weights_file(self) -> Path:
        return self.run.weights_file(self.plan().trial.number)

    @property
    def state_file(self) -> Path:
        """The state after the newest epoch, as the training evaluator leaves it."""
        return self.run.weights / f"state-{self.plan().trial.number}.safetensors"

    def curve(self) -> list[dict[str, Json]]:
        """Epoch reports so far, from the newest state; empty where there is none."""
        import safetensors

        try:
            with safetensors.safe_open(self.state_file, framework="numpy") as file:
                entries = list((file.metadata() or {}).values())
            curve: list[dict[str, Json]] = json.loads(entries[0])["curve"]
        except (OSError, ValueError, LookupError, safetensors.SafetensorError):
            return []  # absent, or damaged, which the training itself will say
        return curve

    def add_life(self, record: dict[str, Json]) -> None:
        """Append a line about a life, durably."""
        line = json.dumps(record, allow_nan=False) + "\n"
        # On a line of its own, also behind one that a kill has cut off.
        if self.lives_file.exists() and not self.lives_file.read_bytes().endswith(b"\n"):
            line = "\n" + line
        with self.lives_file.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def lives(self) -> list[dict[str, Json]]:
        """The lines about lives; one that a kill has cut off is left out."""
        if not self.lives_file.exists():
            return []
        records = []
        for line in self.lives_file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result; the state is needed no more."""
        curve = result["curve"]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(curve[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
        write_atomically(self.curve_file, text.getvalue().encode())
        write_atomically(self.result_file, _text(result))
        self.state_file.unlink(missing_ok=True)

    def result(self) -> dict[str, Json] | None:
        """What came of it; None while it is not finished."""
        if not self.result_file.is_file():
            return None
        found: dict[str, Json] = json.loads(self.result_file.read_text(encoding="utf-8"))
        return found


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
