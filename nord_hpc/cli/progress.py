"""What a person sees while a search runs and after it; read from the journal, so that the master pays nothing."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nord_hpc.job import Job
from nord_hpc.store import collector
from nord_hpc.store.history import Entry, History
from nord_hpc.store.journal import JournalTail
from nord_hpc.store.run_folder import RunFolder

TERMINAL_SECONDS = 0.5
PLAIN_SECONDS = 10.0
LARGE_RESIDUAL = 0.3


class ProgressView:
    """Follows a journal: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self.folder = folder
        self._tail = JournalTail(folder.journal_file)
        self._history = History()
        self._job = folder.job()
        self._console = console
        self._seconds = TERMINAL_SECONDS if console.is_terminal else PLAIN_SECONDS
        self._next = self._next_read = 0.0
        self._shown = ""
        self._said = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def n_lives(self) -> int:
        """Lives of the search that have begun by now."""
        self._read()
        return len(self._history.lives)

    def _read(self) -> None:
        with collector.paused():  # the ranks need the processor more than this does
            for record in self._tail.new_records():
                self._history.add(record)

    @property
    def over(self) -> bool:
        """Whether the latest life has come to its end, as of the last update."""
        return bool(self._history.lives) and self._history.state != "running"

    def update(self) -> None:
        """Read what is new, and show it if it is time."""
        if time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + TERMINAL_SECONDS
        self._read()
        if time.monotonic() < self._next or not self._history.lives:
            return
        self._next = time.monotonic() + self._seconds
        if not self._said:
            self._said = True
            self._console.print(self._history.lives[-1].evaluated_on, highlight=False, markup=False, soft_wrap=True)
        if self._console.is_terminal:
            self._show_bar()
        else:
            self._show_line()

    def close(self) -> None:
        if self._bar is not None:
            self._next = self._next_read = 0.0
            self.update()
            self._bar.stop()
            self._bar = None

    def _show_bar(self) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self._job.name, total=self._job.budget.trials)
        assert self._task is not None
        done, text = self._text()
        self._bar.update(self._task, completed=done, description=f"{self._job.name}: {text}")

    def _show_line(self) -> None:
        done, text = self._text()
        budget = self._job.budget.trials
        line = f"{done} of {budget} trials: {text}" if budget else f"{done} trials: {text}"
        if line != self._shown:
            self._shown = line
            self._console.print(line, highlight=False)

    def _text(self) -> tuple[int, str]:
        outcomes = [entry.outcome for entry in self._history.entries.values() if entry.outcome and entry.attempts]
        failed = sum(outcome.fitness is None for outcome in outcomes)
        best = best_entry(self._history, self._job)
        parts = [
            f"best {best.outcome.fitness:.4f} (trial {best.trial.number})" if best and best.outcome else "no result yet"
        ]
        if failed:
            parts.append(f"{failed} failed")
        return len(outcomes), ", ".join(parts)


def view_on_stderr(folder: RunFolder) -> ProgressView:
    """A view that leaves standard output to the program that runs the search."""
    return ProgressView(folder, Console(stderr=True))


def best_entry(history: History, job: Job) -> Entry | None:
    return history.best(maximize=job.objective.direction == "maximize", fidelity=job.full_fidelity)


def print_result(console: Console, folder: RunFolder, summary: dict[str, Any], history: History) -> None:
    """A run in a few lines: the best network, its accuracies, utilization, and where everything is."""
    for line in result_lines(folder, summary, history):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def result_lines(folder: RunFolder, summary: dict[str, Any], history: History) -> list[str]:
    trials, best, metric = summary["trials"], summary["best"], summary["metric"]
    reason = f" ({summary['reason']})" if summary["reason"] else ""
    plural = "s" * (summary["ranks"] != 1)
    lines = [
        f"{summary['name']} {summary['state']}{reason}: {trials['completed']} completed, {trials['failed']} failed, "
        f"{trials['infeasible']} infeasible, {summary['wall_seconds']:.0f} s on {summary['ranks']} rank{plural}"
    ]
    if best is None:
        lines.append("no trial has completed yet, so there is no best network")
    else:
        trial = history.entries[best["trial"]].trial
        lines.append(f"best network (trial {best['trial']}, {trial.n_parameters:,} parameters):")
        lines += [f"  {line}" for line in describe(trial.descriptor)]
        lines.append(f"validation {metric} {best['fitness']:.4f}")
        test = best["test"] or {}
        if metric in test:
            lines.append(f"test {metric} {test[metric]:.4f}")
        elif "error" in test:
            lines.append(f"the test part could not be scored: {test['error']}")
    if summary["utilization"] is not None:
        lines.append(f"utilization {summary['utilization']:.1%}")
    lines += _advice(summary)
    if summary["mixed_machines"]:
        lines.append("trials ran on different machines, so the history need not repeat to the bit on one of them")
    if summary["not_repeatable"]:
        numbers = ", ".join(map(str, summary["not_repeatable"]))
        lines.append(f"ended by time, memory or a lost rank, and so not repeatable: trials {numbers}")
    return [*lines, f"history {summary['history_sha256']}", f"run folder {folder.path}"]


def _advice(summary: dict[str, Any]) -> list[str]:
    """What to set when ranks waited for the result that virtual order wanted next."""
    stall, residual = summary["stall_seconds"], summary["prediction_residual"]
    workers = max(1, summary["ranks"] - 1)
    if stall < 0.05 * summary["wall_seconds"] * workers:
        return []
    lines = [f"ranks waited {stall:.0f} rank-seconds for results, most for that of trial {summary['stalled_most_by']}"]
    if residual is not None and residual > LARGE_RESIDUAL:
        lines.append(
            f"the predicted times are off by a factor of {math.exp(residual):.1f}; set order.virtual_gangs to "
            f"{3 * summary['gangs']} or more, or order.mode to arrival"
        )
    return lines


def describe(descriptor: dict[str, Any]) -> list[str]:
    """One line for each layer: name, kind, parameters, and where its inputs come from."""
    lines = []
    for layer in descriptor["layers"]:
        parameters = ", ".join(f"{key}={value}" for key, value in layer["parameters"].items())
        inputs = f" {layer['join']} ".join(layer["inputs"])
        came = f" <- {inputs}" if inputs else ""
        lines.append(f"{layer['name']}: {layer['kind']}({parameters}){came}")
    return lines
