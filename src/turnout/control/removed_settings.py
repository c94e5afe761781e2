"""Services whose settings.json was removed while no router ran that makes it again: what to say, and what to type."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from turnout.config.settings import DEFAULT_SERVICE, Address
from turnout.errors import TurnoutError
from turnout.state.builds import Build, Builds
from turnout.state.definition import definition_of
from turnout.state.home import Home, ServiceHome


def removed_settings(home: ServiceHome) -> str:
    """What is the case, in one line."""
    return f"{home.settings} was removed: no router can serve {home.name} without it"


def restoring_command(home: Home, name: str) -> str:
    """The `turnout up` that writes the settings of a service again."""
    service = home.service(name)
    flag = "" if name == DEFAULT_SERVICE else f" --service {name}"
    known = definition_of(service)
    if known and known.file and Path(known.file).exists():
        return f"turnout up -c {shlex.quote(known.file)}{flag}"
    build = _latest(service)
    if build is None:
        return f"turnout up{flag} -- COMMAND"
    listen = "".join(f" --listen {address}" for address in _addresses(home, name))
    return f"cd {shlex.quote(build.cwd)} && turnout up{flag}{listen} -- {shlex.join(build.command)}"


def _latest(service: ServiceHome) -> Build | None:
    with suppress(TurnoutError):
        return Builds(service.builds).latest()
    return None


def _addresses(home: Home, name: str) -> list[Address]:
    """Where the keeper, if one runs, listens for the service."""
    from turnout.control.keeper_client import KeeperClient  # noqa: PLC0415  # `status` seldom needs it, and has to be quick

    with suppress(TurnoutError, OSError, KeyError), KeeperClient.connect(home) as keeper:
        return [Address(host, port) for host, port in keeper.hello().services.get(name, ())]
    return []
