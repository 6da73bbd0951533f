"""The architecture of docs/design.md: an import goes down a floor, or stays in its room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "entrance": 0, "settings": 0, "files": 0, "ranks": 0,
    "config": 1, "symmetry": 1,
    "bridges": 2, "networks": 2,
    "codecs": 3,
    "model": 4,
    "certificate": 5, "training": 5, "translation": 5,
    "__init__": 6,
}  # fmt: skip
GROUND = 1  # up to here `ddbm` is open to datasets and evaluations
PEERS = {"ddbm": set(), "datasets": {"ddbm"}, "evaluations": {"ddbm", "datasets"}}


def imports(path):
    """Dotted names a file imports, relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(parts):
    """The room of `ddbm` that a dotted name or a path below the root leads to."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", sorted((ROOT / "ddbm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_climbs_a_floor(path):
    own = room(path.relative_to(ROOT).parts)
    assert own in FLOORS, f"give {own} a floor here and in docs/design.md"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddbm" and room(parts) != own:
            assert FLOORS[room(parts)] < FLOORS[own], f"{path.name} imports {name}"


@pytest.mark.parametrize("package", PEERS)
def test_packages_know_only_those_below(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] in {"ddbm", "datasets", "evaluations", "scripts", "benchmarks", "tests"} - {package}:
                assert parts[0] in PEERS[package], f"{path.name} imports {name}"
                assert parts[0] != "ddbm" or FLOORS[room(parts)] <= GROUND, f"{path.name} imports {name}"


def test_files_are_short():
    for folder in ("ddbm", "datasets", "evaluations", "scripts", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
