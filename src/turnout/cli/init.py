"""``turnout init``: a commented turnout.toml, with what was found here filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from turnout.config_file import FILE_NAME
from turnout.detection import Proposal, Running, proposals, running
from turnout.errors import UsageError
from turnout.system.files import Files, write_durably

FIRST_PORT = 47777
EXAMPLES = """
\b
Examples:
  turnout init                      from redis.conf, a PostgreSQL data directory, nginx.conf or a Procfile
  turnout init --stdout             look at it first
  turnout init --force              also over a turnout.toml that is there
"""
HEAD = """\
# turnout: zero-downtime rollouts behind a fixed address. Written by `turnout init`; every key below a service is
# optional but command. `turnout up` makes it so, `turnout config` prints what holds and why, `turnout schema file`
# has every key.
"""
REST = """\
# health   = { probe = "alive", interval = "1s", timeout = "500ms", failures = 3 }
# observe  = "30s"                  # after a switch: 3 failed checks in a row bring the previous daemon back
# start_timeout = "30s"             # how long a candidate may take to become healthy
# drain    = { grace = "30s", deadline = "10m", max_draining = 3 }
# hold     = { max = 1024, timeout = "70s" }   # connections that wait while something is on its way
# version  = "1.0"                  # what this build calls itself
# env      = { KEY = "value" }
"""


@click.command(epilog=EXAMPLES)
@click.option("--force", is_flag=True, help="Overwrite a turnout.toml that is there.")
@click.option("--stdout", is_flag=True, help="Print it instead of writing it.")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(directory: Path, *, force: bool, stdout: bool) -> None:
    """Write a commented turnout.toml into DIRECTORY (default: here).

    It looks for redis.conf, a PostgreSQL data directory, nginx.conf and a Procfile, and proposes strategy recreate for
    what must not run twice on its data.
    """
    path = directory / FILE_NAME
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
    name = one.name if re.fullmatch(r"[A-Za-z0-9_-]+", one.name) else _toml(one.name)
    lines = [f"# {_comment(one.why)}", f"[service.{name}]"]
    lines += [f"# {_comment(note)}" for note in one.notes]
    lines.append(f'listen   = "127.0.0.1:{port}"    # what clients connect to, for ever')
    lines.append(f"command  = {_toml(list(one.command))}")
    if one.recreate:
        lines.append('strategy = "recreate"             # stop the old one, then start the new one; clients wait')
        lines.append(f'stop     = {{ signal = "{one.stop_signal}", grace = "30s" }}')
    else:
        lines.append('strategy = "blue-green"           # old and new side by side; they must share no state')
        if one.stop_signal != "TERM":
            lines.append(f'stop     = {{ signal = "{one.stop_signal}", grace = "30s" }}')
        else:
            lines.append('# stop   = { signal = "TERM", grace = "30s" }')
    rest = REST
    if one.health:
        lines.append(f"health   = {one.health}")
        rest = rest.partition("\n")[2]
    return "\n".join(lines) + "\n" + rest


def _toml(value: str | list[str]) -> str:
    """JSON's strings are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """Text of others on one line of a comment."""
    return "".join(char if char.isprintable() else "?" for char in text)
