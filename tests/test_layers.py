"""Imports point one way: errors, core, then the machine, then what decides with it, then the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import turnout

SOURCE = Path(turnout.__file__).parent
# Each layer imports from those below it and from its own. A module that is not listed belongs to the fourth.
LAYERS = (
    {"errors"},
    {"core"},
    {"system", "planes", "metrics", "config", "config_check", "config_file", "config_keys"},
    {"testing"},
    set[str](),  # rollout, supervisor, admin, keeper, router, dashboard and what they are made of
    {"cli", "demo"},
    {"__main__", "entry"},
)
ABOVE = 4
# What would let core touch the world: it gets the time, and decides; somebody else acts.
WORLD = {
    "asyncio",
    "concurrent",
    "ctypes",
    "datetime",
    "fcntl",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "psutil",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uvloop",
}


def layer_of(part: str) -> int:
    return next((number for number, names in enumerate(LAYERS) if part in names), ABOVE)


def imports_in(source: str, package: tuple[str, ...]) -> set[str]:
    """Every module that a source text imports, also inside functions; ``package`` is where its relative ones begin."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *base]
            # a name taken from a package may be a module of it
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    """Each module of turnout, dotted and without the leading ``turnout``, with what it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        package = ("turnout", *parts[:-1])
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = imports_in(path.read_text(), package)
    return found


MODULES = modules()


def inside(name: str) -> set[str]:
    """What a module imports of turnout itself, without the leading ``turnout``."""
    return {found.partition(".")[2] for found in MODULES[name] if found.startswith("turnout.")}


def part(name: str) -> str:
    return name.partition(".")[0]


def test_the_source_was_found() -> None:
    assert {"errors", "core.model", "system.process", "system.spawn", "cli"} <= MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_from_its_own_layer_and_those_below(name: str) -> None:
    mine = layer_of(part(name))
    # the package itself holds nothing but the version
    wrong = {found for found in inside(name) if found != "__version__" and layer_of(part(found)) > mine}
    assert not wrong


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_machine_and_the_planes_know_nothing_of_each_other(name: str) -> None:
    apart = {"system": {"planes"}, "planes": {"system"}}
    assert not {found for found in inside(name) if part(found) in apart.get(part(name), set())}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if part(name) in {"core", "errors"}))
def test_core_touches_nothing_of_the_world(name: str) -> None:
    assert not {found for found in MODULES[name] if part(found) in WORLD}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_tests_benchmarks_or_their_tools(name: str) -> None:
    outside = {"bench", "tests", "support", "pytest", "hypothesis", "pytest_benchmark"}
    assert not {found for found in MODULES[name] if part(found) in outside}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_starts_the_benchmarks_either(name: str) -> None:
    path = SOURCE / Path(*name.split(".")) if name else SOURCE
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = {node.value for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Constant)}
    theirs = ("bench/", "bench.arena", "bench.guard", "bench.janitor", "python -m bench")
    assert not {word for word in words if isinstance(word, str) and word.startswith(theirs)}


def test_the_benchmarks_import_turnout_and_not_the_other_way_round() -> None:
    bench = Path(__file__).parents[1] / "bench"
    used = set().union(*(imports_in(path.read_text(), ("bench",)) for path in bench.glob("*.py")))
    assert any(name.startswith("turnout.") for name in used)
    assert not {name for found in MODULES.values() for name in found if name == "bench" or name.startswith("bench.")}


def test_the_fakes_are_used_by_nothing_that_runs() -> None:
    users = {name for name in MODULES if any(part(found) == "testing" for found in inside(name))}
    assert users == set()


def test_only_the_router_knows_both_how_bytes_move_and_who_decides() -> None:
    def knows(name: str, module: str) -> bool:
        return any(found == module or found.startswith(f"{module}.") for found in inside(name))

    both = {name for name in MODULES if knows(name, "planes.relay") and knows(name, "supervisor")}
    assert both <= {"router"}
    builders = {name for name in MODULES if part(name) != "planes" and knows(name, "planes.relay")}
    assert builders <= {"router"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_has_a_name_that_says_nothing(name: str) -> None:
    assert not set(name.split(".")) & {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


@pytest.mark.parametrize("name", ["keeper", "system.process", "system.spawn", "demo.daemon"])
def test_what_must_be_small_needs_the_standard_library_alone(name: str) -> None:
    code = (
        "import importlib, sys\n"
        "before = set(sys.modules)\n"
        "importlib.import_module(sys.argv[1])\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(tops - sys.stdlib_module_names - {'turnout'}))\n"
    )
    command = [sys.executable, "-P", "-c", code, f"turnout.{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os, a.b", {"os", "a.b"}),
        ("from turnout.core import model", {"turnout.core.model"}),
        ("from . import sibling", {"turnout.core.sibling"}),
        ("from .. import system", {"turnout.system"}),
        ("from ..system.spawn import spawn", {"turnout.system.spawn.spawn"}),
        ("def f():\n    import socket", {"socket"}),
        ("if TYPE_CHECKING:\n    from turnout import cli", {"turnout.cli"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, found: set[str]) -> None:
    assert imports_in(source, ("turnout", "core")) == found
