"""The command `nord-hpc`: its arguments, its output and its exit codes."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from nord_hpc import __version__
from nord_hpc import job as jobs
from nord_hpc.cli import wiring
from nord_hpc.cli.compare import compare
from nord_hpc.cli.confirm import confirm
from nord_hpc.cli.export import export
from nord_hpc.cli.fetch import fetch
from nord_hpc.cli.progress import ProgressView, print_result
from nord_hpc.cli.proxies import proxies
from nord_hpc.cli.retrain import retrain
from nord_hpc.cli.schema import schema
from nord_hpc.cli.simulate import simulate
from nord_hpc.cli.submit import cancel, goes_on, note_life, slurm_line, slurm_state, submit
from nord_hpc.cli.table import table
from nord_hpc.cli.verify import verify
from nord_hpc.cluster import launch, parts, slurm
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.logs import log_to_stderr
from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import RunFolder, default_path
from nord_hpc.store.summary import rows, summarize

app = typer.Typer(
    help="Neural architecture search as a distributed service.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobArgument = Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")]
RanksOption = Annotated[
    int | None, typer.Option("-n", "--ranks", min=1, help="MPI ranks, the master included; 1 runs in this process.")
]
SetOption = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job.")]
VerboseOption = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log more to standard error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 error, 2 bad input, 3 stopped before the budget, everything saved."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (BadInput, StoreError) as error:
        _complain(str(error))
        code = wiring.BAD_INPUT
    except TyperException as error:
        if str(error):
            _complain(" ".join(error.format_message().split()))
        code = wiring.BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        code = wiring.INTERRUPTED
    sys.exit(code if isinstance(code, int) else wiring.DONE)


@app.command()
def run(
    job: JobArgument,
    ranks: RanksOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder; runs/NAME-TIME if not given.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    verbose: VerboseOption = 0,
) -> int:
    """Start a search. Under mpirun it uses the world it finds; with -n it starts mpirun itself; else it runs inline."""
    log_to_stderr(verbose=verbose)

    def prepare(n_workers: int) -> RunFolder:
        loaded = jobs.load(job, overrides=overrides)
        wiring.check(loaded, n_workers=n_workers)
        return parts.create_run_folder(out or default_path(loaded.name), loaded)

    if launch.under_launcher():
        return _run_in_world(prepare, ranks=ranks)
    if ranks is None or ranks == 1:
        launch.check_world(1, {} if ranks == 1 else os.environ)
        return _run_inline(prepare(1))
    launch.find_mpirun()
    return supervise(prepare(ranks - 1), ranks)


@app.command()
def resume(
    folder: FolderArgument,
    ranks: RanksOption = None,
    overrides: SetOption = [],  # noqa: B006
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although the job or its plug-in files have changed.")
    ] = False,
    verbose: VerboseOption = 0,
) -> int:
    """Continue a search that was stopped or killed, where it was."""
    log_to_stderr(verbose=verbose)

    def prepare(n_workers: int) -> RunFolder:
        opened = RunFolder.open(folder)
        changed = opened.job(overrides=tuple(overrides))
        wiring.check(changed, n_workers=n_workers)
        if overrides:
            wiring.check_resumable(opened, changed, accept_changes=accept_changes)
            opened.save_job(changed)
        return opened

    if launch.under_launcher():
        return _run_in_world(prepare, ranks=ranks, accept_changes=accept_changes)
    opened = prepare(max(1, (ranks or 1) - 1))
    if _nothing_left(opened):
        return wiring.DONE
    if ranks is None or ranks == 1:
        launch.check_world(1, {} if ranks == 1 else os.environ)
        return _run_inline(opened, accept_changes=accept_changes)
    return supervise(opened, ranks, accept_changes=accept_changes)


@app.command(hidden=True)
def rank(folder: FolderArgument, accept_changes: Annotated[bool, typer.Option("--accept-changes")] = False) -> int:
    """One rank of a search that `nord-hpc run -n` or `resume -n` supervises."""
    log_to_stderr()
    code = _run_in_world(lambda _: RunFolder.open(folder), accept_changes=accept_changes, shows=False)
    return wiring.DONE if code == wiring.INTERRUPTED else code  # the supervisor reads the journal


@app.command()
def validate(job: JobArgument, overrides: SetOption = []) -> None:  # noqa: B006
    """Check a job file and print it resolved. Nothing runs, nothing is written."""
    loaded = jobs.load(job, overrides=overrides)
    wiring.check(loaded)
    sys.stdout.write(loaded.to_yaml())


@app.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """How a search stands, also while it runs."""
    opened = RunFolder.open(folder)
    history = opened.history()
    summary = summarize(history, opened.recorded_job())
    summary["state"] = _state(opened, summary["state"])
    summary["slurm"] = slurm_state(opened)
    if as_json:
        print(json.dumps(summary, indent=2, allow_nan=False))
    else:
        print_result(Console(), opened, summary, history)
        if summary["slurm"] is not None:
            print(slurm_line(summary["slurm"]))


@app.command()
def trials(
    folder: FolderArgument,
    as_json: JsonOption = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV file.")] = None,
) -> None:
    """List the trials of a search, also while it runs."""
    if as_json and csv_file is not None:
        raise BadInput("--json and --csv do not go together; choose one")
    table = rows(RunFolder.open(folder).history())
    if as_json:
        print(json.dumps(table, allow_nan=False))
    elif csv_file is not None:
        _write_csv(csv_file, table)
    else:
        _print_trials(table)


@app.command()
def report(
    folder: FolderArgument,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write event files for TensorBoard, too.")
    ] = None,
) -> None:
    """Write report.html into the run folder: best-so-far curve, best network, trials, failures, job."""
    from nord_hpc.report.html import write_report

    opened = RunFolder.open(folder)
    history = opened.history()
    summary = summarize(history, opened.recorded_job())
    summary["state"] = _state(opened, summary["state"])
    summary["job_yaml"] = opened.job_file.read_text(encoding="utf-8")
    summary["environment"] = history.lives[-1].machine if history.lives else {}
    write_report(rows(history), summary, opened.report_file)
    print(opened.report_file)
    if tensorboard is not None:
        from nord_hpc.report.tensorboard import write_events

        n_trials = write_events(history, opened.recorded_job(), tensorboard)
        print(f"{tensorboard}: {n_trials} trials; see them with: tensorboard --logdir {tensorboard}")


@app.command()
def doctor(
    as_json: JsonOption = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where run folders will be written.")] = Path("runs"),
    mpi: Annotated[bool, typer.Option("--mpi", help="Examine the ranks that mpirun or srun started this as.")] = False,
    gang: Annotated[int, typer.Option("--gang", min=1, help="With --mpi: ranks of a gang.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="With --mpi: to measure each gang.")] = 2.0,
) -> int:
    """Examine this machine: Python, torch, MPI, Horovod, GPUs, cores, Slurm, and a folder's speed."""
    if mpi:
        from nord_hpc.cli import doctor_mpi

        return doctor_mpi.examine_world(gang=gang, seconds=seconds, as_json=as_json)
    from nord_hpc.cli import doctor as examination

    found = examination.examine(folder)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        Console().print(examination.render(found))
    return wiring.DONE


app.command()(retrain)
app.command()(export)
app.command()(confirm)
app.command()(verify)
app.command()(schema)
app.command()(compare)


app.command()(proxies)
app.command()(table)
app.command()(simulate)
app.command()(submit)
app.command()(cancel)
app.command()(fetch)
app.command(hidden=True)(goes_on)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _run_inline(folder: RunFolder, *, accept_changes: bool = False) -> int:
    note_life(folder)
    view = ProgressView(folder, _error_console())
    with wiring.bounded_exit() as leaving:
        try:
            leaving.code = wiring.run_inline(folder, on_tick=view.update, accept_changes=accept_changes)
        finally:
            view.close()
        _print_end(folder)
    return leaving.code


def _run_in_world(
    prepare: wiring.Prepare, *, ranks: int | None = None, accept_changes: bool = False, shows: bool = True
) -> int:
    """Be one rank of the world that a launcher started."""
    with launch.bounded_start():
        from nord_hpc.cluster.transport_mpi import World

        world = World()
    view: list[ProgressView] = []

    def prepare_and_show(n_workers: int) -> RunFolder:
        launch.check_world(world.size)
        if ranks is not None and ranks != world.size:
            raise BadInput(f"-n {ranks} does not fit the {world.size} ranks that the launcher started; leave -n away")
        folder = prepare(n_workers)
        if shows:
            view.append(ProgressView(folder, _error_console()))
        return folder

    def update() -> None:
        if view:
            view[0].update()

    if world.size == 1:
        return _run_inline(prepare_and_show(1), accept_changes=accept_changes)
    with wiring.bounded_exit() as leaving:
        try:
            leaving.code = wiring.run_ranks(world, prepare_and_show, on_tick=update, accept_changes=accept_changes)
        except (BadInput, StoreError) as error:
            _complain(str(error))
            leaving.code = wiring.BAD_INPUT
        if view:
            view[0].close()
            if leaving.code != wiring.BAD_INPUT:
                _print_end(view[0].folder)
    return leaving.code


def supervise(folder: RunFolder, n_ranks: int, *, accept_changes: bool = False, shows_end: bool = True) -> int:
    """Run mpirun on the run folder, again if it dies, until the journal says how the search ended."""
    note_life(folder)
    job = folder.job()
    console = _error_console()
    supervisor = launch.Supervisor()
    view = ProgressView(folder, console)
    options = ["--accept-changes"] if accept_changes else []
    program = [sys.executable, "-m", "nord_hpc", "rank", str(folder.path), *options]
    mpirun = launch.find_mpirun()
    survives = job.resources.fault_tolerance == "auto" and launch.can_survive_deaths(mpirun)[0]
    lost_host_seconds = job.limits.lost_host_seconds
    hosts: dict[str, int] | None = None
    wiring.on_stop_signals(supervisor.request_stop)
    fruitless = 0
    try:
        while True:
            finished = _n_finished(folder)
            n_lives = len(folder.history().lives)
            result = supervisor.run(
                launch.mpirun_command(
                    n_ranks, program, mpirun=mpirun, survives=survives, lost_host_seconds=lost_host_seconds, hosts=hosts
                ),
                threads=job.resources.threads,
                on_wait=view.update,
                is_up=lambda before=n_lives: view.n_lives() > before,  # type: ignore[misc]
                is_over=lambda: view.over,
            )
            state = folder.history().state
            if state != "running" or result.stopped or result.exit_code == wiring.BAD_INPUT:
                break
            fruitless = 0 if _n_finished(folder) > finished else fruitless + 1
            _record_loss(folder, result)
            reason = result.lost_reason or f"mpirun ended with code {result.exit_code}"
            if fruitless > job.limits.restarts:
                console.print(f"{reason}; given up after {job.limits.restarts} restarts without a trial finished")
                return wiring.INTERRUPTED
            console.print(f"{reason}; the search goes on from what is saved", highlight=False)
            hosts, n_ranks = _hosts_left(n_ranks, console)
    finally:
        view.close()
    if result.exit_code == wiring.BAD_INPUT:
        return wiring.BAD_INPUT
    if shows_end:
        _print_end(folder)
    return {"finished": wiring.DONE, "error": wiring.FAILED}.get(state, wiring.INTERRUPTED)


def _hosts_left(n_ranks: int, console: Console) -> tuple[dict[str, int] | None, int]:
    """In a Slurm allocation that has lost nodes: those that are left with their ranks, and how many ranks these are."""
    all_nodes = slurm.slots_of()
    left = slurm.nodes_left()
    if not left or len(left) == len(all_nodes):
        return None, n_ranks
    console.print(f"{', '.join(sorted(set(all_nodes) - set(left)))} lost; {len(left)} nodes are left", highlight=False)
    return left, max(2, min(n_ranks, sum(left.values())))


def _record_loss(folder: RunFolder, result: launch.LaunchResult) -> None:
    """A trial that kills its rank must not kill every life of the search: its attempts are counted."""
    if result.lost_rank is None:
        return
    with Journal(folder.journal_file) as journal:
        if any(record["kind"] == "run" for record in journal.records):
            lost = {"kind": "lost", "rank": result.lost_rank, "reason": result.lost_reason, "at": time.time()}
            journal.append(lost)


def _n_finished(folder: RunFolder) -> int:
    return sum(entry.outcome is not None for entry in folder.history().entries.values())


def _nothing_left(folder: RunFolder) -> bool:
    """Whether a finished run has nothing to do under its present budget; says so."""
    history = folder.history()
    if history.state != "finished" or history.lives[-1].job != folder.job().to_json():
        return False
    Console().print("the budget is used up already: 0 trials evaluated", highlight=False)
    print_result(Console(), folder, summarize(history, folder.job()), history)
    return True


def _print_end(folder: RunFolder) -> None:
    history = folder.history()
    if history.lives:
        print_result(Console(), folder, summarize(history, folder.job()), history)


def _state(folder: RunFolder, recorded: str) -> str:
    """A journal without an end that nobody writes belongs to a search that was killed."""
    if recorded == "running" and not Journal.is_being_written(folder.journal_file):
        return "interrupted"
    return recorded


def _write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table[0] if table else ["number"])
            for row in table:
                writer.writerow(json.dumps(v) if isinstance(v, dict | list) else v for v in row.values())
    except OSError as error:
        raise BadInput(f"--csv {path}: cannot be written: {error.strerror}") from error
    print(f"{path}: {len(table)} trials")


def _print_trials(table: list[dict[str, Any]]) -> None:
    print(f"{'trial':>6} {'state':<10} {'fitness':>9} {'parameters':>11} {'seconds':>8}  parents / reason")
    for row in table:
        fitness = "" if row["fitness"] is None else f"{row['fitness']:.4f}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        last = row["reason"] or " ".join(str(parent) for parent in row["parents"])
        if row["reuses"] is not None:
            last += f" (outcome of trial {row['reuses']})"
        if row["imported"] is not None:
            last = f"from {row['imported']}"
        print(f"{row['number']:>6} {row['state']:<10} {fitness:>9} {row['n_parameters']:>11,} {seconds:>8}  {last}")


def _error_console() -> Console:
    return Console(stderr=True)


def _complain(text: str) -> None:
    sys.stderr.write(f"nord-hpc: {text}\n")
    sys.stderr.flush()
