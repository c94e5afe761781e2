"""``turnout init``: a commented turnout.toml, with what was found here filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from turnout.cli.detection import Proposal, Running, proposals, running
from turnout.cli.formatting import examples
from turnout.config.file import FILE_NAME
from turnout.config.keys import KEYS, default
from turnout.core.json_text import json_text
from turnout.errors import UsageError
from turnout.state.definition import working_directory
from turnout.system.files import Files, write_durably

FIRST_PORT = 47777
HEAD = """\
# turnout: zero-downtime rollouts behind a fixed address. Written by `turnout init`; every key below a service is
# optional but command. `turnout up` makes it so, `turnout config` prints what holds and why, `turnout schema file`
# has every key.
"""
# The settings that stand in the file as comments, with their defaults: keys of one table, and what is said of them
COMMENTS: Final = (
    (("health.probe", "health.interval", "health.timeout", "health.failures"), ""),
    (("observe",), "after a switch: 3 failed checks in a row bring the previous daemon back"),
    (("start_timeout",), "how long a candidate may take to become healthy"),
    (("drain.grace", "drain.deadline", "drain.max_draining"), ""),
    (("hold.max", "hold.timeout"), "connections that wait while something is on its way"),
)
REST = """\
# version  = "1.0"                  # what this build calls itself
# env      = { KEY = "value" }
"""


@click.command(
    epilog=examples(
        "turnout init                      from redis.conf, a PostgreSQL data directory, nginx.conf or a Procfile",
        "turnout init --stdout             look at it first",
        "turnout init --force              also over a turnout.toml that is there",
    )
)
@click.option("--force", is_flag=True, help="Overwrite a turnout.toml that is there.")
@click.option("--stdout", is_flag=True, help="Print it instead of writing it.")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(directory: Path, *, force: bool, stdout: bool) -> None:
    """Write a commented turnout.toml into DIRECTORY (default: here).

    It looks for redis.conf, a PostgreSQL data directory, nginx.conf and a Procfile, and proposes strategy recreate for
    what must not run twice on its data.
    """
    path = directory / FILE_NAME
    if not directory.is_absolute() and not working_directory():
        raise UsageError("the working directory was deleted", hint="cd to a directory that exists")
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", hint="turnout init DIRECTORY")
    if not stdout and not force and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} is there already; it was not touched", hint="turnout init --stdout, or --force")
    found = proposals(directory)
    text = written(found, running())
    if stdout:
        click.echo(text, nl=False)
        return
    write_durably(Files(), path, text.encode(), mode=0o644)
    what = ", ".join(f"{one.name} ({one.why})" for one in found) or "an example: nothing was recognised here"
    click.echo(f"wrote {path}: {what}")
    click.echo("look at it, then: turnout up --dry-run", err=True)


def written(found: Sequence[Proposal], there: Sequence[Running]) -> str:
    """The text of the file."""
    parts = [HEAD, *map(_serving, there)]
    example = Proposal("default", ("./server", "--port", "{port}"), "an example; put your own daemon here")
    for number, proposal in enumerate(found or [example]):
        parts.append(_service(proposal, FIRST_PORT + number))
    return "\n".join(parts)


def _serving(one: Running) -> str:
    who = _comment(f"{one.name} ({one.holder.command}, pid {one.holder.pid})")
    return (
        f"# {who} serves 127.0.0.1:{one.port} now.\n"
        f"# To put it behind the fixed address as it is: turnout attach 127.0.0.1:{one.port}\n"
    )


def _service(one: Proposal, port: int) -> str:
    name = one.name if re.fullmatch(r"[A-Za-z0-9_-]+", one.name) else json_text(one.name)
    lines = [f"# {_comment(one.why)}", f"[service.{name}]"]
    lines += [f"# {_comment(note)}" for note in one.notes]
    lines.append(f'listen   = "127.0.0.1:{port}"    # what clients connect to, for ever')
    lines.append(f"command  = {json_text(list(one.command))}")
    if one.recreate:
        lines.append('strategy = "recreate"             # stop the old one, then start the new one; clients wait')
    else:
        lines.append('strategy = "blue-green"           # old and new side by side; they must share no state')
    named = one.recreate or one.stop_signal != default("stop.signal")
    stop = _setting(("stop.signal", "stop.grace"), width=8 if named else 6, signal=one.stop_signal)
    lines.append(stop if named else f"# {stop}")
    if one.health:
        lines.append(f"health   = {one.health}")
    for names, text in COMMENTS[1 if one.health else 0 :]:
        line = f"# {_setting(names)}"
        lines.append(f"{line:33}   # {text}" if text else line)
    return "\n".join(lines) + "\n" + REST


def _setting(names: Sequence[str], *, width: int = 8, **instead: str) -> str:
    """One line of the file: a key with its default, or keys of one table, with what stands ``instead`` of a default."""
    keys = [KEYS[name] for name in names]
    values = [json_text(instead.get(key.last, key.default)) for key in keys]
    inner = ", ".join(f"{key.last} = {value}" for key, value in zip(keys, values, strict=True))
    table = keys[0].table
    return f"{table or keys[0].name:{width}} = {f'{{ {inner} }}' if table else values[0]}"


def _comment(text: str) -> str:
    """Text of others on one line of a comment."""
    return "".join(char if char.isprintable() else "?" for char in text)
