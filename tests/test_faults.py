"""The fault table names tests that exist, for every case."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TABLE = Path(__file__).with_name("FAULTS.md")

SPECIFIED = 83
"""Cases of the specification; those after them were found later."""


def rows() -> dict[str, str]:
    """What shows each case, by its number; kinds of files are numbered F1, F2 ..."""
    found = re.findall(r"^\| (F?\d+) \|[^|]+\|(.+)\|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len({number for number, _ in found})
    return {number: text.strip() for number, text in found}


def test_every_case_of_the_fault_table_has_a_test_or_a_reason() -> None:
    table = rows()
    numbers = sorted(int(number) for number in table if number.isdigit())
    assert len(numbers) >= SPECIFIED
    assert numbers == list(range(1, len(numbers) + 1))
    for number, text in table.items():
        assert "::test_" in text or re.match(r"untested: \w+", text), number


def test_every_test_in_the_fault_table_exists() -> None:
    named = {tuple(name.split("::")) for text in rows().values() for name in re.findall(r"`(test_\w+\.py::\w+)`", text)}
    for file in {file for file, _ in named}:
        tree = ast.parse(TABLE.with_name(file).read_text(encoding="utf-8"))
        there = {(file, node.name) for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {name for name in named if name[0] == file} <= there
    assert sum(name.startswith("test_case_") for _, name in named) > 50


def test_every_test_of_a_case_is_in_the_fault_table() -> None:
    for path in TABLE.parent.glob("test_*.py"):
        for name in re.findall(r"^def (test_case_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"`{path.name}::{name}`" in TABLE.read_text(encoding="utf-8"), name
