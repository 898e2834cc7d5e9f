"""What all tests share: a folder for the sessions of mpirun that is this test run's own."""

from __future__ import annotations

import os

import pytest

from nord_hpc.cluster.launch import SESSION_BASE


@pytest.fixture(scope="session", autouse=True)
def own_session_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What killed mpiruns of other programs left behind does not disturb the tests' own; see `SESSION_BASE`."""
    os.environ[SESSION_BASE] = str(tmp_path_factory.mktemp("mpi-sessions"))
