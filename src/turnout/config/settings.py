"""What the operator asked for, resolved: one frozen ``Settings`` a service, and the words for each of its values.

The resolved settings are also what the router reads (``settings.json`` in the service's directory), so that it never
has to look for a configuration file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from turnout.config.keys import DEFAULT_LISTEN, default
from turnout.config.values import (
    Activation,
    Address,
    Expose,
    OnUnhealthy,
    PlaneName,
    ProbeKind,
    ProxyProtocol,
    StrategyName,
    duration,
    parse_address,
)
from turnout.core.data_owner import owns_its_data
from turnout.errors import ConfigError, UsageError

__all__ = ["DEFAULT_LISTEN", "Address", "PlaneName", "duration", "parse_address"]  # from the modules below

DEFAULT_SERVICE: Final = "default"
T = TypeVar("T")
RETIRE_MOST_S: Final = 5.0
_SINCE_0_1: Final = frozenset({"activation", "port"})
_REMOVED: Final[Mapping[str, object]] = {"shares_port": False}  # settings of earlier versions, with their defaults


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a daemon is checked. Times in seconds; ``failures`` consecutive ones roll back."""

    probe: ProbeKind = default("health.probe")
    interval_s: float = default("health.interval")
    timeout_s: float = default("health.timeout")
    failures: int = default("health.failures")
    send: str = default("health.send")
    match: str = default("health.match")
    verify_owner: bool = default("verify_owner")
    path: str = default("health.path")
    host: str = default("health.host")
    status: str = default("health.status")
    command: tuple[str, ...] = default("health.command")
    cwd: str = ""  # where the command of an exec probe runs


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One service, resolved. Times in seconds; None: without end. ``connections`` 0: no limit; ``allow`` empty: all."""

    name: str
    listen: tuple[Address, ...]
    registry: str = default("registry")  # empty: in the service's own directory
    plane: PlaneName = default("plane")
    activation: Activation = default("activation")
    port: int = default("port")  # the daemon's own; 0: the first that it binds
    takes_part: bool = False  # the daemon can share the fixed address: it is activated, or given its listener
    strategy: StrategyName = default("strategy")
    strategy_named: bool = False  # the operator said so; else it follows from the command
    health: Health = Health()
    start_timeout_s: float = default("start_timeout")
    stop_signal: str = default("stop.signal")
    stop_named: bool = False  # as strategy_named
    stop_grace_s: float = default("stop.grace")
    observe_s: float = default("observe")
    drain_grace_s: float = default("drain.grace")
    drain_deadline_s: float | None = default("drain.deadline")
    drain_max: int = default("drain.max_draining")
    hold_max: int = default("hold.max")
    hold_timeout_s: float = default("hold.timeout")
    connections: int = default("limits.connections")
    idle_timeout_s: float | None = default("limits.idle_timeout")
    user_timeout_s: float | None = default("limits.user_timeout")
    proxy_protocol: ProxyProtocol = default("proxy_protocol")
    allow: tuple[str, ...] = default("allow")
    expose: bool | Expose = default("expose")
    on_unhealthy: OnUnhealthy = default("on_unhealthy")
    auto_deploy: bool = default("auto_deploy")
    watch: tuple[str, ...] = default("watch")
    version_command: tuple[str, ...] = default("version_command")
    cwd: str = ""  # where version_command runs
    source: str = ""  # the configuration file it came from, which the router watches

    @property
    def retire_s(self) -> float:
        """How long connections may go on once a daemon makes room for its successor: new clients wait meanwhile."""
        spare_s = self.hold_timeout_s - self.stop_grace_s - self.start_timeout_s
        return max(0.0, min(self.drain_grace_s, RETIRE_MOST_S, spare_s / 2))


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """Where the router serves its metrics; None: nowhere. ``source``: the file that says so, empty for a flag."""

    listen: Address | None = None
    source: str = ""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """Where a service is defined: in a configuration file, or by a command that was typed in a directory."""

    file: str = ""  # the file's absolute path as it was named, symbolic links kept; empty: a typed command
    real_file: str = ""  # the same with symbolic links resolved
    directory: str = ""  # the absolute directory of the file, or the one in which the command was typed


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A service's settings and the build the operator asks for; an empty command means: the one remembered."""

    settings: Settings
    command: tuple[str, ...] = ()
    cwd: str = ""
    env: dict[str, str] = {}
    version: str = ""
    source: str = ""  # the file it came from, for messages
    watched: str = ""  # what the watched files contained, as one hash
    fitted: str = ""  # what was chosen for this daemon because the operator named none, in words
    scrape: Scrape | None = None  # of the whole home; None: the request says nothing of it
    definition: Definition | None = None  # where all this comes from; None: from what the service remembers


def scrape_flag(text: str) -> Scrape:
    """What ``--metrics`` says: an address on loopback, or ``none``. Raises UsageError: neither."""
    return Scrape() if text == "none" else Scrape(listen=parse_address(text))


def fit(settings: Settings, command: Sequence[str]) -> tuple[Settings, str]:
    """Choose strategy and stop signal for a daemon that is known to own its data, where the operator named none.

    Returns:
        The settings, and one line on the choice and its reason; empty: nothing was chosen. A strategy that was found
        once stays: a wrapper around the same daemon would not be recognised.
    """
    owner = owns_its_data(command)
    if owner is None:
        return settings, ""
    chosen: list[str] = []
    if not settings.strategy_named:
        settings = msgspec.structs.replace(settings, strategy="recreate")
        chosen.append("strategy recreate")
    if not settings.stop_named and owner.stop_signal != default("stop.signal"):
        settings = msgspec.structs.replace(settings, stop_signal=owner.stop_signal)
        chosen.append(f"stop signal {owner.stop_signal}")
    return settings, f"{owner.reason}: {' and '.join(chosen)}" if chosen else ""


def takes_listener(command: Sequence[str], env: Mapping[str, str], settings: Settings) -> bool:
    """Whether a daemon listens on a socket that it is given, and opens none.

    It says ``{fd}`` in its command or environment; or it is known to look at LISTEN_FDS (sd_listen_fds(3)), since the
    settings name the plane that needs it, and it asks for no port. With activation it opens its own.
    """
    words = [*command, *env.values()]
    if any("{fd}" in word for word in words):
        return True
    asks = any("{port}" in word for word in words)
    return settings.plane == "reuseport" and settings.activation != "on" and bool(command) and not asks


def with_part(settings: Settings, command: Sequence[str], env: Mapping[str, str]) -> Settings:
    """The settings for this daemon; without a command they stay as they are."""
    if not command:
        return settings
    takes_part = settings.activation == "on" or takes_listener(command, env, settings)
    return msgspec.structs.replace(settings, takes_part=takes_part)


def load_settings(data: bytes) -> Settings:
    """Read back what :func:`dump_settings` of this version or of an earlier one wrote.

    Raises:
        ConfigError: it is no such thing, or a later version wrote it.
    """
    try:
        stored = _decoded(data, dict[str, Any])
        return msgspec.convert({key: stored[key] for key in stored.keys() - _REMOVED}, Settings)
    except ValueError as error:
        raise ConfigError(f"settings.json: {error}", hint="run the verb again with -c or -- CMD") from error


def ignored_settings(data: bytes) -> list[str]:
    """The names of settings that an earlier version stored, and that change nothing any more, where they were set."""
    try:
        stored = _decoded(data, dict[str, Any])
    except ValueError:
        return []
    return [key for key, default in _REMOVED.items() if stored.get(key, default) != default]


def load_scrape(data: bytes) -> Scrape:
    """Read back what :func:`dump_settings` wrote. Raises ConfigError: it was not written by this version."""
    try:
        scrape = _decoded(data, Scrape)
        if scrape.listen:  # somebody may have edited it, and the router is to bind it
            parse_address(str(scrape.listen), beyond_loopback=True)
    except (ValueError, UsageError) as error:
        raise ConfigError(f"metrics.json: {error}", hint="turnout up --metrics ADDR, or none") from error
    return scrape


def dump_settings(value: Settings | Scrape) -> bytes:
    """A service's settings as settings.json has them, or a home's metrics as metrics.json has them.

    A setting that version 0.1 does not know is left out where it has its default: 0.1 refuses a file with such a name.
    """
    raw: dict[str, Any] = msgspec.to_builtins(value)
    raw = {key: found for key, found in raw.items() if key not in _SINCE_0_1 or found != default(key)}
    try:
        data = msgspec.json.format(msgspec.json.encode(raw), indent=2)
    except UnicodeEncodeError:  # a path whose bytes are no UTF-8: the standard library's carries them there and back
        data = json.dumps(raw, indent=2).encode()
    return data + b"\n"


def _decoded(data: bytes, kind: type[T]) -> T:
    """Read back what :func:`dump_settings` wrote. Raises ValueError: it is no such thing."""
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError:
            if b"\\ud" not in data:
                raise
        return msgspec.convert(json.loads(data), kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
