"""The table of the keys of ``turnout.toml``, from which everything is made that has keys in it.

The structs that the file is read into (:mod:`turnout.config.file`), the defaults of ``Settings``, the JSON Schema,
``turnout config``, the comments of ``turnout init``, what a running router takes over, what the keeper reads in
settings.json, and the page of keys in the documentation. Standard library only, since the keeper uses it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

from turnout.config import values
from turnout.errors import UsageError
from turnout.system.user_directory import expand_user

DEFAULT_LISTEN: Final = "127.0.0.1:47777"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: its spelling in the file, and its form in the settings."""

    written: Any  # the types that it may have in TOML
    # makes the value of what is written; gets also the key, for messages, and the directory of the file
    read: Callable[[Any, str, Path], Any] = lambda value, _what, _directory: value
    show: Callable[[Any], Any] = lambda value: value  # the reverse
    least: float | None = None  # the smallest number that is allowed; None: there is no limit
    most: float = math.inf
    must: str = ""  # the limits in words; empty: ``lie in LEAST..MOST``
    hint: str = ""  # for a number beyond these limits; empty: the default is the example


def _word(literal: Any, *, or_flag: bool = False) -> Kind:  # noqa: ANN401  # a Literal
    """A word of a ``Literal``; ``or_flag``: true and false are allowed, too."""

    def read(value: str | bool, what: str, _directory: Path) -> object:
        name = what.rpartition(".")[2].removeprefix("--")
        return value if isinstance(value, bool) else values.one_of(get_args(literal), value, name)

    return Kind(bool | str if or_flag else str, read)


def _seconds_or_none(value: values.Duration, what: str, _directory: Path) -> float | None:
    return None if value in {"none", "never"} else values.duration(value, what=what)


def _path(text: str, what: str, directory: Path) -> str:
    return str(directory / expand_user(text, setting=what)) if text else ""


def _paths(texts: list[str], what: str, directory: Path) -> tuple[str, ...]:
    return tuple(_path(text, what, directory) for text in texts)


def _addresses(written: str | list[str], _what: str, _directory: Path) -> tuple[values.Address, ...]:
    texts = [written] if isinstance(written, str) else written
    return tuple(values.parse_address(text, beyond_loopback=True) for text in texts)


TEXT: Final = Kind(str)
FLAG: Final = Kind(bool)
VARIABLES: Final = Kind(dict[str, str])
WORDS: Final = Kind(list[str], lambda words, _what, _directory: tuple(words), list)
PATH: Final = Kind(str, _path)
PATHS: Final = Kind(list[str], _paths, list)
ADDRESSES: Final = Kind(str | list[str], _addresses, lambda addresses: [str(address) for address in addresses])
SIGNAL: Final = Kind(str, lambda name, _what, _directory: name.upper().removeprefix("SIG"))
STATUSES: Final = Kind(str | int, lambda statuses, _what, _directory: str(statuses))
DURATION: Final = Kind(
    values.Duration, lambda value, what, _directory: values.duration(value, what=what), values.duration_text
)
COUNT: Final = Kind(int, least=1, most=1000)
INTERVAL: Final = replace(DURATION, least=0.01, must="be 10ms or more")
ENDLESS: Final = replace(DURATION, read=_seconds_or_none)
LIMIT: Final = replace(
    ENDLESS, least=0.1, most=1_000_000, must="be 100ms or more, and 11d at most", hint='"none" turns it off'
)


class Takes(StrEnum):
    """What puts a changed value in force while the service runs."""

    AT_ONCE = ""  # the running router, as soon as it sees the file
    UP = "turnout up"
    REPLACE = "turnout up, then turnout router --replace"
    DOWN = "turnout down, then turnout up"
    BUILD = "turnout up deploys it"  # the key says what is run
    # the router at once; beside a changed build, not before that: the old daemon is not judged by the new checks
    WITH_BUILD = "turnout up, with the build that it goes with"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a service."""

    name: str  # dotted, as ``turnout config`` prints it
    field: str  # its attribute in ``Settings``, dotted; with ``Takes.BUILD`` that in ``ServiceRequest``
    default: Any  # as the file would have it; None: turnout chooses
    kind: Kind
    takes: Takes
    meaning: str  # in one or two sentences, for the schema and the documentation
    named: str = ""  # the attribute of ``Settings`` that says whether the operator chose the value
    otherwise: Any = None  # what is read where the operator did not choose

    @property
    def table(self) -> str:
        """The table below the service that it stands in; empty: the service's own."""
        return self.name.rpartition(".")[0]

    @property
    def last(self) -> str:
        """Its name within that table."""
        return self.name.rpartition(".")[2]

    def read(self, written: object, directory: Path = Path(), *, what: str = "") -> Any:  # noqa: ANN401
        """The value of what is written in a file in ``directory``; ``what``: its name in messages, if another.

        Raises:
            UsageError: it has none.
        """
        return self.kind.read(written or self.otherwise if self.named else written, what or self.name, directory)

    def check(self, value: float | None) -> None:
        """Hold a number to its limits. Raises UsageError: it lies beyond them."""
        kind = self.kind
        if kind.least is not None and value is not None and not kind.least <= value <= kind.most:
            raise UsageError(
                f"{self.name} must {kind.must or f'lie in {kind.least}..{kind.most}'}",
                hint=kind.hint or f"for example {self.last} = {json.dumps(self.default)}",
            )


# fmt: off
_ROWS: Final = (
    Key("listen", "listen", DEFAULT_LISTEN, ADDRESSES, Takes.UP,
        "The fixed address, or a list of them; IPv6 in brackets. It may change while the service runs: `turnout up`."),
    Key("command", "command", [], WORDS, Takes.BUILD,
        "What to run. `{port}` is where it must listen, which is in its environment as PORT and TURNOUT_PORT, too."
        " `{fd}` is the descriptor of a socket that listens already, told by LISTEN_FDS and LISTEN_PID as well;"
        " `{listen_port}` is the port of `listen`."),
    Key("version", "version", "", TEXT, Takes.BUILD,
        "What this build calls itself."),
    Key("cwd", "cwd", "", PATH, Takes.BUILD,
        "Where the command runs, relative to the file. Empty: the directory of the file."),
    Key("env", "env", {}, VARIABLES, Takes.BUILD,
        "Further environment of the daemon; words in braces are filled in as in `command`. turnout does not change a"
        " PORT in it: the daemon then learns its port from `{port}` or TURNOUT_PORT. turnout sets TURNOUT_PORT and"
        " TURNOUT_BOOT_ID itself, also LISTEN_FDS and LISTEN_PID for a daemon that is given its listener. The values"
        " may be secrets: no verb prints them."),
    Key("strategy", "strategy", None, _word(values.StrategyName), Takes.AT_ONCE,
        "`blue-green`: old and new side by side. `recreate`: the old one stops first and clients wait, for daemons"
        " that own their data. Without it the command decides.", named="strategy_named", otherwise="blue-green"),
    Key("plane", "plane", "auto", _word(values.PlaneName), Takes.REPLACE,
        "How bytes move. `relay`: epoll and splice. `stream`: the loop's own transports, slower. `reuseport`: none in"
        " the way, for a daemon that is activated or given its listener (`{fd}`, LISTEN_FDS). `sk_lookup`: the same for"
        " a daemon on a port of its own, with CAP_BPF and CAP_NET_ADMIN. `auto`: `reuseport` with `activation` or"
        " `{fd}` where nothing asks for a relay, else the relay where it runs. A change comes with `turnout router"
        " --replace`."),
    Key("activation", "activation", "auto", _word(values.Activation), Takes.AT_ONCE,
        "`on`: the daemon keeps the port that its own configuration names, and turnout has its bind(2) go to the fixed"
        " address, or to a free port behind it; the command needs no `{port}`. `off`: it binds as it says. `auto` is"
        " `off` in this version. A change comes with the next daemon."),
    Key("port", "port", 0, replace(COUNT, least=0, most=65535, hint="0: the first that the daemon binds"),
        Takes.AT_ONCE,
        "With `activation`: the port at which the daemon serves its clients, as its own configuration has it. 0: the"
        " first that it binds. A change comes with the next daemon."),
    Key("health.probe", "health.probe", "alive", _word(values.ProbeKind), Takes.WITH_BUILD,
        "`alive`: the daemon runs, is not stopped, owns its listening socket, and its accept queue is not stuck;"
        " before a switch, the kernel must also show a process that waits for connections, or else one connection must"
        " be accepted (only then is one opened). `listening`: the same, and no connection is opened ever, for a daemon"
        " that a connection without a request harms. `tcp`: also connects. `expect`: sends `send`, and the answer must"
        " match `match`. `http`: GET `path` is answered with a status in `status`, and a body that has `match`, if"
        " that is given. `exec`: `command` ends with exit code 0. `none`."),
    Key("health.interval", "health.interval_s", "1s", INTERVAL, Takes.WITH_BUILD,
        "From one check to the next."),
    Key("health.timeout", "health.timeout_s", "500ms", INTERVAL, Takes.WITH_BUILD,
        "What one check may take. The process group of an `exec` probe is killed then."),
    Key("health.failures", "health.failures", 3, COUNT, Takes.WITH_BUILD,
        "So many failed checks in a row, 1 to 1000, lead to a rollback."),
    Key("health.send", "health.send", "", TEXT, Takes.WITH_BUILD,
        "What an `expect` probe sends."),
    Key("health.match", "health.match", "", TEXT, Takes.WITH_BUILD,
        "The regular expression of an `expect` or `http` probe."),
    Key("health.path", "health.path", "/", TEXT, Takes.WITH_BUILD,
        "What an `http` probe asks for."),
    Key("health.host", "health.host", "", TEXT, Takes.WITH_BUILD,
        "The Host header of an `http` probe. Empty: the address."),
    Key("health.status", "health.status", "200-399", STATUSES, Takes.WITH_BUILD,
        "The statuses that an `http` probe takes for well: `204`, `200,204`, `200-399`."),
    Key("health.command", "health.command", [], WORDS, Takes.WITH_BUILD,
        "What an `exec` probe runs. `{port}` is filled in; TURNOUT_PORT, TURNOUT_HOST, TURNOUT_PID, TURNOUT_BOOT_ID"
        " and TURNOUT_VERSION are in its environment."),
    Key("verify_owner", "health.verify_owner", True, FLAG, Takes.WITH_BUILD,
        "The probe must reach the process that was started, or a child of it; clients are held while it does not."
        " While a daemon is away, any local program can bind its port, and only this check keeps clients from that"
        " program. `false` for a daemon in a container, or with file capabilities: then whichever program listens at"
        " its address gets the clients."),
    Key("start_timeout", "start_timeout_s", "30s", DURATION, Takes.AT_ONCE,
        "What a candidate may take to become healthy."),
    Key("stop.signal", "stop_signal", None, SIGNAL, Takes.AT_ONCE,
        "What tells the daemon to end. Without it TERM, and for PostgreSQL INT, its fast shutdown.",
        named="stop_named", otherwise="TERM"),
    Key("stop.grace", "stop_grace_s", "30s", DURATION, Takes.AT_ONCE,
        "What the daemon may take to end; then KILL."),
    Key("observe", "observe_s", "30s", DURATION, Takes.AT_ONCE,
        "The window after a switch, in which failed checks bring the previous daemon back. Whatever the interval, a"
        " check at its end must succeed."),
    Key("drain.grace", "drain_grace_s", "30s", DURATION, Takes.AT_ONCE,
        "How long the connections of an old daemon are left alone; also what `turnout down` gives them."),
    Key("drain.deadline", "drain_deadline_s", "10m", ENDLESS, Takes.AT_ONCE,
        "When the last connections of an old daemon are cut; `none`: never. Between grace and deadline those are cut"
        " that are quiet: the last bytes went to the client a second ago or more, none are half-sent; a few at a"
        " time."),
    Key("drain.max_draining", "drain_max", 3, COUNT, Takes.AT_ONCE,
        "When more old daemons drain at once, the oldest is hastened: its connections are cut at quiet moments,"
        " whatever the deadline."),
    Key("hold.max", "hold_max", 1024, replace(COUNT, least=0, most=1_000_000), Takes.AT_ONCE,
        "How many connections may wait, each with two descriptors, while something is on its way or the daemon"
        " accepts no connection; further connections are reset at once."),
    Key("hold.timeout", "hold_timeout_s", "70s", DURATION, Takes.AT_ONCE,
        "How long each of them waits before it is reset. While the daemon takes connections none is reset: they are"
        " served in their order. With `recreate` more than `stop.grace` plus `start_timeout`."),
    Key("limits.connections", "connections", 0,
        replace(COUNT, least=0, most=10_000_000, hint="0 means no limit"), Takes.AT_ONCE,
        "How many connections may be open, held ones included; further ones wait in the kernel's queue, as with"
        " HAProxy's `maxconn`. 0: no limit."),
    Key("limits.idle_timeout", "idle_timeout_s", "none", LIMIT, Takes.AT_ONCE,
        "A connection without a byte either way for so long is ended."),
    Key("limits.user_timeout", "user_timeout_s", "none", LIMIT, Takes.AT_ONCE,
        "How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT in tcp(7)). It also ends live peers that"
        " merely stop reading."),
    Key("proxy_protocol", "proxy_protocol", "none", _word(values.ProxyProtocol), Takes.WITH_BUILD,
        "`v2`: each connection to the daemon begins with a PROXY protocol v2 header, also that of a `tcp` or `expect`"
        " probe (LOCAL). A change comes with the next daemon."),
    Key("allow", "allow", [], WORDS, Takes.AT_ONCE,
        "The networks that clients may come from, as `10.0.0.0/8` or `::1`; others are reset at once."),
    Key("expose", "expose", False, _word(values.Expose, or_flag=True), Takes.UP,
        "`true` lets `listen` go beyond loopback, and needs `proxy_protocol`. `clients-look-local` does without it:"
        " the daemon then takes every client for a local one, which many trust."),
    Key("registry", "registry", "", PATH, Takes.DOWN,
        "The JSON file that says what exists and what is active. Empty: one in the state directory."),
    Key("on_unhealthy", "on_unhealthy", "report", _word(values.OnUnhealthy), Takes.AT_ONCE,
        "After the window. `report`: an active daemon that runs and fails its checks is said in `status` and"
        " `history`. `restart`: it is also replaced by a new process of the same build, with back-off."),
    Key("auto_deploy", "auto_deploy", False, FLAG, Takes.AT_ONCE,
        "The router notices a changed file, version or watched file, and deploys it."),
    Key("watch", "watch", [], PATHS, Takes.AT_ONCE,
        "Files that the build is made of: other contents are another build."),
    Key("version_command", "version_command", [], WORDS, Takes.AT_ONCE,
        "A command whose first line of output is the version; 10 s at most."),
)
# fmt: on
KEYS: Final[Mapping[str, Key]] = MappingProxyType({key.name: key for key in _ROWS})  # as `turnout config` prints them
BUILD: Final = tuple(key for key in _ROWS if key.takes is Takes.BUILD)  # those that say what is run
# Keys of a service that earlier versions had: what takes their place, and what to do.
REMOVED_KEYS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "shares_port": (
            "turnout gives the daemon its listener ({fd}) or a port of its own ({port})",
            'delete the line; with {port} in the command, plane = "auto" or "relay" serves the daemon',
        ),
    }
)


def default(name: str) -> Any:  # noqa: ANN401  # of the key's own type
    """The value of a key that no file has."""
    return KEYS[name].read(KEYS[name].default)


def stored_values(data: bytes, *names: str) -> list[Any]:
    """The values that settings.json has of some keys, for the keeper; the default of a key that it lacks.

    Raises:
        ValueError: it is no object of JSON.
    """
    try:
        stored: dict[str, Any] = json.loads(data)
        return [stored.get(KEYS[name].field, default(name)) for name in names]
    except (RecursionError, AttributeError) as error:
        raise ValueError("not the settings of a service") from error
