"""The configuration file, ``turnout.toml``: where it is found, what may stand in it, and what that asks for."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast, get_args

import msgspec

from turnout.config import (
    DEFAULT_LISTEN,
    DEFAULT_STOP_SIGNAL,
    Duration,
    Expose,
    Health,
    ProxyProtocol,
    Scrape,
    Settings,
    Wanted,
    duration,
    duration_or_none,
    fit,
    on_unhealthy,
    one_of,
    parse_address,
    plane_name,
    probe_kind,
    strategy_name,
    takes_listener,
    with_part,
)
from turnout.config_check import check
from turnout.config_keys import MEANINGS
from turnout.errors import ConfigError, UsageError

FILE_NAME: Final = "turnout.toml"
ALL_KEYS: Final = "turnout schema file has every key"


class _RawHealth(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    probe: str = "alive"
    interval: Duration = "1s"
    timeout: Duration = "500ms"
    failures: int = 3
    send: str = ""
    match: str = ""
    path: str = "/"
    host: str = ""
    status: str | int = "200-399"
    command: list[str] = []


class _RawStop(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    signal: str | None = None
    grace: Duration = "30s"


class _RawDrain(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    grace: Duration = "30s"
    deadline: Duration = "10m"
    max_draining: int = 3


class _RawHold(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    max: int = 1024
    timeout: Duration = "70s"


class _RawLimits(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    connections: int = 0
    idle_timeout: Duration = "none"
    user_timeout: Duration = "none"


class _RawService(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    listen: str | list[str] = DEFAULT_LISTEN
    command: list[str] = []
    version: str = ""
    cwd: str = ""
    env: dict[str, str] = {}
    strategy: str | None = None
    plane: str = "auto"
    health: _RawHealth = msgspec.field(default_factory=_RawHealth)
    verify_owner: bool = True
    shares_port: bool = False
    start_timeout: Duration = "30s"
    stop: _RawStop = msgspec.field(default_factory=_RawStop)
    observe: Duration = "30s"
    drain: _RawDrain = msgspec.field(default_factory=_RawDrain)
    hold: _RawHold = msgspec.field(default_factory=_RawHold)
    limits: _RawLimits = msgspec.field(default_factory=_RawLimits)
    proxy_protocol: str = "none"
    allow: list[str] = []
    expose: bool | str = False
    registry: str = ""
    on_unhealthy: str = "report"
    auto_deploy: bool = False
    watch: list[str] = []
    version_command: list[str] = []


class _RawMetrics(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    listen: str
    expose: bool = False


class _RawFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    service: dict[str, _RawService] = {}
    metrics: _RawMetrics | None = None


def find_file(named: str | None) -> Path | None:
    """The configuration file: the one named, else ./turnout.toml, the user's, the system's; None where there is none.

    Raises:
        ConfigError: the named one does not exist.
    """
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"no configuration file {named}", hint="check -c or TURNOUT_CONFIG")
        return path
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path(FILE_NAME), base / "turnout" / FILE_NAME, Path("/etc/turnout") / FILE_NAME):
        with suppress(PermissionError):  # another user's directory, as after su: there is nothing for us in it
            if path.is_file():
                return path
    return None


def keys() -> dict[str, object]:
    """Every key of a service in the file, dotted, with its default."""
    return _flat(msgspec.to_builtins(_RawService()))


def keys_in(path: Path, service: str) -> set[str]:
    """The keys that the file names for a service, dotted. Raises as :func:`load_file`, for what is no TOML."""
    tables: Mapping[str, object] = tomllib.loads(path.read_text(encoding="utf-8")).get("service", {}).get(service, {})
    return set(_flat(tables))


def file_schema() -> dict[str, Any]:
    """The JSON Schema of the file, with what each key means."""
    made: dict[str, Any] = msgspec.json.schema(_RawFile)
    for key, meaning in MEANINGS.items():
        table, _, name = key.rpartition(".")
        made["$defs"][f"_Raw{table.title() or 'Service'}"]["properties"][name]["description"] = meaning
    return made


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as dotted keys; ``env`` is one value."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key != "env":
            found |= _flat(cast("Mapping[str, object]", value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def load_file(path: Path) -> dict[str, Wanted]:
    """Every service of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no TOML (line and column are named), or holds an unknown key or a bad value.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}", hint="mend that place; nothing was changed") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        raw = msgspec.convert(tables, _RawFile)
    except msgspec.ValidationError as error:
        raise _explain(path, str(error)) from error
    wanted: dict[str, Wanted] = {}
    try:
        scrape = _scrape(raw.metrics, path)
    except UsageError as error:
        raise ConfigError(f"{path}: [metrics] {error.message}", hint=error.hint) from error
    for name, service in raw.service.items():
        try:
            wanted[name] = msgspec.structs.replace(_resolve(name, service, path), scrape=scrape)
        except ConfigError:
            raise
        except UsageError as error:
            raise ConfigError(f"{path}: [service.{name}] {error.message}", hint=error.hint) from error
    return wanted


def _explain(path: Path, text: str) -> ConfigError:
    """Say it in the file's own words, and name the nearest key that exists."""
    where = (re.search(r"at `\$\.?([^`]*)`", text) or [None, ""])[1] or "the top level"
    where = where.replace("[...]", ".*")
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if not unknown:
        return ConfigError(f"{path}: {where}: {text.split(' - at ', maxsplit=1)[0]}", hint=ALL_KEYS)
    known: set[str] = set()
    for struct in (_RawFile, _RawService, _RawHealth, _RawStop, _RawDrain, _RawHold, _RawLimits, _RawMetrics):
        known |= set(struct.__struct_fields__)
    near = difflib.get_close_matches(unknown[1], sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else ALL_KEYS
    return ConfigError(f"{path}: {where}: unknown key {unknown[1]!r}", hint=hint)


def _scrape(raw: _RawMetrics | None, path: Path) -> Scrape:
    """A file that says nothing takes back what it said before, and nothing else."""
    if raw is None:
        return Scrape(source=str(path.absolute()))
    listen = parse_address(raw.listen, beyond_loopback=True)
    if not raw.expose and not ipaddress.ip_address(listen.host).is_loopback:
        raise UsageError(
            f"listen address {listen} lies beyond loopback", hint="expose = true, if others are to read the metrics"
        )
    return Scrape(listen=listen, source=str(path.absolute()))


def _resolve(name: str, raw: _RawService, path: Path) -> Wanted:
    listen = [raw.listen] if isinstance(raw.listen, str) else raw.listen
    base = path.parent.absolute()
    settings = Settings(
        name=name,
        listen=tuple(parse_address(text, beyond_loopback=True) for text in listen),
        registry=str(base / Path(raw.registry).expanduser()) if raw.registry else "",
        plane=plane_name(raw.plane),
        shares_port=raw.shares_port,
        strategy=strategy_name(raw.strategy or "blue-green"),
        strategy_named=raw.strategy is not None,
        health=Health(
            probe=probe_kind(raw.health.probe),
            interval_s=duration(raw.health.interval, what="health.interval"),
            timeout_s=duration(raw.health.timeout, what="health.timeout"),
            failures=raw.health.failures,
            send=raw.health.send,
            match=raw.health.match,
            verify_owner=raw.verify_owner,
            path=raw.health.path,
            host=raw.health.host,
            status=str(raw.health.status),
            command=tuple(raw.health.command),
            cwd=str(base / Path(raw.cwd).expanduser()) if raw.cwd else str(base),
        ),
        start_timeout_s=duration(raw.start_timeout, what="start_timeout"),
        stop_signal=(raw.stop.signal or DEFAULT_STOP_SIGNAL).upper().removeprefix("SIG"),
        stop_named=raw.stop.signal is not None,
        stop_grace_s=duration(raw.stop.grace, what="stop.grace"),
        observe_s=duration(raw.observe, what="observe"),
        drain_grace_s=duration(raw.drain.grace, what="drain.grace"),
        drain_deadline_s=duration_or_none(raw.drain.deadline, what="drain.deadline"),
        drain_max=raw.drain.max_draining,
        hold_max=raw.hold.max,
        hold_timeout_s=duration(raw.hold.timeout, what="hold.timeout"),
        connections=raw.limits.connections,
        idle_timeout_s=duration_or_none(raw.limits.idle_timeout, what="limits.idle_timeout"),
        user_timeout_s=duration_or_none(raw.limits.user_timeout, what="limits.user_timeout"),
        proxy_protocol=one_of(get_args(ProxyProtocol), raw.proxy_protocol, "proxy_protocol"),
        allow=tuple(raw.allow),
        expose=raw.expose if isinstance(raw.expose, bool) else one_of(get_args(Expose), raw.expose, "expose"),
        on_unhealthy=on_unhealthy(raw.on_unhealthy),
        auto_deploy=raw.auto_deploy,
        watch=tuple(str(base / Path(text).expanduser()) for text in raw.watch),
        version_command=tuple(raw.version_command),
        cwd=str(base / Path(raw.cwd).expanduser()) if raw.cwd else str(base),
        source=str(path.absolute()),
    )
    if raw.version and raw.version_command:
        raise UsageError("version and version_command are both given", hint="keep one of them")
    if raw.shares_port and takes_listener(raw.command, raw.env, "auto"):
        raise UsageError(
            "shares_port = true and {fd} are both given: a daemon opens its listener itself, or is given one",
            hint="keep {fd}, which works with several workers, too",
        )
    settings, fitted = fit(with_part(settings, raw.command, raw.env), raw.command)
    check(settings)
    return Wanted(
        settings=settings,
        fitted=fitted,
        command=tuple(raw.command),
        cwd=str(base / Path(raw.cwd).expanduser()) if raw.cwd else str(base),
        env=raw.env,
        version=raw.version,
        source=str(path),
    )
