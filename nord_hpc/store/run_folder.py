"""The run folder: every path in it comes from here. Made once per search, opened by each resume and each reader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nord_hpc import job as jobs
from nord_hpc import registry
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.job import Job, Named
from nord_hpc.store import journal
from nord_hpc.store.history import History
from nord_hpc.trial import Json

PLUGIN_SECTIONS = ("dataset", "space", "strategy", "evaluator")

FREE_TO_CHANGE = (
    "budget",
    "checkpoint",
    "dataset.path",
    "dataset.stage",
    "limits.grace_seconds",
    "limits.lost_host_seconds",
    "limits.restarts",
    "limits.trial_seconds",
    "objective.test",
    "resources.backend",
    "resources.fault_tolerance",
    "resources.spares",
)
"""Fields of the job that a resume may change: no recorded result depends on them."""


LEFTOVER_SECONDS = 600.0


class RunFolder:
    """The paths of a run, and what is read from them as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_file = path / "job.yaml"
        self.journal_file = path / "journal"
        self.snapshot_file = path / "search.h5"
        self.first_candidates_file = path / "first_candidates.json"
        self.dataset_file = path / "dataset.json"
        self.slurm_file = path / "slurm.json"
        self.batch_script = path / "search.sbatch"
        self.report_file = path / "report.html"
        self.code = path / "code"
        self.weights = path / "weights"
        self.logs = path / "logs"

    @classmethod
    def create(cls, path: Path, job: Job) -> RunFolder:
        """Make the folder of a new run; the job's plug-in files and relative paths move along.

        Raises:
            BadInput: it holds a run already, or cannot be written.
        """
        folder = cls(path)
        if folder.job_file.exists() or folder.journal_file.exists():
            raise BadInput(f"{path}: already holds a run; continue it with: nord-hpc resume {path}")
        try:
            for needed in (path, folder.code, folder.weights, folder.logs):
                needed.mkdir(parents=True, exist_ok=True)
            moved = folder._with_own_code(job)
            write_atomically(folder.job_file, moved.to_yaml().encode())
        except OSError as error:
            raise BadInput(
                f"{path}: the run folder cannot be written: {error.strerror}; set --out to another"
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            BadInput: there is none.
        """
        folder = cls(path)
        if not path.is_dir():
            raise BadInput(f"{path}: there is no such run folder")
        if not folder.job_file.is_file() or not folder.logs.is_dir():
            raise BadInput(f"{path}: is not a run folder: it has no job.yaml and logs")
        return folder

    def job(self, *, overrides: tuple[str, ...] = ()) -> Job:
        return jobs.load(self.job_file, overrides=overrides)

    def recorded_job(self) -> Job:
        """The job as it stands in the folder, for those who only read: no code of the run is imported.

        Raises:
            BadInput: the file is damaged, or of another version.
        """
        try:
            return Job.model_validate(yaml.safe_load(self.job_file.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise BadInput(f"{self.job_file}: {explain(error, models=(Job,))}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"{self.job_file}: cannot be read: {' '.join(str(error).split())}") from error

    def save_job(self, job: Job) -> None:
        write_atomically(self.job_file, job.to_yaml().encode())

    def history(self) -> History:
        """What the journal tells at this moment, also while the search runs."""
        return History(journal.read(self.journal_file)) if self.journal_file.exists() else History()

    def keep_data(self, data: dict[str, Json], *, accept_changes: bool) -> None:
        """Write what is known of the data beside the results; those of an earlier life must have been the same.

        Args:
            data: with a "fingerprint".

        Raises:
            BadInput: they have changed.
        """
        if self.dataset_file.is_file():
            before = json.loads(self.dataset_file.read_text(encoding="utf-8"))
            if before["fingerprint"] == data["fingerprint"]:
                return
            if not accept_changes:
                raise BadInput(
                    f"{self.path}: the data of {data['name']} are not those that the search began with (other "
                    f"fingerprint than in dataset.json); restore them, start a new run, or accept with --accept-changes"
                )
        write_atomically(self.dataset_file, json.dumps(data, indent=2, allow_nan=False).encode())

    def weights_file(self, number: int) -> Path:
        return self.weights / f"trial-{number}.safetensors"

    def drop_weights(self, number: int) -> None:
        self.weights_file(number).unlink(missing_ok=True)

    def code_digests(self) -> dict[str, str]:
        """SHA-256 of each plug-in file."""
        files = sorted(self.code.glob("*.py")) if self.code.is_dir() else []
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def _copy_code(self, source: Path) -> str:
        """Copy a plug-in file to code/; returns its name there, another one where a different file has it already."""
        target = self.code / source.name
        if target.exists() and target.read_bytes() != source.read_bytes():
            target = self.code / f"{source.stem}_{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}.py"
        shutil.copyfile(source, target)
        return target.name

    def _with_own_code(self, job: Job) -> Job:
        """Copy the plug-in files to code/, and make the job name these copies and absolute data paths."""
        data = job.to_json()
        for kind in PLUGIN_SECTIONS:
            section: Named = getattr(job, kind)
            file = registry.plugin_file(section.name)
            if file is not None:
                copy = self._copy_code((job.folder / file).resolve())
                data[kind]["name"] = f"code/{copy}:{section.name.rpartition(':')[2]}"
        backend = job.resources.backend
        file = registry.plugin_file(backend)
        if file is not None:
            copy = self._copy_code((job.folder / file).resolve())
            data["resources"]["backend"] = f"code/{copy}:{backend.rpartition(':')[2]}"
        data["code"] = [f"code/{self._copy_code((job.folder / file).resolve())}" for file in job.code]
        if job.dataset.path is not None:
            data["dataset"]["path"] = str((job.folder / job.dataset.path).resolve())
        return jobs.from_mapping(data, folder=self.path, source=str(self.job_file))


def default_path(name: str) -> Path:
    """Where the run folder of a search goes that was not told."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the fields that differ between two resolved jobs and must not change between lives of a run."""
    return sorted(name for name in _different(before, after, "") if not name.startswith(FREE_TO_CHANGE))


def _different(before: Any, after: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        fields: list[str] = []
        for key in {**before, **after}:
            fields += _different(before.get(key), after.get(key), f"{name}.{key}" if name else key)
        return fields
    return [] if before == after else [name]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, fsync it, rename it: readers see the old or the new one, whole."""
    _remove_leftovers(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    journal.sync_folder(path.parent)


def _remove_leftovers(path: Path) -> None:
    """What kills in the middle of earlier writes left behind; younger ones may be another process's own."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
