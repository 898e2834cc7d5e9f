"""Search: a search that is put together in a script, with the user's own classes; jobs and the run folder do the rest.

What is given becomes a job, as if it stood in a job file, so it is checked, kept and continued like one.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nord_hpc import job as jobs
from nord_hpc import registry, sources
from nord_hpc.cli import wiring
from nord_hpc.cli.progress import ProgressView, view_on_stderr
from nord_hpc.cluster import launch, parts
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.store.run_folder import RunFolder, default_path
from nord_hpc.store.summary import rows, summarize
from nord_hpc.trial import Json

if TYPE_CHECKING:
    from nord_hpc.cluster.transport_mpi import World

log = logging.getLogger(__name__)

Section = str | type | Mapping[str, Any]
"""A name or a class, or a mapping with one of both as "name" and with its options."""

CLASS_SECTIONS = ("dataset", "space", "strategy", "evaluator")
FRESH_PROCESS_SECONDS = 300.0
"""For a new process to import the user's files."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        folder: its run folder.
        summary: what `nord-hpc status DIR --json` prints.
        trials: what `nord-hpc trials DIR --json` prints.
    """

    folder: Path
    summary: dict[str, Json]
    trials: list[dict[str, Json]]

    @property
    def state(self) -> str:
        """finished, or interrupted by a signal: `nord-hpc resume DIR` goes on."""
        return str(self.summary["state"])

    @property
    def best(self) -> NeuralDescriptor | None:
        """The network of best fitness; None if no trial was completed."""
        best = self.summary["best"]
        return None if best is None else NeuralDescriptor.from_json(self.trials[best["trial"]]["descriptor"])

    @property
    def best_fitness(self) -> float | None:
        best = self.summary["best"]
        return None if best is None else best["fitness"]


class Search:
    """A search, given as a job file gives it; the sections and their keys are those of a job file.

    Each section is a mapping. Where it chooses a class by name, the class itself may stand for the name, also one that
    the start script defines; a section without options may be the name or class alone. The files of the user's classes
    are copied to the run folder, so that `nord-hpc resume DIR` continues without the script. A process that resumes
    imports the start script, too, so what a script does when it is started belongs under
    `if __name__ == "__main__":`.

    Args:
        space, strategy, budget: what a job file must have.
        name: of the run.
        seed: of the search.
        code: further files that classes of layers come from, or these classes.
        folder: that relative paths and files are looked for in; that of the start script if None.
        sections: all other sections of a job file: dataset, evaluator, training, objective, candidates, resources,
            order, limits, checkpoint, cost.
    """

    def __init__(
        self,
        *,
        space: Section,
        strategy: Section,
        budget: Mapping[str, Any] | BaseModel,
        name: str = "search",
        seed: int = 0,
        dataset: Section | None = None,
        evaluator: Section | None = None,
        training: Mapping[str, Any] | BaseModel | None = None,
        objective: Mapping[str, Any] | BaseModel | None = None,
        resources: Mapping[str, Any] | BaseModel | None = None,
        code: Sequence[str | Path | type] = (),
        folder: str | Path | None = None,
        **sections: Any,
    ) -> None:
        given = {
            "name": name,
            "seed": seed,
            "dataset": dataset,
            "space": space,
            "strategy": strategy,
            "evaluator": evaluator,
            "training": training,
            "objective": objective,
            "budget": budget,
            "resources": resources,
            **sections,
        }
        self._given = {key: value for key, value in given.items() if value is not None}
        self._code = tuple(code)
        script = sources.running_script()
        self._folder = Path(folder) if folder is not None else script.parent if script else Path.cwd()

    def job(self) -> Job:
        """The job that this search is, validated.

        Raises:
            BadInput: one line that says what is wrong and what to set, as for a job file.
        """
        data = {key: _plain(value, where=key) for key, value in self._given.items()}
        for kind in CLASS_SECTIONS:
            if isinstance(data.get(kind), str):
                data[kind] = {"name": data[kind]}
        files = [_code_file(item) for item in self._code]
        data["code"] = [*data.get("code", ()), *dict.fromkeys(files)]
        job = jobs.from_mapping(data, folder=self._folder, source="Search")
        _check_file_names(job)
        return job

    def run(self, out: str | Path | None = None) -> SearchResult:
        """Run the search: on the ranks that mpirun or srun has started, each of which calls this, or in this process.

        Under a launcher only rank 0 returns; the others work for it and then end, so that what follows is done once.

        Args:
            out: the run folder; runs/NAME-TIME if None.

        Raises:
            BadInput: as from `job`, from files that a new process could not read again, and from data that do not fit.
                Nothing has been written then.
        """
        importing = sources.file_being_imported()
        if importing is not None:
            raise BadInput(
                f"{importing.name} starts a search when it is imported, and workers and resumes import it for its "
                f'classes; put what it starts under: if __name__ == "__main__":'
            )
        if launch.under_launcher():
            return self._run_in_world(out)
        launch.check_world(1)
        return self._run_inline(out)

    def _run_inline(self, out: str | Path | None) -> SearchResult:
        folder = self._prepare(out, n_workers=1)
        view = view_on_stderr(folder)
        with _restored_process():
            try:
                wiring.run_inline(folder, on_tick=view.update)
            finally:
                view.close()
        return _result(folder)

    def _run_in_world(self, out: str | Path | None) -> SearchResult:
        if "mpi4py.MPI" in sys.modules and sys.modules["mpi4py.MPI"].Is_finalized():
            raise BadInput("the ranks of one mpirun run one search; start the script again for another")
        with launch.bounded_start():
            from nord_hpc.cluster.transport_mpi import World

            world = World()
        launch.check_world(world.size)
        if world.size == 1:
            return self._run_inline(out)
        if world.rank > 0:
            _work_and_leave(world)
        views: list[ProgressView] = []

        def prepare(n_workers: int) -> RunFolder:
            folder = self._prepare(out, n_workers=n_workers)
            views.append(view_on_stderr(folder))
            return folder

        with _left_world(), _restored_process():
            try:
                wiring.run_ranks(world, prepare, on_tick=lambda: views[0].update())
            finally:
                for view in views:
                    view.close()
        return _result(views[0].folder)

    def _prepare(self, out: str | Path | None, *, n_workers: int) -> RunFolder:
        """The run folder, after everything that may be refused was looked at; on the master alone."""
        job = self.job()
        wiring.check(job, n_workers=n_workers)
        if job.code or any(registry.plugin_file(getattr(job, kind).name) for kind in CLASS_SECTIONS):
            _try_in_fresh_process(job)
        return parts.create_run_folder(Path(out) if out is not None else default_path(job.name), job)


def _plain(value: Any, *, where: str) -> Any:
    """A value as a job file has it: classes by name, paths as text.

    Raises:
        BadInput: it is code that no file holds.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, where=where if key == "name" else f"{where}.{key}") for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, where=where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type):
        return _name_of(value, kind=where)
    if callable(value):
        made = getattr(value, "__code__", None)
        at = f" of {Path(made.co_filename).name}:{made.co_firstlineno}" if made is not None else ""
        name = getattr(value, "__qualname__", type(value).__qualname__)
        raise BadInput(
            f"rank 0: {where} is {name}{at}, which cannot be written into a job that workers and a resume read; set "
            f"plain values, or a class that stands at the top level of a file"
        )
    return value


def _name_of(cls: type, *, kind: str) -> str:
    """The name of a class in a job: that of the registry, or its file and itself."""
    own = f"{cls.__module__}:{cls.__qualname__}"
    for name, target in registry.BUILT_IN.get(kind, {}).items():
        if own.startswith(target.partition(":")[0]) and cls.__qualname__ == target.partition(":")[2]:
            return name
    for name, point in registry.installed(kind).items():
        if point.value == own:
            return name
    return f"{_file_of(cls, where=kind)}:{cls.__qualname__}"


def _file_of(cls: type, *, where: str) -> str:
    """The file that a class stands in.

    Raises:
        BadInput: it stands in none, or not at its top level.
    """
    advice = "write it at the top level of a file that the script imports, or of the script"
    if "<locals>" in cls.__qualname__:
        raise BadInput(
            f"rank 0: {where}: class {cls.__qualname__} of {cls.__module__} is made inside a function, where workers "
            f"and a resume cannot find it; {advice}"
        )
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None or not str(file).endswith(".py") or not Path(file).is_file():
        raise BadInput(
            f"rank 0: {where}: class {cls.__qualname__} of {cls.__module__} belongs to an interactive session, and to "
            f"no file, so workers and a resume cannot find it; {advice}"
        )
    return str(Path(file).resolve())


def _code_file(item: str | Path | type) -> str:
    return _file_of(item, where="code") if isinstance(item, type) else str(item)


def _check_file_names(job: Job) -> None:
    """Layers are found by the name of their file, so it must be one file."""
    named = [registry.plugin_file(getattr(job, kind).name) for kind in CLASS_SECTIONS]
    paths = {(job.folder / file).resolve() for file in (*named, *job.code) if file is not None}
    seen: dict[str, Path] = {}
    for path in sorted(paths):
        other = seen.setdefault(path.name, path)
        if other != path:
            raise BadInput(f"Search: {other} and {path} have one name in the run folder; rename one of them")


def _try_in_fresh_process(job: Job) -> None:
    """See that a new process, in another folder and without this one's search path, can import the user's files.

    It does now what each resume will do, so that a long search does not turn out to be one that cannot be continued.
    """
    left_out = ("PYTHONPATH", "NORD_HPC_SUPERVISED")
    mpi = (*launch.SIZE_VARIABLES, *launch.RANK_VARIABLES, "OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith((*left_out, *mpi))}
    with tempfile.TemporaryDirectory(prefix="nord_hpc-") as place:
        RunFolder.create(Path(place) / "run", job)
        program = "import sys; from nord_hpc.scripting import search; sys.exit(search.reads_again('run'))"
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FRESH_PROCESS_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadInput(
                f"rank 0: the files of the classes took more than {FRESH_PROCESS_SECONDS:.0f} s to import in a new "
                f'process; put what they start under: if __name__ == "__main__":'
            ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise BadInput(f"rank 0: a new process, as each resume is one, cannot use these classes: {last}")


def reads_again(path: str) -> int:
    """Load the job of a run folder and import its further files; 0, or 2 after the reason on standard error."""
    try:
        folder = RunFolder.open(Path(path))
        job = folder.job()
        for file in job.code:
            registry.import_file("code", file, folder=job.folder)
    except BadInput as error:
        sys.stderr.write(f"{error}\n")
        return wiring.BAD_INPUT
    return wiring.DONE


def _work_and_leave(world: World) -> None:
    """Be a worker of the search, and end this process after it."""
    with wiring.bounded_exit() as leaving:
        # What was refused is told by rank 0; an exit code from here would have the launcher end that one before.
        code = wiring.run_ranks(world, _never, on_tick=lambda: None)
        leaving.code = wiring.DONE if code in (wiring.BAD_INPUT, wiring.INTERRUPTED) else code
    raise SystemExit(leaving.code)


def _never(n_workers: int) -> RunFolder:
    raise AssertionError("workers are told their run folder")


@contextlib.contextmanager
def _left_world() -> Iterator[None]:
    """After the body the ranks part, so that the others can end while the script goes on."""
    try:
        yield
    finally:
        if launch.survives_deaths():  # MPI_Finalize may hang after a death; nothing is lost with this process then
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            atexit.register(signal.alarm, int(wiring.LEAVE_SECONDS))
        else:
            timer = threading.Timer(wiring.LEAVE_SECONDS, _end_at_once)
            timer.daemon = True
            timer.start()
            sys.modules["mpi4py.MPI"].Finalize()
            timer.cancel()


def _end_at_once() -> None:
    log.error("the ranks did not part within %.0f s; the process ends now", wiring.LEAVE_SECONDS)
    os._exit(wiring.FAILED)


@contextlib.contextmanager
def _restored_process() -> Iterator[None]:
    """After the body, signals and log lines go where the script had them go."""
    handlers = {number: signal.getsignal(number) for number in wiring.STOP_SIGNALS}
    logger = logging.getLogger("nord_hpc")
    kept, level, propagate = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for added in [handler for handler in logger.handlers if handler not in kept]:
            logger.removeHandler(added)
            added.close()
        logger.setLevel(level)
        logger.propagate = propagate


def _result(folder: RunFolder) -> SearchResult:
    history = folder.history()
    return SearchResult(folder.path, summarize(history, folder.job()), rows(history))
