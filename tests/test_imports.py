"""The direction of imports: only downward, and heavy packages only where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "nord_hpc"

LAYERS = [
    {"neural_nets", "configurations", "data_curators", "utils"},
    {"scripting"},
    {"cli"},
    {"studies"},
    {"report"},
    {"cluster"},
    {"store"},
    {"evaluators"},
    {"training", "datasets", "spaces", "strategies", "data_parallel", "proxies"},
    {"builder", "nasbench101", "nasbench201"},
    {"job", "interfaces"},
    {"explanations"},
    {"registry", "descriptor"},
    {"canonical"},
    {"trial", "seeding", "logs", "errors", "sources"},
]
"""From the top down; a layer imports from those below it alone, and its members do not meet."""

ONLY_IN = {
    "horovod": {"data_parallel/horovod.py"},
    "mpi4py": {"cluster/", "data_parallel/"},
    "torch": {
        "builder/",
        "training/",
        "proxies/",
        "evaluators/",
        "data_parallel/",
        "scripting/",
        "datasets/storage.py",
    },
    "h5py": {"store/", "datasets/", "evaluators/recorded_table/"},
    "typer": {"cli/"},
    "rich": {"cli/"},
    "matplotlib": {"report/"},
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for each import that is not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, top))
            if node.module.startswith("nord_hpc"):  # what is imported may be a module itself
                found.extend((f"{node.module}.{alias.name}", top) for alias in node.names)
        inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, True)
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def level(name: str) -> int | None:
    return next((index for index, layer in enumerate(LAYERS) if name in layer), None)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert {name for name in parts if level(name) is None} == {"__init__", "__main__"}


def test_imports_go_down() -> None:
    wrong = []
    for path in files():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, _ in imports(path):
            if not module.startswith("nord_hpc.") or level(own) is None or part(module) == own:
                continue
            target = level(part(module))
            if target is not None and target <= (level(own) or 0):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_packages_stay_where_they_belong() -> None:
    wrong = []
    for path in files():
        name = str(path.relative_to(PACKAGE))
        for module, _ in imports(path):
            allowed = ONLY_IN.get(module.split(".")[0])
            if allowed is not None and not any(name.startswith(prefix) for prefix in allowed):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_the_master_needs_no_torch() -> None:
    """What the command line imports at the top, and all that these files import at the top, is free of torch."""
    seen: set[str] = set()
    waiting = ["nord_hpc.cli.app", "nord_hpc.evaluators.training_evaluator", "nord_hpc.evaluators.synthetic"]
    heavy = []
    while waiting:
        module = waiting.pop()
        path = PACKAGE.parent / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module in seen or not file.exists():
            continue
        seen.add(module)
        for name, top in imports(file):
            if top and name.split(".")[0] in ("torch", "mpi4py", "horovod", "matplotlib", "sklearn", "scipy"):
                heavy.append(f"{module} imports {name}")
            if top and name.startswith("nord_hpc"):
                waiting.append(name)
    assert heavy == []
    assert "nord_hpc.cluster.coordinator" in seen
