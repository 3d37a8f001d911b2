"""The order of the house: which module may import which, and what stands where.

A module may import what stands on its own floor or below. Imports inside functions and for type checking count: they
are knowledge too. `KNOWN` lists what breaks a rule today; it is to become empty.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("vsfmanet.errors", "vsfmanet.atomic", "vsfmanet.manifest"),
    (
        "vsfmanet.settings",
        "vsfmanet.sizes",
        "vsfmanet.caches",
        "vsfmanet.devices",
        "vsfmanet.segments",
        "vsfmanet.tiling",
    ),
    ("vsfmanet.ops",),
    ("vsfmanet.kernels",),
    ("vsfmanet.networks",),
    ("vsfmanet.weights",),
    ("vsfmanet.engines", "vsfmanet.streams"),
    ("vsfmanet.restorer",),
    ("vsfmanet.exposures",),
    ("vsfmanet.clips",),
    ("vsfmanet.filter",),
    ("vsfmanet.media",),
    ("vsfmanet.jobs",),
    ("vsfmanet.cluster",),
    ("vsfmanet.cli", "vsfmanet.doctor", "vsfmanet.cards", "vsfmanet.__main__"),
)
"""From the ground up."""

TRAINING_CEILING = "vsfmanet.exposures"
"""The highest floor that training may import."""

WITHOUT_VAPOURSYNTH = "vsfmanet.exposures"
"""The highest floor on which nothing imports VapourSynth."""

MAX_JOBS_FILES = 14
"""Modules in `jobs/`."""

KNOWN: dict[str, set[str]] = {
    "upward import": set(),
    "circle": set(),
    "isinstance of a network": set(),
    "test imports a test": set(),
    "script imports a script": set(),
    "too early import": set(),
}
"""What breaks a rule, by rule."""


def module_name(path: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules(*folders: str) -> dict[str, ast.Module]:
    """The syntax trees of all modules under some folders, by name."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path): tree(path) for path in paths}


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of this project that a module imports, anywhere in it.

    A name that the package itself offers, such as `vsfmanet.restore`, is an import of the filter; its version is none.
    """
    known = modules("vsfmanet", "training", "tests", "scripts")
    found = set()
    for node in ast.walk(known[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            asked = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        else:
            continue
        for module in asked:
            if module == "vsfmanet.__version__":
                continue
            while module and module not in known:
                module = module.rpartition(".")[0]
            if module == "vsfmanet":
                module = "vsfmanet.filter"
            if module and module != name:
                found.add(module)
    return frozenset(found)


def floor(name: str) -> int:
    """The floor on which a module of vsfmanet stands."""
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    raise AssertionError(f"{name} stands on no floor; add it to FLOORS")


def product() -> list[str]:
    """Modules of vsfmanet without the package itself, which loads the filter when it is asked for."""
    return [name for name in modules("vsfmanet") if name != "vsfmanet"]


def upward_imports() -> Iterator[str]:
    for name in product():
        for other in sorted(imports(name)):
            if not other.startswith("vsfmanet.") or floor(other) > floor(name):
                yield f"{name} -> {other}"
    ceiling = floor(TRAINING_CEILING)
    for name in modules("training"):
        for other in sorted(imports(name)):
            if not other.startswith("training") and (not other.startswith("vsfmanet.") or floor(other) > ceiling):
                yield f"{name} -> {other}"


def circles() -> Iterator[str]:
    """Groups of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for name in [*product(), *modules("training")]:
        seen, left = set(), set(imports(name))
        while left:
            other = left.pop()
            seen.add(other)
            left |= imports(other) - seen
        reached[name] = seen
    groups = {
        frozenset(other for other in seen if name in reached.get(other, ())) for name, seen in reached.items()
    } - {frozenset()}
    for group in sorted(map(sorted, groups)):
        yield " - ".join(group)


def network_classes() -> set[str]:
    """Names of the restoration networks: the classes in `networks/` that have a reach, and what derives from them."""
    classes = [
        node
        for module in modules("vsfmanet/networks").values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    ]
    bases = {node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases} for node in classes}
    found = {node.name for node in classes if any(name_of(member) == "reach" for member in node.body)}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def name_of(member: ast.stmt) -> str:
    """The name that a statement in a class body defines; "" for others."""
    match member:
        case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return ""


def isinstance_of_networks() -> Iterator[str]:
    classes = network_classes()
    for name, module in modules("vsfmanet", "training").items():
        if name.startswith("vsfmanet.networks"):
            continue
        asked = set()
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                asked |= {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)} & classes
        yield from (f"{name}: {asked_for}" for asked_for in sorted(asked))


def imports_between_tests() -> Iterator[str]:
    for name in modules("tests"):
        for other in sorted(imports(name)):
            if other.startswith("tests.test_"):
                yield f"{name} -> {other}"


def is_script(name: str) -> bool:
    """Whether a module is run as a program."""
    return any(
        isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        for node in modules("training", "scripts")[name].body
    )


def scripts_that_import_scripts() -> Iterator[str]:
    programs = modules("training", "scripts")
    for name in programs:
        for other in sorted(imports(name)):
            if other in programs and is_script(name) and is_script(other):
                yield f"{name} -> {other}"


def early_imports() -> Iterator[str]:
    """Heavy libraries that are loaded by importing the package, or by a command before it runs."""
    for names in (["vsfmanet"], ["vsfmanet.manifest", *modules("vsfmanet/cli")]):
        code = f"import sys, {', '.join(names)}; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        yield from (f"{names}: {library}" for library in ("av", "numpy", "torch", "vapoursynth") if library in loaded)


RULES = {
    "upward import": upward_imports,
    "circle": circles,
    "isinstance of a network": isinstance_of_networks,
    "test imports a test": imports_between_tests,
    "script imports a script": scripts_that_import_scripts,
    "too early import": early_imports,
}


@pytest.mark.parametrize("rule", RULES)
def test_nothing_but_what_is_known_breaks_a_rule(rule: str) -> None:
    assert sorted(set(RULES[rule]()) - KNOWN[rule]) == []


def test_jobs_has_few_files() -> None:
    assert len(modules("vsfmanet/jobs")) <= MAX_JOBS_FILES


def test_the_lower_floors_do_not_know_vapoursynth() -> None:
    for name in product():
        if floor(name) <= floor(WITHOUT_VAPOURSYNTH):
            for node in ast.walk(modules("vsfmanet")[name]):
                imported = [node.module] if isinstance(node, ast.ImportFrom) else []
                imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert "vapoursynth" not in imported, name
