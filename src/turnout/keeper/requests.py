"""Parses the requests that the keeper accepts into typed records; any other message is refused whole.

Standard library only. A peer of the same user may send anything, so nothing beyond this module looks into a message:
what a record holds has its type and lies within its bounds.
"""

from __future__ import annotations

import ipaddress
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, cast

from turnout.errors import ProtocolError, UsageError
from turnout.reuseport.group import GroupState
from turnout.state.home import check_name
from turnout.system.control_channel import Message
from turnout.system.limits import Limits, parse_limits

LONGEST_GRACE_S: Final = 1e9
_SHOWN_CHARS: Final = 80
Address = tuple[str, int]
Phase = Literal["standby", "leads", "leaving"]


class Command(Enum):
    """Requests of verbs that carry nothing but their name."""

    HELLO = "hello"  # what the keeper has
    REPLACE_ROUTER = "replace_router"  # start another router in the place of the one that leads
    SHUTDOWN = "shutdown"  # end the keeper and all its children


class RouterReport(Enum):
    """Reports of routers that carry nothing but their name."""

    READY = "ready"  # a successor could take the lead now
    LEAVE_ACKNOWLEDGED = "heard"
    LEAD_RELEASED = "left"
    LEAD_TAKEN = "leads"


@dataclass(frozen=True, slots=True)
class Listen:
    """Bind the addresses of a service.

    ``interpreter``: the Python of the verb, absolute; empty: not said. ``shared``: daemons will join the address.
    """

    service: str
    addresses: tuple[Address, ...]
    interpreter: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Give the addresses of a service back."""

    service: str


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a daemon. The fields are those of :meth:`turnout.control.keeper_client.KeeperClient.spawn`."""

    service: str
    boot_id: str
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    listener: Literal["shared"] | Address | None
    program: str
    umask: int | None
    limits: Limits
    activation: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Binds:
    """Ask what is known of the ports that an activated daemon has bound."""

    service: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a daemon: ``number`` is the stop signal, ``grace_s`` the seconds until SIGKILL."""

    service: str
    boot_id: str
    number: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class KillRouter:
    """Kill the router with this pid."""

    pid: int


@dataclass(frozen=True, slots=True)
class Attach:
    """A router connects. ``listeners``: service and address of each descriptor that comes along, in their order.

    ``groups``: by service, the group at its address as the keeper described it. ``keeps``: it keeps copies of the
    daemons' listeners, which a router of 0.1 would accept from. ``more``: there are too many listeners for one message,
    and another one follows.
    """

    pid: int
    phase: Phase | None
    listeners: tuple[tuple[str, Address], ...]
    groups: Mapping[str, GroupState]
    keeps: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class GroupApplied:
    """The router has the listeners of a group in this version, and directs new connections to these indexes."""

    service: str
    version: int
    selected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Routers that drain are to end their connections to this daemon."""

    service: str
    boot_id: str


FromRouter = RouterReport | GroupApplied | Cut
Request = Command | Listen | Unlisten | Spawn | Binds | Stop | KillRouter | Attach | FromRouter


def request_of(message: Message) -> Request:
    """The request that a message makes.

    Raises:
        ProtocolError: it makes none, or lacks something, or has something of another type or beyond its bounds.
    """
    op = message.get("op")
    if not isinstance(op, str) or op not in _READERS.keys() | _NAMES.keys():
        raise ProtocolError(f"this keeper does not know {_shown(op)}")
    try:
        return _NAMES.get(op) or _READERS[op](message)
    except UsageError as error:  # a name that cannot be a service's
        raise ProtocolError(f"bad {op!r} request: {error.message}", hint=error.hint) from error
    except _BadFieldError as error:
        raise ProtocolError(f"bad {op!r} request: {error}") from error


class _BadFieldError(Exception):
    """A field is missing, of another type, or beyond its bounds; the text says which."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _bad(key: str, value: object) -> _BadFieldError:
    return _BadFieldError(f"{key}: {_shown(value)}" if value is not None else f"no {key}")


def _string(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise _bad(key, value)
    return value


def _system_text(key: str, value: object) -> str:
    """Text that the system can be given: no NUL, and nothing that no file name can have."""
    if isinstance(value, str) and "\0" not in value:
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise _bad(key, value)


def _integer(message: Mapping[str, Any], key: str, *, low: int, high: int) -> int:
    value = message.get(key)
    if type(value) is not int or not low <= value <= high:  # True is an int, and no number of anything
        raise _bad(key, value)
    return value


def _service(message: Mapping[str, Any]) -> str:
    return check_name(_string(message, "service"))


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(key, value)
    return cast("list[Any]", value)  # type: ignore[redundant-cast]  # pyright knows less of it than mypy


def _mapping(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(key, value)
    return cast("dict[str, Any]", value)


def _address(key: str, value: object) -> Address:
    """A numeric host: the keeper must never wait for a name to be resolved."""
    words = _list(key, value)
    if len(words) == 2 and isinstance(words[0], str) and type(words[1]) is int and 0 < words[1] < 65536:
        try:
            ipaddress.ip_address(words[0])
        except ValueError:
            pass
        else:
            return words[0], words[1]
    raise _bad(key, value)


def _listen(message: Message) -> Listen:
    addresses = tuple(_address("addresses", entry) for entry in _list("addresses", message.get("addresses")))
    if not addresses or len(set(addresses)) != len(addresses):
        raise _bad("addresses", message.get("addresses"))
    interpreter = _system_text("interpreter", message.get("interpreter", ""))
    if interpreter and not interpreter.startswith("/"):
        raise _bad("interpreter", interpreter)
    return Listen(_service(message), addresses, interpreter, message.get("shared") is True)


def _spawn(message: Message) -> Spawn:
    argv = tuple(_system_text("argv", word) for word in _list("argv", message.get("argv")))
    env = {
        _system_text("env", key): _system_text("env", value)
        for key, value in _mapping("env", message.get("env")).items()
    }
    listener = message.get("listener")
    return Spawn(
        _service(message),
        check_name(_string(message, "boot_id")),
        argv,
        _system_text("cwd", message.get("cwd")),
        env,
        listener if listener in ("shared", None) else _address("listener", listener),
        _system_text("program", message.get("program", "")),
        None if message.get("umask") is None else _integer(message, "umask", low=0, high=0o777),
        _limits(message.get("limits", {})),
        _activation(message.get("activation")),
    )


def _activation(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    ports = _mapping("activation", value)
    return _integer(ports, "given", low=1, high=65535), _integer(ports, "serving", low=0, high=65535)


def _limits(value: object) -> Limits:
    try:
        return parse_limits(value)
    except (TypeError, ValueError) as error:
        raise _bad("limits", value) from error


def _stop(message: Message) -> Stop:
    name, grace_s = f"SIG{_string(message, 'signal')}", message.get("grace_s")
    if name not in signal.Signals.__members__:
        raise _bad("signal", message.get("signal"))
    if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not grace_s <= LONGEST_GRACE_S:
        raise _bad("grace_s", grace_s)  # NaN, too, which is not less than anything
    return Stop(_service(message), _string(message, "boot_id"), signal.Signals[name], float(max(0, grace_s)))


def _attach(message: Message) -> Attach:
    phase = message.get("phase")
    if phase not in ("standby", "leads", "leaving", None):
        raise _bad("phase", phase)
    listeners: list[tuple[str, Address]] = []
    for entry in _list("listeners", message.get("listeners", [])):
        words = _list("listeners", entry)
        if len(words) != 3 or not isinstance(words[0], str):
            raise _bad("listeners", entry)
        listeners.append((check_name(words[0]), _address("listeners", words[1:])))
    groups = _mapping("groups", message.get("groups", {}))
    homes = _mapping("homes", message.get("homes", {}))
    states = {check_name(name): GroupState(home=_integer(homes, name, low=0, high=65535)) for name in homes}
    states |= {check_name(name): _group_state(state) for name, state in groups.items()}
    return Attach(_pid(message), phase, tuple(listeners), states, "groups" in message, message.get("more") is True)


def _group_state(value: object) -> GroupState:
    state = _mapping("groups", value)
    order: list[tuple[int, str]] = []
    for entry in _list("order", state.get("order", [])):
        words = _list("order", entry)
        if len(words) != 2 or type(words[0]) is not int or not isinstance(words[1], str):
            raise _bad("order", entry)
        order.append((words[0], check_name(words[1]) if words[1] else ""))
    home = _integer(state, "home", low=0, high=len(order) - 1)
    return GroupState(_integer(state, "version", low=0, high=(1 << 63) - 1), home, tuple(order))


def _pid(message: Message) -> int:
    return _integer(message, "pid", low=0, high=(1 << 31) - 1)


def _group_applied(message: Message) -> GroupApplied:
    slots = message.get("slots", [message.get("slot")])  # 0.1 names one
    return GroupApplied(
        _service(message),
        _integer(message, "version", low=0, high=(1 << 63) - 1),
        tuple(_integer({"slots": slot}, "slots", low=0, high=65535) for slot in _list("slots", slots)),
    )


_NAMES: Final = {kind.value: kind for kind in (*Command, *RouterReport)}
_READERS: Final[Mapping[str, Callable[[Message], Request]]] = {
    "listen": _listen,
    "unlisten": lambda message: Unlisten(_service(message)),
    "spawn": _spawn,
    "binds": lambda message: Binds(_service(message), check_name(_string(message, "boot_id"))),
    "stop": _stop,
    "kill_router": lambda message: KillRouter(_pid(message)),
    "attach": _attach,
    "seen": _group_applied,
    "cut": lambda message: Cut(_service(message), _string(message, "boot_id")),
}
