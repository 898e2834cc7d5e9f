"""The CPU image is built from its Dockerfile, Horovod in it, and runs the digits job as its own user."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT.parent / "shared" / "docker" / "build-test"


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root, to build an image"
    return None if BUILD.exists() else f"needs {BUILD}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served_wheels() -> Iterator[list[str]]:
    """This machine's folder of wheels for the builder, which sees no folder of this machine, as a build argument."""
    folder = os.environ.get("PIP_FIND_LINKS", "")
    if not Path(folder).is_dir() or not folder:
        yield []
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield ["--build-arg", f"PIP_FIND_LINKS=http://127.0.0.1:{server.server_port}/"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.cluster
@pytest.mark.timeout(1500)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_image_runs_the_digits_job() -> None:
    job = ["run", "/opt/nord_hpc/jobs/digits_evolution.yaml", "-n", "3", "--out", "/tmp/run"]
    smaller = ["--set", "budget.trials=6", "--set", "training.epochs=1", "--set", "resources.backend=horovod"]
    with served_wheels() as wheels:
        done = subprocess.run(
            [
                *(str(BUILD), "-f", str(ROOT / "docker/Dockerfile"), "-t", "nord_hpc-test", *wheels),
                # The Python that stands in for the image's own is the system's, whose headers are a package.
                *("--build-arg", "BUILD_PACKAGES=g++ make python3-dev", str(ROOT)),
                *("--", "sh", "-c", f"id -un; nord-hpc {' '.join([*job, *smaller])}"),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=1400,
            check=False,
        )
    said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, said
    lines = done.stdout.splitlines()
    assert "nord" in lines, said
    assert any(line.startswith("digits_evolution finished: 6 completed, 0 failed") for line in lines), said
