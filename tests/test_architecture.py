"""The tree's promises: dependencies go one way, the core is pure, the four packages come from one root."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from events.origin import check_one_root

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "events": {"events"},
    "router": {"router", "events"},
    "workers": {"workers", "events"},
    "sim": {"sim", "router", "events"},
}
IMPURE = {"asyncio", "time", "datetime", "socket", "aiohttp", "threading", "os", "zmq", "nats"}


def imports(path: Path, package: str) -> set[str]:
    """Absolute names of all modules that a file imports."""
    names: set[str] = set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) if node.level else ""
            names.add(f"{base}.{node.module or ''}".strip(".") if node.level else node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_dependencies_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imports(path, package)
        if name.split(".")[0] in ALLOWED and name.split(".")[0] not in ALLOWED[package]
    ]
    assert wrong == []


def test_the_core_is_pure() -> None:
    wrong = [
        (path.name, name)
        for path in (ROOT / "router" / "core").rglob("*.py")
        for name in imports(path, "router")
        if name.split(".")[0] in IMPURE
    ]
    assert wrong == []


def test_one_root() -> None:
    assert check_one_root() == ROOT


def test_a_foreign_package_is_refused(tmp_path: Path) -> None:
    """Another distribution's `workers`, found first, must not be taken for ours."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    answer = subprocess.run(
        [sys.executable, "-m", "warmpath", "route", "--model-path", "."],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("warmpath: error: package 'workers' comes from")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 0), (["--help"], 0), (["nothing"], 2), (["route", "--help"], 0)]
)
def test_one_command_for_all_parts(arguments: list[str], status: int) -> None:
    answer = subprocess.run([sys.executable, "-m", "warmpath", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == status
    assert "usage:" in answer.stdout if status == 0 else "there are route, worker" in answer.stderr


@pytest.mark.parametrize("module", ["router", "workers.sglang", "sim.worker", "sim"])
def test_every_command_line_teaches(module: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "usage:" in answer.stdout
    assert "example" in answer.stdout.lower()
