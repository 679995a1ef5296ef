"""Design rules: what computes knows nothing about Ray, and what only moves tables does not load torch."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import raypref

ROOT = Path(raypref.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT)], "raypref.")]
CORE = [name for name in MODULES if not name.startswith("raypref.remote")]


def loaded(imports: list[str], watched: tuple[str, ...]) -> list[str]:
    """Which of the watched packages a fresh interpreter has loaded after the imports."""
    program = f"""
import importlib, json, sys
for name in {imports!r}:
    importlib.import_module(name)
print(json.dumps([name for name in {watched!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_check_itself_sees_what_is_imported():
    assert loaded(["json", "wave"], ("json", "wave", "ray")) == ["json", "wave"]


def test_core_imports_neither_ray_nor_deepspeed():
    assert {"raypref.trainer", "raypref.models", "raypref.scorers.clip", "raypref.mini.networks"} <= set(CORE)
    assert loaded(CORE, ("ray", "deepspeed")) == []


@pytest.mark.parametrize(
    "module",
    [
        "raypref.remote.tables",
        "raypref.cli",
        "raypref.planning",
        "raypref.dreambench",
        "raypref.remote.evaluate",
        "raypref.comparison_page",
        "raypref.journal",
        "raypref.listing",
        "raypref.pairing",
        "raypref.checkpoints",
        "raypref.exports",
        "raypref.exports.pairs",
    ],
)
def test_what_moves_tables_loads_no_torch(module):
    assert loaded([module], ("torch", "diffusers", "transformers")) == []


def test_importing_the_package_loads_next_to_nothing():
    assert loaded(["raypref"], ("ray", "torch", "pyarrow", "pydantic", "numpy")) == []


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", CORE)
def test_no_core_file_imports_ray_even_within_a_function(name):
    path = ROOT.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert not imported(path) & {"ray", "deepspeed"}


def test_no_core_file_imports_the_remote_folder():
    """One direction only; jobs and the pipeline come from outside."""
    for name in CORE:
        path = ROOT.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert "raypref.remote" not in path.read_text(), name
