"""Imports point down: which room of the package may import which, and what stays free of torch.

docs/architecture.md shows the same order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qtrace"
# From the top to the bottom: a room may import those that stand below it.
ORDER = (
    "__main__",
    "cli",
    "pytest_plugin",
    "testing",
    "tracing",
    "debug",
    "zoo",
    "sources",
    "traces",
    "diagnosis",
    "toolkits",
    "engine",
    "numerics",
    "gate",
    "config",
    "documents",
    "report",
    "patterns",
    "tree",
    "errors",
)
# These rooms know the records of a report, and nothing of how it is shown.
KNOW_RECORDS_ALONE = ("diagnosis", "toolkits", "engine", "numerics", "gate")
# The package itself holds only what it exports.
ROOT = "qtrace"


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ROOT


def module_of(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, package: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports anywhere: at its top, in functions, for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
            for alias in node.names:
                inner = package.parent.joinpath(*f"{node.module}.{alias.name}".split("."))
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package.name)


def violations(package: Path) -> list[str]:
    """Return the imports that do not point down, one sentence each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = module_of(path, package)
        above = room_of(module)
        for imported in imports_of(path, package):
            below = room_of(imported)
            if ROOT in (above, below) or above == below:
                continue
            if ORDER.index(above) > ORDER.index(below):
                found.append(f"{module} imports {imported}, which stands above it")
            elif below == "report" and above in KNOW_RECORDS_ALONE and not imported.startswith("qtrace.report.records"):
                found.append(f"{module} imports {imported}; {above} knows the report's records alone")
    return found


def test_imports_point_down() -> None:
    assert violations(PACKAGE) == []


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(ORDER)
    assert sum((PACKAGE / room).is_dir() for room in ORDER) <= 13


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("engine/pair.py", "from qtrace.diagnosis.trial import Trial", "which stands above it"),
        ("numerics/kernel.py", "import qtrace.engine.pair", "which stands above it"),
        ("gate/policy.py", "def late():\n    from qtrace.cli import main", "which stands above it"),
        ("engine/plan.py", "from qtrace.report import terminal", "records alone"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, said: str) -> None:
    package = tmp_path / "qtrace"
    for path in PACKAGE.rglob("*.py"):
        copied = package / path.relative_to(PACKAGE)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert violations(package) == []
    planted = package / file
    planted.write_text(f"{planted.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    assert [said in sentence for sentence in violations(package)] == [True]
