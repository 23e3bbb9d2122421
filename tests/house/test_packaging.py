"""The wheel: one distribution whose top level is ours alone, with every data file inside."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def found_packages() -> set[str]:
    """Packages that setuptools finds with the project's own settings."""
    settings = CONFIG["tool"]["setuptools"]["packages"]["find"]
    return {name for where in settings["where"] for name in find_packages(str(ROOT / where), include=settings["include"])}


def test_every_source_file_belongs_to_a_package() -> None:
    """Each folder with Python files under the rooms is a package, so that the wheel leaves nothing out."""
    packages = found_packages()
    missing = []
    for room in ("k2core", "backends", "plugins", "kernels", "specs"):
        base = ROOT if room == "k2core" else ROOT / room
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.parent.relative_to(base).parts)
            if name not in packages:
                missing.append(str(path.relative_to(ROOT)))

    assert not missing


def test_top_level_names_are_ours() -> None:
    """The distribution installs no top-level name that does not start with k2core."""
    assert {name.partition(".")[0] for name in found_packages()} == {
        "k2core",
        *(
            path.name
            for room in ("backends", "plugins", "kernels", "specs")
            for path in (ROOT / room).iterdir()
            if path.is_dir() and path.name != "__pycache__"
        ),
    }


def test_first_party_plugins_use_the_entry_point_group() -> None:
    """Every first-party backend and plugin with hooks is an entry point of the group that strangers use."""
    points = CONFIG["project"]["entry-points"]["k2core"]
    hooked = {
        path.parent.name
        for room in ("backends", "plugins")
        for path in (ROOT / room).glob("*/__init__.py")
        if "hookimpl" in path.read_text(encoding="utf-8")
    }

    assert set(points.values()) == hooked


def test_wheel_holds_only_our_packages_and_all_data(tmp_path: Path) -> None:
    """A built wheel has only k2core* at its top level, and every data file of the packages."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("k2core", "backends", "plugins", "kernels", "specs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    data = {
        str(path.relative_to(ROOT / room)) if room != "." else str(path.relative_to(ROOT))
        for room, patterns in (("plugins", ("*/weights/*", "*/data/*.csv")), ("specs", ("**/*.toml",)))
        for pattern in patterns
        for path in (ROOT / room).glob(pattern)
    }

    assert all(name.startswith("k2core") for name in top)
    assert data and data <= set(names)
