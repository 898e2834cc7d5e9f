"""Official files into a folder of the cache: checked, by one process at a time, put in place by a rename."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nord_hpc.datasets.locks import locked, unwritable
from nord_hpc.errors import BadInput

LOG = logging.getLogger(__name__)

ANSWER_SECONDS = 7.0
"""How long a server may take to accept a connection, and later to go on sending."""

LOCK_SECONDS = 3600.0
"""How long a process waits for the one that downloads: large files come slowly."""

ALLOWED = "NORD_HPC_DOWNLOAD"
"""Environment variable that allows downloads within a Slurm job."""

LOCK = ".download.lock"
FAILURE = ".download.failed"


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: the places where it is, tried in this order, and its digest, "md5:..." or "sha256:...".

    None where its authors give no digest: then the file is taken as it comes, and who reads it checks what is in it.
    """

    urls: tuple[str, ...]
    digest: str | None


def fetch(
    files: Mapping[str, RemoteFile],
    folder: Path,
    *,
    mirror: str | None = None,
    advice: str = "",
    answer_seconds: float = ANSWER_SECONDS,
    lock_seconds: float = LOCK_SECONDS,
) -> dict[str, Path]:
    """Make sure that `folder` holds all files, right to the last bit, and return their paths.

    A file that is there and right is left alone; half files are replaced. Processes that come while another one
    downloads wait for it, and share its files or its failure.

    Args:
        files: name in the folder to where it comes from.
        mirror: a folder as "file:///..." or "https://...", or None for NORD_HPC_MIRROR; it is tried before the official
            places, with the folder's name and the file's name behind it.
        advice: what else the user may do, for the error.
        answer_seconds: without a network the call ends within about twice this.

    Raises:
        BadInput: one line: what could not be fetched, why, and where to put the files by hand.
    """
    if all(_is_right(folder / name, file.digest) for name, file in files.items()):
        return {name: folder / name for name in files}
    _refuse_on_compute_nodes(files, folder, mirror=mirror or os.environ.get("NORD_HPC_MIRROR") or None)
    arrival = time.time()
    with locked(folder / LOCK, wait_seconds=lock_seconds) as waited_seconds:
        _share_failure(folder, waited_seconds=waited_seconds, arrival=arrival)
        try:
            _fetch_missing(files, folder, mirror=mirror, answer_seconds=answer_seconds)
        except BadInput as error:
            line = f"{error}; put {', '.join(files)} into {folder}{advice and ', or '}{advice}"
            (folder / FAILURE).write_text(line, encoding="utf-8")
            raise BadInput(line) from error
        except OSError as error:
            raise unwritable(folder, error) from error
    return {name: folder / name for name in files}


def _refuse_on_compute_nodes(files: Mapping[str, RemoteFile], folder: Path, *, mirror: str | None) -> None:
    """The nodes of a Slurm job mostly reach no network, and would all wait for it."""
    local = mirror is not None and urlsplit(mirror).scheme == "file"
    if "SLURM_JOB_ID" in os.environ and ALLOWED not in os.environ and not local:
        missing = ", ".join(name for name, file in files.items() if not _is_right(folder / name, file.digest))
        raise BadInput(
            f"{missing}: not in {folder}, and nothing is downloaded within a Slurm job; run nord-hpc fetch JOB on the "
            f"login node first, or set {ALLOWED}=1 where the nodes reach the network"
        )


def _share_failure(folder: Path, *, waited_seconds: float, arrival: float) -> None:
    """Fail as the process failed that this one has waited for: N processes must not wait N times for no network."""
    note = folder / FAILURE
    if waited_seconds > 0.1 and note.exists() and note.stat().st_mtime >= arrival:
        raise BadInput(note.read_text(encoding="utf-8"))
    note.unlink(missing_ok=True)


def _fetch_missing(files: Mapping[str, RemoteFile], folder: Path, *, mirror: str | None, answer_seconds: float) -> None:
    mirror = mirror or os.environ.get("NORD_HPC_MIRROR") or None
    missing = {name: file for name, file in files.items() if not _is_right(folder / name, file.digest)}
    places = {name: _places(name, file, folder, mirror) for name, file in missing.items()}
    silent = _silent_servers((url for urls in places.values() for url in urls), answer_seconds=answer_seconds)
    for name, file in missing.items():
        reasons: list[str] = []
        for url in places[name]:
            server = urlsplit(url).netloc
            reason = silent.get(server) or _download(url, folder / name, file.digest, answer_seconds=answer_seconds)
            if reason is None:
                break
            if reason.startswith(_NO_ANSWER):
                silent[server] = reason
            reasons.append(f"{url}: {reason}")
        else:
            raise BadInput(f"{name} cannot be fetched ({'; '.join(reasons)})")


def _places(name: str, file: RemoteFile, folder: Path, mirror: str | None) -> tuple[str, ...]:
    own = () if mirror is None else (f"{mirror.rstrip('/')}/{folder.name}/{name}",)
    return own + file.urls


_NO_ANSWER = "no answer"


def _download(url: str, path: Path, digest: str | None, *, answer_seconds: float) -> str | None:
    """Fetch one file and put it in place; why not, in a few words, or None where it worked."""
    part = path.with_name(f".{path.name}.part")
    LOG.info("fetching %s", url)
    try:
        if urlsplit(url).scheme == "file":
            _copy_local(url, part)
        else:
            reason = _copy_remote(url, part, answer_seconds=answer_seconds)
            if reason is not None:
                return reason
        if digest is not None:
            actual = _digest_of(part, digest.partition(":")[0])
            if actual != digest:
                return f"its digest is {actual}, not {digest}"
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except FileNotFoundError:
        return "there is no such file"
    finally:
        part.unlink(missing_ok=True)
    if digest is not None:
        _remember(path, digest)
    return None


def _copy_local(url: str, part: Path) -> None:
    shutil.copyfile(unquote(urlsplit(url).path), part)


def _copy_remote(url: str, part: Path, *, answer_seconds: float) -> str | None:
    import pooch  # type: ignore[import-untyped]
    import requests

    copy = pooch.HTTPDownloader(progressbar=False, chunk_size=2**20, timeout=answer_seconds)
    try:
        copy(url, str(part), None)
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        return f"the server says {status}"
    except (requests.RequestException, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise  # the disk, not the network
        return f"{_NO_ANSWER} ({type(error).__name__})"
    return None


def _digest_of(path: Path, algorithm: str) -> str:
    import pooch

    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def _is_right(path: Path, digest: str | None) -> bool:
    """Whether a file has its digest. It is computed once, and again when the file's size or time changes."""
    try:
        stat = path.stat()
    except OSError:
        return False
    if digest is None:
        return True
    try:
        known = json.loads(_memory(path).read_text(encoding="utf-8"))
        if known == [digest, stat.st_size, stat.st_mtime_ns]:
            return True
    except (OSError, ValueError):
        pass
    if _digest_of(path, digest.partition(":")[0]) != digest:
        return False
    _remember(path, digest)
    return True


def _remember(path: Path, digest: str) -> None:
    stat = path.stat()
    part = path.with_name(f".{path.name}.checked.{os.getpid()}")
    try:
        part.write_text(json.dumps([digest, stat.st_size, stat.st_mtime_ns]), encoding="utf-8")
        part.replace(_memory(path))
    except OSError as error:
        LOG.debug("%s: cannot be written (%s); the file will be checked again", part, error)


def _memory(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _silent_servers(urls: Iterable[str], *, answer_seconds: float) -> dict[str, str]:
    """The servers that accept no connection, each with the reason; all are tried at once.

    Names are looked up in threads, as a look-up without a network can take longer than any time-out would allow.
    """
    targets: dict[str, tuple[str, int]] = {}
    for url in urls:
        target = _connection_target(url)
        if target is not None:
            targets[urlsplit(url).netloc] = target
    reasons: dict[str, str] = {}
    threads = []
    for server, target in targets.items():
        thread = threading.Thread(target=_try_server, args=(server, target, answer_seconds, reasons), daemon=True)
        reasons[server] = f"{_NO_ANSWER} within {answer_seconds:g} seconds"
        thread.start()
        threads.append(thread)
    deadline = time.monotonic() + answer_seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {server: reason for server, reason in list(reasons.items()) if reason}


def _connection_target(url: str) -> tuple[str, int] | None:
    """Host and port that a request for `url` connects to first, proxies minded; None for local files."""
    parts = urlsplit(url)
    if parts.scheme == "file" or parts.hostname is None:
        return None
    proxies: dict[str, Any] = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return str(parts.hostname), port


def _try_server(server: str, target: tuple[str, int], answer_seconds: float, reasons: dict[str, str]) -> None:
    try:
        socket.create_connection(target, timeout=answer_seconds).close()
        reasons[server] = ""
    except OSError as error:
        reasons[server] = f"{_NO_ANSWER} ({error.strerror or error})"
