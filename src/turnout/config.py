"""What the operator asked for, resolved: one frozen ``Settings`` a service, and the words for each of its values.

The resolved settings are also what the router reads (``settings.json`` in the service's directory), so that it never
has to look for a configuration file of its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeVar, get_args

import msgspec

from turnout.core.policy import owns_its_data
from turnout.errors import ConfigError, UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:47777"
DEFAULT_SERVICE: Final = "default"
DEFAULT_STOP_SIGNAL: Final = "TERM"

ProbeKind = Literal["alive", "tcp", "expect", "http", "exec", "none"]
PlaneName = Literal["auto", "relay", "stream", "reuseport", "sk_lookup"]
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
    takes_part: bool = False  # the daemon is given its listener, or shares_port, and so can share the fixed address
    shares_port: bool = False  # it sets SO_REUSEPORT by itself
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


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """Where the router serves its metrics; None: nowhere. ``source``: the file that says so, empty for a flag."""

    listen: Address | None = None
    source: str = ""


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
    scrape: Scrape | None = None  # of the whole home; None: nobody says anything about it


# -- how people write values -----------------------------------------------------------------------------------------

Duration = str | int | float


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


def scrape_flag(text: str) -> Scrape:
    """What ``--metrics`` says: an address on loopback, or ``none``. Raises UsageError: neither."""
    return Scrape() if text == "none" else Scrape(listen=parse_address(text))


def plane_name(text: str) -> PlaneName:
    planes: tuple[PlaneName, ...] = get_args(PlaneName)
    return one_of(planes, text, "plane")


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


def takes_listener(
    command: Sequence[str], env: Mapping[str, str], plane: PlaneName, *, shares_port: bool = False
) -> bool:
    """Whether a daemon listens on a socket that it is given, and opens none.

    It says ``{fd}`` in its command or environment; or it is known to look at LISTEN_FDS (sd_listen_fds(3)), since
    somebody named the plane that needs it, and it asks for no port, nor opens its listener at the fixed address by
    itself (``shares_port``).
    """
    words = [*command, *env.values()]
    if any("{fd}" in word for word in words):
        return True
    asks = shares_port or any("{port}" in word for word in words)
    return plane == "reuseport" and bool(command) and not asks


def with_part(settings: Settings, command: Sequence[str], env: Mapping[str, str]) -> Settings:
    """The settings for this daemon; without a command they stay as they are."""
    if not command:
        return settings
    part = settings.shares_port or takes_listener(command, env, settings.plane)
    return msgspec.structs.replace(settings, takes_part=part)


def probe_kind(text: str) -> ProbeKind:
    kinds: tuple[ProbeKind, ...] = get_args(ProbeKind)
    return one_of(kinds, text, "probe")


def one_of(known: tuple[T, ...], text: str, what: str) -> T:
    """The one that ``text`` names. Raises UsageError where none is; ``what`` says of what kind they are."""
    for one in known:
        if one == text:
            return one
    raise UsageError(f"there is no {what} {text!r}", hint=f"one of {', '.join(map(str, known))}")


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


def load_scrape(data: bytes) -> Scrape:
    """Read back what :func:`dump_scrape` wrote.

    Raises:
        ConfigError: it was not written by this version.
    """
    try:
        scrape = msgspec.json.decode(data, type=Scrape)
        if scrape.listen:  # somebody may have edited it, and the router is to bind it
            parse_address(str(scrape.listen), beyond_loopback=True)
    except (msgspec.DecodeError, UsageError) as error:
        raise ConfigError(f"metrics.json: {error}", hint="turnout up --metrics ADDR, or none") from error
    return scrape


def dump_scrape(scrape: Scrape) -> bytes:
    return msgspec.json.encode(scrape) + b"\n"
