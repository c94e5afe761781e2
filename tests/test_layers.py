"""The import rules that hold the packages apart. Each test lists every offender."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import turnout

SOURCE = Path(turnout.__file__).parent
SYSTEM = {"system", "system.net", "system.probes"}
# What each package may import beside itself, errors and the version; a name means that module, or that package without
# the packages inside it, unless they are named too. ARCHITECTURE.md has this table for people.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "system": {"core"},
    "system.net": {"core", "system"},
    "system.probes": {"core", "system", "system.net"},
    "reuseport": {"core", "system", "system.net"},
    "activation": {"system", "system.net.sockets"},
    "config": {"core", *SYSTEM},
    "planes": {"core", "reuseport.program", "system.net.tcp", "system.net.ports"},
    # which plane runs here: it knows all of them
    "planes.selection": {"core", "planes", "planes.stream", "planes.direct"},
    "planes.stream": {"core", "planes", "system.net.tcp"},
    "planes.direct": {"core", "planes", "reuseport.program", "system.net.tcp"},
    "state": {"core", "config", "state.registry", *SYSTEM},
    "state.registry": {"core", "system"},
    "registry": {"core", "config", "state", "state.registry", *SYSTEM},
    "control": {"core", "config", "state", "state.registry", *SYSTEM},
    "status": {"core", "config", "state", "state.registry", "control", "system"},
    "lifecycle": {
        *(
            "activation.obstacle",
            "core",
            "config",
            "state",
            "state.registry",
            "control",
            "reuseport.recovery",
            "planes.direct.bpf_pins",
            *SYSTEM,
        ),
    },
    "keeper": {
        "activation",
        "core",
        "config.keys",
        "reuseport",
        "state.home",
        "state.keeper_lock",
        "system",
        "system.net",
    },
    "router": {
        *(
            "core",
            "config",
            "state",
            "state.registry",
            "status",
            "planes",
            "planes.selection",
            "planes.stream",
            "planes.direct",
        ),
        *("reuseport.program", "reuseport.feature_test", "router.drain", "router.follow", "router.health", *SYSTEM),
    },
    "router.drain": {"core", "config", "state", "state.registry", "planes", "router", "router.follow", *SYSTEM},
    "router.follow": {"core", "config", "state", "state.registry", "planes", "router", *SYSTEM},
    "router.health": {"core", "config", "state", "state.registry", "planes", "router", "router.follow", *SYSTEM},
    "doctor": {
        *("core", "config", "state", "state.registry", "control", "status", "planes", "planes.direct", "reuseport"),
        "activation.obstacle",
        *SYSTEM,
        *("planes.selection", "lifecycle.build_selection"),
    },
    "dashboard": {"core", "config", "state", "state.registry", "control", "status", "system", "system.net"},
    "demo": {"core", "config", "state", "control", "lifecycle", "system.net"},
    "testing": {"core", "planes", "system"},
}  # cli may import everything but the router
# The three processes know each other by their sockets and files alone; a plane knows neither files nor settings.
NEVER = {
    "keeper": {"router", "lifecycle"},
    "router": {"keeper", "lifecycle"},
    "lifecycle": {"keeper", "router"},
    "planes": {"state", "config"},
}
PURE = (
    *("core", "planes.flow", "state.registry.decoder", "state.registry.encoder", "state.registry.fields"),
    "state.registry.merge",
)
# What would let a pure module reach the machine: it is given the time, and decides.
MACHINE = {
    *(
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
    ),
    *(
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
    ),
    *("threading", "time", "uvloop"),
}
STANDARD_LIBRARY_ONLY = (
    *("keeper.keeper", "reuseport.group", "system.process", "system.spawn", "system.control_channel", "demo.daemon"),
)


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
            found |= {".".join([*base, alias.name]) for alias in node.names}  # a name of a package may be a module
    return found


def read_modules() -> dict[str, set[str]]:
    """Each module of turnout, dotted and without the leading ``turnout``, with what it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = imports_in(path.read_text(), ("turnout", *parts[:-1]))
    return found


MODULES = read_modules()


def own_imports(name: str) -> Iterator[str]:
    """The modules of turnout that a module imports, without the leading ``turnout``."""
    for found in MODULES[name]:
        top, _, inner = found.partition(".")
        if top == "turnout" and inner:
            yield inner if inner in MODULES else inner.rpartition(".")[0]


def package_of(name: str) -> str:
    """The innermost package of the table that a module is in; empty for the command line and the top level."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MAY_IMPORT), "")


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(name: str, imported: str) -> bool:
    package = package_of(name)
    if not package or imported in {"", "errors"}:
        return True
    may = MAY_IMPORT[package]
    return package_of(imported) in {package, *may} or any(inside(imported, one) for one in may if one not in MAY_IMPORT)


def test_each_package_imports_only_what_the_table_allows() -> None:
    assert {package for package in MAY_IMPORT if package not in MODULES} == set()
    assert not [f"{name} -> {found}" for name in MODULES for found in own_imports(name) if not allowed(name, found)]


def test_the_processes_do_not_import_one_another_and_only_the_router_imports_the_router() -> None:
    assert not [
        f"{name} -> {found}"
        for name in MODULES
        for found in own_imports(name)
        for package, others in NEVER.items()
        if inside(name, package) and any(inside(found, other) for other in others)
    ]
    users = {name for name in MODULES if any(inside(found, "router") for found in own_imports(name))}
    assert not {name for name in users if not inside(name, "router")}


def test_what_is_pure_does_not_reach_the_machine() -> None:
    pure = [name for name in (*MODULES, "errors") if name == "errors" or any(inside(name, package) for package in PURE)]
    assert not [f"{name} -> {found}" for name in pure for found in MODULES[name] if found.partition(".")[0] in MACHINE]


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
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


def test_what_runs_needs_neither_tests_nor_benchmarks_nor_fakes() -> None:
    outside = {"bench", "tests", "support", "pytest", "hypothesis", "pytest_benchmark"}
    assert not [
        f"{name} -> {found}" for name in MODULES for found in MODULES[name] if found.partition(".")[0] in outside
    ]
    assert not [name for name in MODULES if "testing" in own_imports(name)]
    theirs = ("bench/", "bench.arena", "bench.guard", "bench.janitor", "python -m bench")
    started = {
        f"{path.relative_to(SOURCE)}: {node.value}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(theirs)
    }
    assert not started


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
    assert not [name for name in MODULES if set(name.split(".")) & nothing]


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
