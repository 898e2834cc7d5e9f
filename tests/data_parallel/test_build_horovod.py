"""Building Horovod: what is changed in the source, what a cached wheel is tied to, and what is said when it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nord_hpc.data_parallel import build_horovod
from nord_hpc.data_parallel.build_horovod import BuildFailed, Ingredients

INGREDIENTS = Ingredients(
    torch="2.13.0+cpu", cuda=None, mpi="Open MPI v5.0.11", python="cpython-311", machine="x86_64-linux-gnu"
)


def test_importing_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, nord_hpc.data_parallel.build_horovod\n"
        "print([name for name in ('torch', 'numpy', 'mpi4py', 'pydantic', 'horovod') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_line_for_cxx14_becomes_17_and_nothing_else_changes() -> None:
    text = 'project(horovod CXX)\nset(CMAKE_CXX_STANDARD 14)\nset(OTHER 14)\n"set(CMAKE_CXX_STANDARD 17)"\n'
    changed = build_horovod.require_cxx17(text, name="CMakeLists.txt")
    assert changed == 'project(horovod CXX)\nset(CMAKE_CXX_STANDARD 17)\nset(OTHER 14)\n"set(CMAKE_CXX_STANDARD 17)"\n'


@pytest.mark.parametrize(
    ("text", "times"), [("set(CMAKE_CXX_STANDARD 17)\n", 0), ("set(CMAKE_CXX_STANDARD 14)\n" * 2, 2)]
)
def test_a_file_without_exactly_that_line_is_refused(text: str, times: int) -> None:
    message = f"^torch/CMakeLists.txt: expected the line 'set.CMAKE_CXX_STANDARD 14.' once, found it {times} times$"
    with pytest.raises(BuildFailed, match=message):
        build_horovod.require_cxx17(text, name="torch/CMakeLists.txt")


def sample_source(folder: Path) -> Path:
    source = folder / f"horovod-{build_horovod.VERSION}"
    (source / "horovod" / "torch").mkdir(parents=True)
    (source / "CMakeLists.txt").write_text('set(CMAKE_CXX_STANDARD 14)\nx("set(CMAKE_CXX_STANDARD 17)")\n')
    (source / "horovod/torch/CMakeLists.txt").write_text("if(NEW)\n    set(CMAKE_CXX_STANDARD 14)\nendif()\n")
    return source


def test_patch_changes_both_files_and_makes_the_libraries_movable(tmp_path: Path) -> None:
    source = sample_source(tmp_path)
    build_horovod.patch(source)
    assert (source / "horovod/torch/CMakeLists.txt").read_text() == "if(NEW)\n    set(CMAKE_CXX_STANDARD 17)\nendif()\n"
    assert (source / "CMakeLists.txt").read_text().splitlines() == [
        "set(CMAKE_CXX_STANDARD 17)",
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)",
        'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../.." "$ORIGIN/../../torch/lib")',
        "set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)",
        'x("set(CMAKE_CXX_STANDARD 17)")',
    ]
    with pytest.raises(BuildFailed, match="found it 0 times"):
        build_horovod.patch(source)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Ingredients)])
def test_the_key_changes_with_every_ingredient(field: str) -> None:
    other = dataclasses.replace(INGREDIENTS, **{field: "13.0"})
    assert other.key != INGREDIENTS.key
    assert other.label != INGREDIENTS.label
    assert dataclasses.replace(INGREDIENTS).key == INGREDIENTS.key
    assert INGREDIENTS.key.startswith("0.28.1-cpython-311-torch2.13.0+cpu-")


def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path) -> None:
    assert build_horovod.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/nord_hpc/horovod")
    assert build_horovod.cache_folder({"HOME": "/home/me"}) == Path("/home/me/.cache/nord_hpc/horovod")


def test_the_environment_of_the_build() -> None:
    environ = {"PATH": "/usr/bin", "MAKEFLAGS": "n --jobserver-auth=3,4", "MAKELEVEL": "1", "OTHER": "kept"}
    made = build_horovod.build_environment(INGREDIENTS, n_cores=3, environ=environ)
    assert made["HOROVOD_WITH_PYTORCH"] == made["HOROVOD_WITH_MPI"] == made["HOROVOD_WITHOUT_GLOO"] == "1"
    assert made["HOROVOD_WITHOUT_TENSORFLOW"] == made["HOROVOD_WITHOUT_MXNET"] == "1"
    assert made["HOROVOD_LOCAL_VERSION"] == INGREDIENTS.label
    assert made["CMAKE_POLICY_VERSION_MINIMUM"] == "3.5"
    assert (made["MAKEFLAGS"], made["CMAKE_BUILD_PARALLEL_LEVEL"], made["OTHER"]) == ("-j3", "3", "kept")
    assert made["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert "MAKELEVEL" not in made and "HOROVOD_GPU_OPERATIONS" not in made
    with_cuda = dataclasses.replace(INGREDIENTS, cuda="13.0")
    made = build_horovod.build_environment(with_cuda, n_cores=3, environ=environ)
    assert made["HOROVOD_GPU_OPERATIONS"] == "NCCL"


def test_cores_granted_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert build_horovod.cores_granted({"SLURM_CPUS_PER_TASK": "2"}) == (2, "SLURM_CPUS_PER_TASK")
    assert build_horovod.cores_granted({"SLURM_CPUS_PER_TASK": "0"}) == (3, "affinity")
    assert build_horovod.cores_granted({}) == (3, "affinity")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert build_horovod.cores_granted({}) == (8, "machine")


@pytest.mark.parametrize(
    ("installed", "loads", "expected"),
    [
        (None, True, False),
        (f"0.28.1+{INGREDIENTS.label}", False, True),  # by its version alone: nothing is loaded
        ("0.28.1+nord.000000000000", True, False),
        (f"0.27.0+{INGREDIENTS.label}", True, False),
        ("0.28.1", True, True),  # built by somebody else
        ("0.28.1", False, False),
    ],
)
def test_which_installed_version_is_right(
    installed: str | None, loads: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_horovod, "installed_version", lambda: installed)
    monkeypatch.setattr(build_horovod, "works", lambda: loads)
    assert build_horovod.is_installed(INGREDIENTS) is expected


def test_a_finished_folder_appears_at_once_and_the_first_one_stays(tmp_path: Path) -> None:
    final = tmp_path / "key"
    for name in ("first", "second"):
        done = tmp_path / name
        done.mkdir()
        (done / "horovod-0.28.1-x.whl").write_text(name)
        build_horovod.publish(done, final)
    wheel = build_horovod.cached_wheel(final)
    assert wheel is not None and wheel.read_text() == "first"
    assert build_horovod.cached_wheel(tmp_path / "none") is None


def test_a_failing_command_gives_the_end_of_its_log_and_the_place_of_all(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    program = "import sys; print('\\n'.join(f'line {i}' for i in range(50))); sys.exit('fatal error: no mpi.h')"
    with pytest.raises(BuildFailed) as caught:
        build_horovod.run_logged([sys.executable, "-c", program], log=log, what="compiling", environ=os.environ)
    lines = str(caught.value).splitlines()
    assert lines[0] == "compiling failed; the end of the log:"
    assert "  fatal error: no mpi.h" in lines
    assert lines[-1] == f"the whole log: {log}"
    assert len(lines) == 10
    assert "line 0\n" in log.read_text()


def test_a_slow_command_shows_progress_and_is_ended_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_horovod, "PROGRESS_SECONDS", 0.1)
    monkeypatch.setattr(build_horovod, "BUILD_SECONDS", 0.35)
    command = [sys.executable, "-c", "import time; time.sleep(30)"]
    with pytest.raises(BuildFailed, match=r"^compiling took more than 0.35 s; log: "):
        build_horovod.run_logged(command, log=tmp_path / "log", what="compiling", environ=os.environ)
    assert capsys.readouterr().out.startswith("Horovod: compiling, 0 s so far")


def archive_of(source: Path, *, target: Path) -> None:
    with tarfile.open(target, "w:gz") as opened:
        opened.add(source, arcname=source.name)


def test_an_archive_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"horovod-{build_horovod.VERSION}.tar.gz"
    archive_of(sample_source(tmp_path / "made"), target=tmp_path / name)
    monkeypatch.setattr(build_horovod, "run_logged", lambda *args, **kwargs: None)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(BuildFailed, match=f"^{name} has SHA-256 {digest}, and not {build_horovod.ARCHIVE_SHA256}$"):
        build_horovod.fetch(tmp_path, log=tmp_path / "log")
    monkeypatch.setattr(build_horovod, "ARCHIVE_SHA256", digest)
    source = build_horovod.fetch(tmp_path, log=tmp_path / "log")
    assert (source / "horovod/torch/CMakeLists.txt").is_file()


def test_main_builds_once_for_equal_ingredients_and_leaves_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = stand_in_for_pip(tmp_path, monkeypatch)
    assert build_horovod.main() == 0
    assert commands == ["download", "wheel", "install"]
    assert build_horovod.main() == 0
    assert commands == ["download", "wheel", "install", "install"]
    folder = tmp_path / "cache" / "nord_hpc" / "horovod"
    assert sorted(path.name for path in folder.iterdir()) == [INGREDIENTS.key, f"{INGREDIENTS.key}.log"]
    assert "taking the wheel built before" in capsys.readouterr().out


def test_main_says_why_it_cannot_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in_for_pip(tmp_path, monkeypatch, failing="wheel")
    assert build_horovod.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("Horovod: cannot be built: compiling failed; the end of the log:\n")
    assert error.endswith(f"the whole log: {tmp_path}/cache/nord_hpc/horovod/{INGREDIENTS.key}.log\n")
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert not list((tmp_path / "cache").rglob(".building-*"))


def test_a_wheel_that_does_not_load_is_removed_from_environment_and_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = stand_in_for_pip(tmp_path, monkeypatch)
    monkeypatch.setattr(build_horovod, "works", lambda: False)
    assert build_horovod.main() == 1
    assert commands[-1] == "uninstall"
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert "does not load" in capsys.readouterr().err


def stand_in_for_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> list[str]:
    """Let pip's part be played by a function that notes its command and leaves the file that pip would leave."""
    archive = io.BytesIO()
    source = sample_source(folder / "source")
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        opened.add(source, arcname=source.name)
    commands: list[str] = []

    def run(command: list[str], *, log: Path, what: str, environ: object) -> None:
        name = command[3]
        commands.append(name)
        if name == failing:
            build_horovod.fail_with_log(what, log)
        if name == "download":
            target = Path(command[command.index("-d") + 1]) / f"horovod-{build_horovod.VERSION}.tar.gz"
            target.write_bytes(archive.getvalue())
        if name == "wheel":
            target = Path(command[command.index("-w") + 1])
            target.mkdir()
            (target / "horovod-0.28.1-x.whl").write_text("built")

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(build_horovod, "ARCHIVE_SHA256", hashlib.sha256(archive.getvalue()).hexdigest())
    monkeypatch.setattr(build_horovod, "run_logged", run)
    monkeypatch.setattr(build_horovod, "look", lambda: INGREDIENTS)
    monkeypatch.setattr(build_horovod, "is_installed", lambda ingredients: False)
    monkeypatch.setattr(build_horovod, "works", lambda: True)
    return commands
