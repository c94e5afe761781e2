"""How the parts are put together: each takes what it uses, and little of it; each name stands for one class."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import turnout

SOURCE = Path(turnout.__file__).parent
MOST_ARGUMENTS = 6


def classes(*packages: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes of these packages, of all where none is named, each with its file and name."""
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if packages and place.parts[0] not in packages:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield f"{place}: {node.name}", node


def test_no_constructor_of_router_or_lifecycle_takes_more_than_six_arguments() -> None:
    assert not [
        name
        for name, node in classes("router", "lifecycle")
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if len([*method.args.args[1:], *method.args.kwonlyargs]) > MOST_ARGUMENTS
    ]


def test_no_class_is_a_world_that_forwards() -> None:
    assert not [name for name, node in classes() if node.name.endswith("World")]


def test_no_two_public_classes_have_one_name() -> None:
    counts = Counter(node.name for _, node in classes() if not node.name.startswith("_"))
    assert not [name for name, node in classes() if counts[node.name] > 1]
