"""A run as pandas sees it, for notebooks and scripts; reads what is recorded and runs no code of the folder."""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nord_hpc.errors import BadInput
from nord_hpc.store.history import History
from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.store.summary import rows, summarize
from nord_hpc.trial import Json

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

WHOLE_OR_MISSING = ("commit", "continues", "reuses")


def load(folder: str | PathLike[str]) -> Run:
    """The run in a folder, as it stands now, also while it is going on.

    Raises:
        BadInput: there is none.
    """
    return Run(RunFolder.open(Path(folder)))


class Run:
    """What a run folder tells. Read once, when this is made; `load` again for what came later.

    Attributes:
        folder: its path.
        history: all that the journal tells.
    """

    def __init__(self, source: RunFolder) -> None:
        self._source = source
        self.folder = source.path
        self.history: History = source.history()

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {len(self.history.entries)} trials, {self.summary['state']}>"

    @cached_property
    def job(self) -> dict[str, Json]:
        """The job, resolved."""
        return self._source.recorded_job().to_json()

    @cached_property
    def summary(self) -> dict[str, Json]:
        """What `nord-hpc status DIR --json` prints of the search."""
        found = summarize(self.history, self._source.recorded_job())
        if found["state"] == "running" and not Journal.is_being_written(self._source.journal_file):
            found["state"] = "interrupted"
        return found

    @property
    def best(self) -> dict[str, Json] | None:
        """The best completed trial: its row, with "test" beside it; None if there is none."""
        best = self.summary["best"]
        if best is None:
            return None
        row = next(row for row in rows(self.history) if row["number"] == best["trial"])
        return {**row, "test": best["test"]}

    @cached_property
    def trials(self) -> pandas.DataFrame:
        """One row for each trial, by number.

        Columns are those of `nord-hpc trials DIR --json`, flat: `epochs` and `fraction` of the fidelity, `metric.NAME`
        of each number that was measured, `setting.NAME` of each field that candidates set. `curve` holds learning
        curves, as lists of one dict for each epoch.

        Raises:
            BadInput: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BadInput("trials: needs pandas; install it with: pip install 'nord_hpc[analysis]'") from error
        table = [_flat(row) for row in rows(self.history)]
        names = dict.fromkeys(name for row in table for name in row)
        frame = pandas.DataFrame.from_records(table, columns=list(names) or ["number"])
        for name in WHOLE_OR_MISSING:
            if name in frame:
                frame[name] = frame[name].astype("Int64")
        return frame.set_index("number", drop=True)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    nested = ("fidelity", "metrics", "settings")
    flat = {name: value for name, value in row.items() if name not in nested}
    metrics = dict(row["metrics"])
    flat |= row["fidelity"]
    flat |= {f"metric.{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
    flat |= {f"setting.{name}": value for name, value in row["settings"].items()}
    if "curve" in metrics:
        flat["curve"] = metrics["curve"]
    return flat
