"""A run as TensorBoard shows it: fitness and best so far by commit, and the learning curves of the best trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.store.history import Entry, History

MOST_CURVES = 20
"""Each curve is a folder; thousands of them would make TensorBoard slow."""


def write_events(history: History, job: Job, folder: Path) -> int:
    """Write event files: DIR/search, and DIR/trial-N for the best trials that have learning curves.

    Returns:
        The number of committed trials written.

    Raises:
        BadInput: tensorboard is not installed, the folder cannot be written, or holds events already.
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise BadInput(
            "--tensorboard: needs tensorboard; install it with: pip install 'nord_hpc[tensorboard]'"
        ) from error
    if (folder / "search").exists():
        raise BadInput(f"--tensorboard {folder}: holds events already; set another folder, or remove it")
    committed = [history.entries[number] for number in history.commit_order]
    sign = 1.0 if job.objective.direction == "maximize" else -1.0
    try:
        writer = EventFileWriter(str(folder / "search"))
        best: float | None = None
        for step, entry in enumerate(committed):
            fitness = None if entry.outcome is None else entry.outcome.fitness
            if fitness is None:
                continue
            best = fitness if best is None or sign * fitness > sign * best else best
            values = {"fitness": fitness, "best": best, "parameters": float(entry.trial.n_parameters)}
            _add(writer, values | {"seconds": entry.outcome.seconds if entry.outcome else 0.0}, step, entry)
        writer.close()
        with_curves = [entry for entry in committed if entry.outcome and entry.outcome.metrics.get("curve")]
        with_curves.sort(key=lambda entry: (-sign * entry.outcome.fitness, entry.trial.number))  # type: ignore[union-attr,operator]
        for entry in with_curves[:MOST_CURVES]:
            _write_curve(EventFileWriter(str(folder / f"trial-{entry.trial.number}")), entry)
    except OSError as error:
        raise BadInput(f"--tensorboard {folder}: cannot be written: {error.strerror}") from error
    return len(committed)


def _write_curve(writer: Any, entry: Entry) -> None:
    assert entry.outcome is not None
    for point in entry.outcome.metrics["curve"]:
        values = {name: value for name, value in point.items() if name != "epoch" and isinstance(value, int | float)}
        _add(writer, {f"curve/{name}": float(value) for name, value in values.items()}, point["epoch"], entry)
    writer.close()


def _add(writer: Any, values: dict[str, float], step: int, entry: Entry) -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    finished = entry.attempts[-1].finished_at if entry.attempts else None
    writer.add_event(Event(wall_time=finished or 0.0, step=step, summary=Summary(value=scalars)))
