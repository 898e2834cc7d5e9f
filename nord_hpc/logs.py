"""Log handlers: one place that decides where log lines go. Only the command line calls it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr(*, verbose: int = 0) -> None:
    """Send the package's log lines to standard error: warnings, or with `verbose` 1 information, with 2 all."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(level)
    _attach(handler)


def log_to_file(path: Path) -> None:
    """Append the package's log lines, from information up, to a file of this rank alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.setLevel(logging.INFO)
    _attach(handler)


def _attach(handler: logging.Handler) -> None:
    logger = logging.getLogger("nord_hpc")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
