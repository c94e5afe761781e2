"""What ``--help`` shows as an example can be typed: verbs, options and arguments are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from turnout.cli import cli
from turnout.cli.commands import VERBS


def epilogs() -> Iterator[str]:
    """The examples of every verb, and of each verb of a group."""
    yield cli.epilog or ""
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield command.epilog or ""
        if isinstance(command, click.Group):
            yield from (inner.epilog or "" for inner in command.commands.values())


def examples() -> list[list[str]]:
    """Each ``turnout …`` of a line, without what a shell would do with it and the remark behind it."""
    found: dict[str, list[str]] = {}
    for line in "\n".join(epilogs()).splitlines():
        typed = re.split(r"\s{3,}", line.removeprefix("Example:").strip())[0]
        for part in re.split(r" && | \| | > ", typed):
            if re.match(r"(sudo |[A-Z_]+=\S+ )*turnout ", part):
                words = shlex.split(part)
                found[part] = words[words.index("turnout") + 1 :]
    return list(found.values())


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_is_a_command_line_that_is_taken(words: list[str]) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        _, inner, words = command.resolve_command(context, words)
        assert inner is not None
        command = inner
    with command.make_context(command.name, words, parent=context) as parsed:
        assert parsed.command is command


def test_the_examples_were_found() -> None:
    assert len(examples()) > 40
