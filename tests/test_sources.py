"""Classes of the user's files: by which names they go, and that a copy of a file makes no second class of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from nord_hpc import registry
from nord_hpc.builder import custom
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.sources import PLUGIN_PREFIX, file_being_imported, name_in_file

PLUGIN = """
import helper

class Outer:
    class Inner:
        pass

VALUE = helper.VALUE
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine_of_test_sources.py").write_text(PLUGIN)
    (tmp_path / "helper.py").write_text("VALUE = 7\n")
    return tmp_path


def test_a_plug_in_imports_the_files_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.path)
    module = registry.import_file("code", "mine_of_test_sources.py", folder=folder)
    monkeypatch.delitem(sys.modules, "helper")
    assert module.VALUE == 7 and module.__name__.startswith(PLUGIN_PREFIX) and sys.path == before
    assert registry.resolve("space", "mine_of_test_sources.py:Outer.Inner", folder=folder) is module.Outer.Inner
    assert name_in_file(module.Outer.Inner) == "mine_of_test_sources.py:Outer.Inner"
    with pytest.raises(BadInput, match=r"space '.*:Outer.Gone': .*mine_of_test_sources.py defines no Outer.Gone"):
        registry.resolve("space", "mine_of_test_sources.py:Outer.Gone", folder=folder)


def test_a_copy_of_an_imported_module_is_that_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("mine_of_test_sources")
    (folder / "code").mkdir()
    copy = folder / "code" / "mine_of_test_sources.py"
    copy.write_text(PLUGIN)
    assert registry.resolve("space", "code/mine_of_test_sources.py:Outer", folder=folder) is module.Outer
    assert name_in_file(module.Outer) is None
    other = folder / "other"
    other.mkdir()
    (other / "mine_of_test_sources.py").write_text(PLUGIN + "\nCHANGED = True\n")
    changed = registry.resolve("space", "other/mine_of_test_sources.py:Outer", folder=folder)
    assert changed is not module.Outer and changed.__name__ == "Outer"
    for name in ("mine_of_test_sources", "helper"):
        monkeypatch.delitem(sys.modules, name)


def test_layers_of_modules_and_paths_that_are_gone_come_from_the_copies(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "gone_layers.py").write_text("class Layer:\n    pass\n")
    cls = custom.load("gone_layers:Layer", folder=folder)
    assert cls.__name__ == "Layer"
    assert custom.load("/nowhere/gone_layers.py:Layer", folder=folder) is cls
    with pytest.raises(BadInput, match=r"layer class 'never_there:Layer': cannot be imported: ModuleNotFoundError"):
        custom.load("never_there:Layer", folder=folder)


def test_classes_made_in_functions_are_refused() -> None:
    class Local:
        pass

    with pytest.raises(ValueError, match=r"layer 'x': class test_classes.*<locals>.Local of .*_sources is made in"):
        NeuralDescriptor().add_layer(Local, None, "x")


def test_the_file_whose_top_level_runs_is_known(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text("from nord_hpc import sources\nFOUND = sources.file_being_imported()\n")
    module = registry.import_file("code", "asks.py", folder=tmp_path)
    assert str(module.FOUND) == f"{tmp_path}/asks.py"
    assert file_being_imported() is None


def test_the_start_script_is_not_imported_again(tmp_path: Path) -> None:
    """Its classes are found from any folder, by its name alone, and in a copy."""
    script = tmp_path / "start.py"
    script.write_text(
        "from pathlib import Path\n"
        "from nord_hpc import registry, sources\n"
        "class Mine: pass\n"
        "copy = Path('copies', 'start.py'); copy.parent.mkdir(); copy.write_text(Path(__file__).read_text())\n"
        "for file in (__file__, 'start.py', 'copies/start.py'):\n"
        "    assert registry.resolve('space', f'{file}:Mine', folder=Path.cwd()) is Mine\n"
        "print(sources.name_in_file(Mine), sources.running_script())\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (f"start.py:Mine {script}\n", "")
