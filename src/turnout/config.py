"""What the operator asked for: ``turnout.toml``, flags and environment, resolved into one frozen ``Settings``.

The resolved settings are also what the router reads (``settings.json`` in the service's directory), so that it never
has to look for a configuration file of its own.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import signal
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar, cast, get_args

import msgspec

from turnout.core.listen import exposure_problem, overlap
from turnout.core.policy import owns_its_data
from turnout.errors import ConfigError, UsageError
from turnout.planes.policy import networks
from turnout.system.probe_http import parse_statuses

DEFAULT_LISTEN: Final = "127.0.0.1:47777"
DEFAULT_SERVICE: Final = "default"
DEFAULT_STOP_SIGNAL: Final = "TERM"
FILE_NAME: Final = "turnout.toml"

ProbeKind = Literal["alive", "tcp", "expect", "http", "exec", "none"]
PlaneName = Literal["auto", "relay", "stream"]
StrategyName = Literal["blue-green", "recreate"]
OnUnhealthy = Literal["report", "restart"]
ProxyProtocol = Literal["none", "v2"]
Expose = Literal["clients-look-local"]
T = TypeVar("T")
RETIRE_MOST_S: Final = 5.0


class Address(msgspec.Struct, frozen=True):
    """Where clients connect to; ``host`` is numeric."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a daemon is checked. Times in seconds; ``failures`` consecutive ones roll back."""

    probe: ProbeKind = "alive"
    interval_s: float = 1.0
    timeout_s: float = 0.5
    failures: int = 3
    send: str = ""
    match: str = ""
    verify_owner: bool = True
    path: str = "/"
    host: str = ""
    status: str = "200-399"
    command: tuple[str, ...] = ()
    cwd: str = ""  # where the command of an exec probe runs


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One service, resolved. Times in seconds; None: without end. ``connections`` 0: no limit; ``allow`` empty: all."""

    name: str
    listen: tuple[Address, ...]
    registry: str = ""  # empty: in the service's own directory
    plane: PlaneName = "auto"
    strategy: StrategyName = "blue-green"
    strategy_named: bool = False  # the operator said so; else it follows from the command
    health: Health = Health()
    start_timeout_s: float = 30.0
    stop_signal: str = DEFAULT_STOP_SIGNAL
    stop_named: bool = False  # as strategy_named
    stop_grace_s: float = 30.0
    observe_s: float = 30.0
    drain_grace_s: float = 30.0
    drain_deadline_s: float | None = 600.0
    drain_max: int = 3
    hold_max: int = 1024
    hold_timeout_s: float = 70.0
    connections: int = 0
    idle_timeout_s: float | None = None
    user_timeout_s: float | None = None
    proxy_protocol: ProxyProtocol = "none"
    allow: tuple[str, ...] = ()
    expose: bool | Expose = False
    on_unhealthy: OnUnhealthy = "report"
    auto_deploy: bool = False
    watch: tuple[str, ...] = ()
    version_command: tuple[str, ...] = ()
    cwd: str = ""  # where version_command runs
    source: str = ""  # the configuration file it came from, which the router watches

    @property
    def retire_s(self) -> float:
        """How long connections may go on once a daemon makes room for its successor: new clients wait meanwhile."""
        spare_s = self.hold_timeout_s - self.stop_grace_s - self.start_timeout_s
        return max(0.0, min(self.drain_grace_s, RETIRE_MOST_S, spare_s / 2))


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A service's settings and the build the operator asks for; an empty command means: the one remembered."""

    settings: Settings
    command: tuple[str, ...] = ()
    cwd: str = ""
    env: dict[str, str] = {}
    version: str = ""
    source: str = ""  # the file it came from, for messages
    watched: str = ""  # what the watched files contained, as one hash
    fitted: str = ""  # what was chosen for this daemon because nobody named it, in words


# -- the file, as people write it ------------------------------------------------------------------------------------

Duration = str | int | float


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


class _RawFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    service: dict[str, _RawService] = {}


_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\Z")


def duration(value: Duration, *, what: str = "a duration") -> float:
    """Seconds from ``"500ms"``, ``"30s"``, ``"10m"``, ``"2h"``, ``"1d"`` or a bare number of seconds.

    Raises:
        UsageError: anything else, or a negative one.
    """
    text = str(value).strip() if not isinstance(value, bool) else "?"
    match = _DURATION.match(text)
    if not match:
        raise UsageError(f"{what}: {value!r} is no duration", hint="write it like 500ms, 30s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def duration_or_none(value: Duration, *, what: str) -> float | None:
    """As :func:`duration`; ``"none"`` means without end."""
    return None if value in {"none", "never"} else duration(value, what=what)


def parse_address(text: str, *, beyond_loopback: bool = False) -> Address:
    """``HOST:PORT`` with a numeric host, ``localhost``, or ``[::1]:PORT``.

    Args:
        text: that.
        beyond_loopback: whether another host than a loopback one will do.

    Raises:
        UsageError: it is none of these, or lies beyond loopback.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise UsageError(f"{text!r} is no address", hint="write it like 127.0.0.1:47777 or [::1]:47777")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = "127.0.0.1" if bare in {"localhost", ""} else bare
    try:
        parsed = ipaddress.ip_address(bare)
    except ValueError:
        raise UsageError(f"{text!r}: {bare!r} is no numeric address", hint="write it like 127.0.0.1:47777") from None
    if not parsed.is_loopback and not beyond_loopback:
        raise UsageError(f"{text!r} lies beyond loopback", hint="a daemon is reached on 127.0.0.1 or [::1]")
    return Address(str(parsed), int(port_text))


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


def file_schema() -> dict[str, object]:
    """The JSON Schema of the file."""
    return msgspec.json.schema(_RawFile)


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
    for name, service in raw.service.items():
        try:
            wanted[name] = _resolve(name, service, path)
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
        return ConfigError(
            f"{path}: {where}: {text.split(' - at ', maxsplit=1)[0]}", hint="see the README's table of settings"
        )
    known: set[str] = set()
    for struct in (_RawFile, _RawService, _RawHealth, _RawStop, _RawDrain, _RawHold, _RawLimits):
        known |= set(struct.__struct_fields__)
    near = difflib.get_close_matches(unknown[1], sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see the README's table of settings"
    return ConfigError(f"{path}: {where}: unknown key {unknown[1]!r}", hint=hint)


def _resolve(name: str, raw: _RawService, path: Path) -> Wanted:
    listen = [raw.listen] if isinstance(raw.listen, str) else raw.listen
    base = path.parent.absolute()
    settings = Settings(
        name=name,
        listen=tuple(parse_address(text, beyond_loopback=True) for text in listen),
        registry=str(base / Path(raw.registry).expanduser()) if raw.registry else "",
        plane=plane_name(raw.plane),
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
        proxy_protocol=_one_of(get_args(ProxyProtocol), raw.proxy_protocol, "proxy_protocol"),
        allow=tuple(raw.allow),
        expose=raw.expose if isinstance(raw.expose, bool) else _one_of(get_args(Expose), raw.expose, "expose"),
        on_unhealthy=on_unhealthy(raw.on_unhealthy),
        auto_deploy=raw.auto_deploy,
        watch=tuple(str(base / Path(text).expanduser()) for text in raw.watch),
        version_command=tuple(raw.version_command),
        cwd=str(base / Path(raw.cwd).expanduser()) if raw.cwd else str(base),
        source=str(path.absolute()),
    )
    if raw.version and raw.version_command:
        raise UsageError("version and version_command are both given", hint="keep one of them")
    settings, fitted = fit(settings, raw.command)
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


def plane_name(text: str) -> PlaneName:
    planes: tuple[PlaneName, ...] = get_args(PlaneName)
    return _one_of(planes, text, "plane")


def on_unhealthy(text: str) -> OnUnhealthy:
    if text not in get_args(OnUnhealthy):
        raise UsageError(f"on_unhealthy: {text!r} is nothing to do", hint=f"one of {', '.join(get_args(OnUnhealthy))}")
    return "restart" if text == "restart" else "report"


def strategy_name(text: str) -> StrategyName:
    kinds: tuple[StrategyName, ...] = get_args(StrategyName)
    for kind in kinds:
        if kind == text:
            return kind
    raise UsageError(f"strategy {text!r} is unknown", hint=f"one of {', '.join(kinds)}")


def fit(settings: Settings, command: Sequence[str]) -> tuple[Settings, str]:
    """Choose strategy and stop signal for a daemon that is known to own its data, where the operator named none.

    Args:
        settings: as they are so far.
        command: what is to be run; empty: nothing is said about it.

    Returns:
        The settings, and what was chosen and why in one line; empty where nothing was. A strategy that was found once
        stays: a wrapper around the same daemon would not be recognised.
    """
    owner = owns_its_data(command)
    if owner is None:
        return settings, ""
    chosen: list[str] = []
    if not settings.strategy_named:
        settings = msgspec.structs.replace(settings, strategy="recreate")
        chosen.append("strategy recreate")
    if not settings.stop_named and owner.stop_signal != DEFAULT_STOP_SIGNAL:
        settings = msgspec.structs.replace(settings, stop_signal=owner.stop_signal)
        chosen.append(f"stop signal {owner.stop_signal}")
    return settings, f"{owner.reason}: {' and '.join(chosen)}" if chosen else ""


def probe_kind(text: str) -> ProbeKind:
    kinds: tuple[ProbeKind, ...] = get_args(ProbeKind)
    return _one_of(kinds, text, "probe")


def _one_of(known: tuple[T, ...], text: str, what: str) -> T:
    for one in known:
        if one == text:
            return one
    raise UsageError(f"there is no {what} {text!r}", hint=f"one of {', '.join(map(str, known))}")


def check(settings: Settings) -> None:
    """Hold resolved settings to what makes sense together.

    Raises:
        UsageError: a value out of its range.
    """
    if not settings.listen:
        raise UsageError("listen names no address", hint=f'for example listen = "{DEFAULT_LISTEN}"')
    both = overlap([(address.host, address.port) for address in settings.listen])
    if both:
        raise UsageError(f"listen names {Address(*both[0])} and {Address(*both[1])}, which are one", hint="drop one")
    problem = exposure_problem(
        [address.host for address in settings.listen],
        settings.expose,
        proxy_protocol=settings.proxy_protocol != "none",
    )
    if problem:
        raise UsageError(problem[0], hint=problem[1])
    if not hasattr(signal, f"SIG{settings.stop_signal}"):
        raise UsageError(f"there is no signal {settings.stop_signal!r}", hint="for example TERM, INT or QUIT")
    if not 1 <= settings.health.failures <= 1000:
        raise UsageError("health.failures must lie in 1..1000")
    if settings.health.interval_s < 0.01 or settings.health.timeout_s < 0.01:
        raise UsageError("health.interval and health.timeout must be 10ms or more")
    if settings.start_timeout_s <= 0:
        raise UsageError("start_timeout must be more than zero")
    needed_s = settings.stop_grace_s + settings.start_timeout_s
    if settings.strategy == "recreate" and settings.hold_timeout_s <= needed_s:
        raise UsageError(
            f"strategy recreate: hold.timeout ({settings.hold_timeout_s:g} s) must outlast stop.grace"
            f" ({settings.stop_grace_s:g} s) plus start_timeout ({settings.start_timeout_s:g} s), for clients are held"
            " while the old daemon stops and the new one starts",
            hint=f'hold = {{ timeout = "{math.ceil(needed_s) + 10}s" }}, or a shorter stop.grace or start_timeout',
        )
    if not 1 <= settings.drain_max <= 1000:
        raise UsageError("drain.max_draining must lie in 1..1000")
    if not 0 <= settings.hold_max <= 1_000_000:
        raise UsageError("hold.max must lie in 0..1000000")
    if not 0 <= settings.connections <= 10_000_000:
        raise UsageError("limits.connections must lie in 0..10000000; 0 means no limit")
    for name, timeout_s in (("idle_timeout", settings.idle_timeout_s), ("user_timeout", settings.user_timeout_s)):
        if timeout_s is not None and not 0.1 <= timeout_s <= 1_000_000:
            raise UsageError(f"limits.{name} must be 100ms or more, and 11d at most", hint='"none" turns it off')
    try:
        networks(settings.allow)
    except ValueError as error:
        raise UsageError(f"allow: {error}", hint='for example allow = ["10.0.0.0/8", "::1"]') from error
    if settings.health.probe == "expect" and not settings.health.match:
        raise UsageError(
            "probe = expect needs a match", hint='for example health = { probe = "expect", match = "PONG" }'
        )
    if settings.health.match:
        try:
            re.compile(settings.health.match)
        except re.error as error:
            raise UsageError(f"health.match is no regular expression: {error}") from error
    _check_asking(settings.health)


def _check_asking(health: Health) -> None:
    """What the probes http and exec need."""
    try:
        parse_statuses(health.status)
    except ValueError as error:
        raise UsageError(f"health.status: {error}", hint='for example "200-399", "200" or "200,204"') from error
    if not health.path.startswith("/") or re.search(r"[^!-~]", health.path):
        raise UsageError(
            f"health.path: {health.path!r} is no path of a request", hint='for example "/healthz"; no blanks'
        )
    if re.search(r"[^!-~]", health.host):
        raise UsageError(f"health.host: {health.host!r} is no host name", hint='for example "example.org"')
    if health.probe == "exec" and not (health.command and health.command[0]):
        raise UsageError(
            "probe = exec needs a command",
            hint='for example health = { probe = "exec", command = ["pg_isready", "-p", "{port}"] }',
        )


def load_settings(data: bytes) -> Settings:
    """Read back what :func:`dump_settings` wrote.

    Raises:
        ConfigError: it was not written by this version.
    """
    try:
        return msgspec.json.decode(data, type=Settings)
    except msgspec.DecodeError as error:
        raise ConfigError(f"settings.json: {error}", hint="run the verb again with -c or -- CMD") from error


def dump_settings(settings: Settings) -> bytes:
    return msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"
