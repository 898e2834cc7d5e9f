"""What all tests share: a folder for the sessions of mpirun that is this test run's own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from nord_hpc.cluster.launch import SESSION_BASE


@pytest.fixture(scope="session", autouse=True)
def own_session_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What killed mpiruns of other programs left behind does not disturb the tests' own; see `SESSION_BASE`."""
    os.environ[SESSION_BASE] = str(tmp_path_factory.mktemp("mpi-sessions"))


@pytest.fixture
def process_as_it_was() -> Iterator[None]:
    """Signal handlers and log handlers that a run sets are taken away again."""
    from nord_hpc.cli.wiring import STOP_SIGNALS

    log = logging.getLogger("nord_hpc")
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    log_handlers = list(log.handlers)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    for added in log.handlers[:]:
        if added not in log_handlers:
            log.removeHandler(added)
            added.close()
