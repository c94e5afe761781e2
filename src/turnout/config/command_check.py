"""Checks a command before anything is started: its program, its ports, its environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from turnout.config.settings import ServiceRequest, takes_listener
from turnout.config.validation import check_env
from turnout.core.addresses import names_own_port
from turnout.core.containers import runs_container
from turnout.errors import UsageError
from turnout.system.command import resolve_command


def check_no_container(command: Sequence[str]) -> None:
    """Refuse a command that has its daemon run in a container. Raises UsageError: it does."""
    if call := runs_container(command):
        raise UsageError(
            f"the command starts a container ({call}): turnout would stop and watch the client alone, and the container"
            " would live on, with its port and its data",
            hint="start the container by itself, its port published on loopback (-p 127.0.0.1:6380:PORT), then:"
            " turnout attach 127.0.0.1:6380",
        )


def check_command(wanted: ServiceRequest, environ: Mapping[str, str], *, starts_wanted: bool = True) -> None:
    """Find out whether the command that is asked for can run at all; none is asked for: there is nothing to check.

    ``environ``: the environment that its program is looked up with; ``starts_wanted``: the verb starts this command.
    Else the command has only to agree with the settings, which are written.

    Raises:
        UsageError: it names the service's own port, or starts a container.
        SpawnError: it cannot be run.
    """
    if not wanted.command:
        return
    if starts_wanted:
        check_no_container(wanted.command)
    given = takes_listener(wanted.command, wanted.env, wanted.settings)
    check_env(wanted.env, takes_listener=given)
    own = names_own_port(wanted.command, {address.port for address in wanted.settings.listen})
    if own and not wanted.settings.takes_part and wanted.settings.activation != "on":
        raise UsageError(
            f"the command names port {own}, where the service itself listens: it would wait for itself",
            hint='put {port} in its place, or say activation = "on" (--activation on); then it may keep that port',
        )
    if wanted.settings.plane == "reuseport" and not given and wanted.settings.activation != "on":
        raise UsageError(
            "plane reuseport: the command asks for a {port} of its own, and would not listen at the fixed address",
            hint='have it take its listener: {fd} in the command or in env, or LISTEN_FDS; else plane = "relay"',
        )
    if starts_wanted:
        resolve_command(wanted.command, wanted.cwd or str(Path.cwd()), {**environ, **wanted.env})
