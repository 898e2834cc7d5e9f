"""Downloads: right to the last bit, by one process, half files replaced, one line and little time without a network."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput

CONTENT = {"a.bin": bytes(range(256)) * 4000, "b.bin": b"second" * 1000}


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def files(*urls: str) -> dict[str, RemoteFile]:
    return {
        name: RemoteFile(urls=tuple(f"{url}/{name}" for url in urls), digest=digest(content))
        for name, content in CONTENT.items()
    }


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NORD_HPC_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder as a site may keep it: one folder for each data set."""
    folder = tmp_path / "mirror" / "set one"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server of CONTENT on this machine, and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = CONTENT.get(self.path.rpartition("/")[2])
            if content is None:
                self.send_error(404)
                return
            time.sleep(0.2)  # so that others come meanwhile
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join(timeout=10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".") or ".part" in path.name}


def test_files_come_whole_and_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    paths = fetch(files(url), tmp_path / "d")
    assert {name: path.read_bytes() for name, path in paths.items()} == CONTENT
    fetch(files(url), tmp_path / "d")
    assert sorted(asked) == ["/a.bin", "/b.bin"] and names_in(tmp_path / "d") == {"a.bin", "b.bin"}


def test_a_mirror_comes_first_by_option_or_environment(
    tmp_path: Path, mirror: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    fetch(files(url), tmp_path / "1" / "set one", mirror=mirror.parent.as_uri())
    monkeypatch.setenv("NORD_HPC_MIRROR", mirror.parent.as_uri() + "/")
    paths = fetch(files(url), tmp_path / "2" / "set one")
    assert asked == [] and paths["b.bin"].read_bytes() == CONTENT["b.bin"]
    (mirror / "b.bin").write_bytes(b"damaged")
    fetch(files(url), tmp_path / "3" / "set one")
    assert asked == ["/b.bin"]


def test_half_files_are_replaced(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    folder = tmp_path / "d"
    fetch(files(url), folder)
    (folder / "a.bin").write_bytes(CONTENT["a.bin"][:1000])
    (folder / ".b.bin.part").write_bytes(b"left by a killed process")
    assert fetch(files(url), folder)["a.bin"].read_bytes() == CONTENT["a.bin"]
    assert asked.count("/a.bin") == 2 and asked.count("/b.bin") == 1
    (folder / "b.bin").unlink()
    fetch(files(url), folder)
    assert names_in(folder) == {"a.bin", "b.bin"}


def test_files_put_there_by_hand_are_taken(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "d" / name).write_bytes(content)
    assert set(fetch(files(), tmp_path / "d")) == set(CONTENT)


def test_wrong_content_is_refused_and_not_kept(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, _ = server
    wrong = {"a.bin": RemoteFile(urls=(f"{url}/a.bin", f"{url}/none/c.bin"), digest="md5:" + "0" * 32)}
    with pytest.raises(BadInput) as refused:
        fetch(wrong, tmp_path / "d", advice="set dataset.path")
    actual = hashlib.md5(CONTENT["a.bin"]).hexdigest()
    assert str(refused.value) == (
        f"a.bin cannot be fetched ({url}/a.bin: its digest is md5:{actual}, not md5:{'0' * 32}; {url}/none/c.bin: the "
        f"server says 404); put a.bin into {tmp_path}/d, or set dataset.path"
    )
    assert names_in(tmp_path / "d") == set()


FETCH = """
import json, sys, time
from pathlib import Path
from nord_hpc.datasets.download import RemoteFile, fetch
from nord_hpc.errors import BadInput
files = {name: RemoteFile(urls=(url,), digest=digest) for name, url, digest in json.loads(sys.argv[2])}
print("ready", flush=True)
sys.stdin.readline()
try:
    print(sorted(path.stat().st_ino for path in fetch(files, Path(sys.argv[1]), answer_seconds=1.5).values()))
except BadInput as error:
    print(error)
"""


def fetch_in_processes(folder: Path, wanted: dict[str, RemoteFile], *, n: int) -> tuple[list[str], float]:
    """What n processes that start at once print, and the seconds until the last has ended."""
    listed = json.dumps([[name, file.urls[0], file.digest] for name, file in wanted.items()])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, str(folder), listed],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()},
        )
        for _ in range(n)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    seconds = time.monotonic() - start
    assert [stderr for _, stderr in results] == [""] * n
    return [stdout for stdout, _ in results], seconds


def test_one_of_four_processes_downloads(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    outputs, _ = fetch_in_processes(tmp_path / "d", files(url), n=4)
    assert len(set(outputs)) == 1 and outputs[0].startswith("[")  # the same two files for all
    assert sorted(asked) == ["/a.bin", "/b.bin"]


def test_four_processes_share_one_failure(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts connections and never answers, as a captive network does
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        outputs, seconds = fetch_in_processes(tmp_path / "d", files(url), n=4)
    assert len(set(outputs)) == 1 and f"a.bin cannot be fetched ({url}/a.bin: no answer (ReadTimeout))" in outputs[0]
    assert seconds < 4  # once 1.5 seconds, not four times


def test_no_network_ends_soon_with_one_line(tmp_path: Path) -> None:
    port = free_port()
    servers = [f"http://127.0.0.1:{port}", "http://192.0.2.1", "http://no-such-host.invalid"]
    start = time.monotonic()
    with pytest.raises(BadInput) as refused:
        fetch(files(*servers), tmp_path / "d", answer_seconds=1.0, advice="set dataset.path")
    assert time.monotonic() - start < 3
    text = str(refused.value)
    assert f"(http://127.0.0.1:{port}/a.bin: no answer (Connection refused); http://192.0.2.1/a.bin: no answer" in text
    assert text.endswith(f"; put a.bin, b.bin into {tmp_path}/d, or set dataset.path") and "\n" not in text


def test_a_later_call_tries_again_after_a_failure(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, _ = server
    with pytest.raises(BadInput, match="no answer"):
        fetch(files(f"http://127.0.0.1:{free_port()}"), tmp_path / "d", answer_seconds=1)
    assert set(fetch(files(url), tmp_path / "d")) == set(CONTENT)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/d: cannot be written: Not a directory; set NORD_HPC_CACHE"):
        fetch(files("http://127.0.0.1:1"), tmp_path / "file" / "d")
