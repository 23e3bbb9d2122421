"""The dependency rule: specs <- k2core <- backends, plugins; kernels import nothing of ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numba", "llvmlite", "onnxruntime", "onnx", "triton"}
ROOMS = {"backends": "backend", "plugins": "plugin", "kernels": "kernels", "specs": "specs"}


def room_of(module: str) -> str:
    """Which room a top-level module of ours lives in; empty for others."""
    if module == "k2core":
        return "core"
    for folder, room in ROOMS.items():
        if (ROOT / folder / module).is_dir():
            return room
    return ""


def imports_of(path: Path) -> list[tuple[str, int, bool]]:
    """(absolute module, line, whether at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.module, node.lineno, id(node) in top))
    return found


def sources(folder: str) -> list[Path]:
    """Python files under a top-level folder."""
    return sorted((ROOT / folder).rglob("*.py"))


ALLOWED = {
    "core": {"core", "specs"},
    "backend": {"core", "specs", "kernels", "backend"},
    "plugin": {"core", "specs", "plugin"},
    "kernels": {"kernels"},
    "specs": {"specs"},
}


@pytest.mark.parametrize(
    ("folder", "room"),
    [("k2core", "core"), ("backends", "backend"), ("plugins", "plugin"), ("kernels", "kernels"), ("specs", "specs")],
)
def test_imports_follow_the_arrows(folder: str, room: str) -> None:
    """No file imports a room that its own room does not depend on."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {room} imports {module}"
        for path in sources(folder)
        for module, line, _ in imports_of(path)
        if room_of(module.partition(".")[0]) not in ALLOWED[room] | {""}
    ]

    assert sources(folder) and not wrong, "\n".join(wrong)


def test_core_imports_no_heavy_library() -> None:
    """Nothing in k2core/ imports torch, numba, onnxruntime or their like, not even inside a function."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sources("k2core")
        for module, line, _ in imports_of(path)
        if module.partition(".")[0] in HEAVY
    ]

    assert not wrong, "\n".join(wrong)


def test_the_small_core_imports_none_of_its_subpackages() -> None:
    """Files directly in k2core/ import no subpackage of k2core."""
    packages = {path.parent.name for path in (ROOT / "k2core").glob("*/__init__.py")}
    files = sorted((ROOT / "k2core").glob("*.py"))
    wrong = [
        f"{path.name}:{line}: {module}"
        for path in files
        if path.name != "__main__.py"
        for module, line, _ in imports_of(path)
        if module.startswith("k2core.") and module.split(".")[1] in packages
    ]

    assert not wrong, "\n".join(wrong)


def test_the_small_core_stays_small() -> None:
    """Files directly in k2core/ have fewer than 2,150 lines together, blank ones not counted."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "k2core").glob("*.py")}
    sizes = {name: sum(bool(line.strip()) for line in text.splitlines()) for name, text in texts.items()}

    assert 0 < sum(sizes.values()) < 2150, sizes


@pytest.mark.parametrize(
    "statement", ["import k2core", "import k2core.interfaces, k2core.plugins, k2core.tools, k2core.agent.loop"]
)
def test_importing_the_core_loads_no_heavy_library(statement: str) -> None:
    """A fresh interpreter that imports the core has loaded neither numpy nor anything heavier."""
    listing = f"{statement}; import sys; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"

    out = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout.split()

    assert not (HEAVY | {"numpy", "rich"}) & set(out)
