"""The house: rooms, files and functions of a size that reads well."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "vlm_agent"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_no_room_has_more_than_a_dozen_files_and_each_says_what_it_is(room: Path):
    files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 12
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text()))


def test_files_and_functions_are_short():
    long = [path.name for path in FILES if len(path.read_text().splitlines()) > 300]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.name}: {node.name}")
    assert not long
