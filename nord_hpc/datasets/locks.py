"""A lock between the processes of a machine, with a bounded wait; what it guards is left to others."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nord_hpc.errors import BadInput

LOG = logging.getLogger(__name__)
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(path: Path, *, wait_seconds: float) -> Iterator[float]:
    """Hold the lock `path` while in the block, and yield the seconds that were waited for it.

    The system frees the lock when its holder ends, however it ends. The file stays, empty: to remove it would let two
    processes hold locks on two files of one name. On a file system without locks the block is entered at once, with a
    warning: what this package guards is then done twice, but still put in place by one rename.

    Raises:
        BadInput: the lock was not free within `wait_seconds`, or the folder cannot be written.
    """
    start = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        _acquire(descriptor, path, start=start, wait_seconds=wait_seconds)
        yield time.monotonic() - start
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, *, start: float, wait_seconds: float) -> None:
    pause = 0.005
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() - start > wait_seconds:
                raise BadInput(
                    f"{path}: another process has held this lock for {wait_seconds:g} seconds; end that process, or "
                    "set NORD_HPC_CACHE to another folder"
                ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            LOG.warning("%s: the file system has no locks (%s), so work may be done twice", path, error.strerror)
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.25)


def unwritable(folder: Path, error: OSError) -> BadInput:
    """The error for a cache folder that cannot be written."""
    return BadInput(
        f"{folder}: cannot be written: {error.strerror}; set NORD_HPC_CACHE to a folder on this machine with room for "
        "the data"
    )
