"""The architecture of docs/design.md: a file imports only from floors below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "settings": 0, "groups": 0, "schedules": 0, "logger": 0, "checkpoint": 0, "posthoc": 0, "blobs": -2, "storage": -1,
    "distributed": 0, "optimizer": 0,
    "parallel": 1, "stopping": 1, "config": 1, "layers": 1, "symmetry": 1, "ema": 1,
    "grids": 1,
    "bridge": 2, "unet": 2,
    "ode": 3, "exponential": 3, "adm": 3,
    "sampling": 4,
    "model": 5,
    "trainer": 6, "certificate": 6,
    "loop": 7,
    "__init__": 8,
}  # fmt: skip
PACKAGES = {"ddbm": {"ddbm"}, "datasets": {"datasets"}, "evaluations": {"evaluations"}}


def imports(path):
    """Dotted names a file imports, relative ones made absolute."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "ddbm").rglob("*.py")), ids=lambda p: p.name)
def test_no_arrow_climbs_a_floor(path):
    assert path.stem in FLOORS, f"give {path.name} a floor here and in docs/design.md"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddbm" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS[parts[1]] < FLOORS[path.stem], f"{path.name} imports {parts[1]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_keep_to_themselves(package):
    for path in (ROOT / package).rglob("*.py"):
        strangers = {n.split(".")[0] for n in imports(path)} & {"ddbm", "datasets", "evaluations", "scripts"}
        assert strangers <= PACKAGES[package], f"{path.name} imports {strangers}"


def test_files_are_short():
    for folder in ("ddbm", "datasets", "evaluations", "scripts", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path
