"""What stands in a directory or on this machine that could be put behind the fixed address: for ``turnout init``."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from turnout.system.files import Files
from turnout.system.net.sockets import PortHolder, who_listens

_PROCESS: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*):\s*(\S.*)\Z")  # a line of a Procfile
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*\+?=", re.ASCII)
_OPERATORS: Final = frozenset(";&|()")
# Words that mean something to the shell itself where a command begins: sh(1), bash(1).
_SHELL_WORD: Final = re.compile(
    r"if|while|until|for|case|select|function|time|\{|\(|\(\(|\[\[|!|coproc|exec|eval|command|builtin|\.|source|cd|export"
    r"|set|unset|ulimit|umask|trap|exit|return|read|wait|shift|alias|local|readonly|declare|typeset"
)
_NO_SERVICES: Final = frozenset({"release"})  # Heroku's name for what runs once, before the rest
_DATA_DIRECTORIES: Final = (".", "data", "pgdata", "postgres")
Which = Callable[[str], str | None]  # finds a program on the PATH
_USUAL_PORTS: Final = {"redis": 6379, "postgres": 5432, "nginx": 80, "memcached": 11211}


class Proposal(msgspec.Struct, frozen=True):
    """A service as ``init`` would write it."""

    name: str
    command: tuple[str, ...]  # ``{port}`` or ``$PORT`` is where it listens
    why: str  # from what it was concluded, for a comment
    notes: tuple[str, ...] = ()  # further comments
    recreate: bool = False  # two of it must not run at once
    stop_signal: str = "TERM"
    health: str = ""  # the value of ``health``, as TOML; empty: the default


class Running(msgspec.Struct, frozen=True):
    """A daemon that something else started, on the port where clients expect it."""

    name: str
    port: int
    holder: PortHolder


def proposals(directory: Path, *, which: Which = shutil.which) -> list[Proposal]:
    """Services for a file in ``directory``, the surest first: what is there, else a program that is installed."""
    here = [*_procfile(directory), *(one for look in _LOOKS if (one := look(directory, which)))]
    if here:
        return here
    redis = which("redis-server") or which("valkey-server")
    if redis:
        why = f"{redis} is installed"
        notes = ("without persistence: two of it may run at once, and a deploy begins with an empty one",)
        return [Proposal("redis", (Path(redis).name, "--port", "{port}", "--save", ""), why, notes, health=_PING)]
    return []


def running(look: Callable[[str, int], PortHolder | None] = who_listens) -> list[Running]:
    """Daemons that serve their usual port on this machine already."""
    found = ((name, port, look("127.0.0.1", port)) for name, port in _USUAL_PORTS.items())
    return [Running(name, port, holder) for name, port, holder in found if holder and holder.listening]


_PING: Final = r'{ probe = "expect", send = "PING\r\n", match = "PONG" }'


def _procfile(directory: Path) -> Iterator[Proposal]:
    for line in _lines(directory / "Procfile"):
        match = _PROCESS.match(line.strip())
        if match and match[1] not in _NO_SERVICES:
            notes = () if "PORT" in match[2] else ("it must listen on $PORT, or get {port} in its command",)
            yield Proposal(match[1], ("sh", "-c", _shell_line(match[2])), f"Procfile: {match[1]}", notes)


def _shell_line(line: str) -> str:
    """The line for ``sh -c``: a simple command replaces its shell, so that the daemon itself gets the stop signal.

    Anything else stays as it is written, for ``exec`` would change its meaning: of ``cd a && b`` it would run ``cd``,
    of ``MODE=x b`` a program with that name.
    """
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.commenters = ""
    try:
        first, *others = words
    except ValueError:  # a quote that is open: the shell says so
        return line
    operators = any(set(word) <= _OPERATORS for word in others if word)
    simple = not operators and not _SHELL_WORD.fullmatch(first) and not _ASSIGNMENT.match(first)
    return f"exec {line}" if simple else line


def _redis_here(directory: Path, which: Which) -> Proposal | None:
    """A redis.conf saves unless it says otherwise, so it is taken for persistent: that loses nothing."""
    for name in ("redis.conf", "valkey.conf"):
        if not (directory / name).is_file():
            continue
        server = "valkey-server" if name == "valkey.conf" or not which("redis-server") else "redis-server"
        server = server if which(server) else name.replace(".conf", "-server")
        notes = ("it saves to disk: two at once would overwrite each other's file",)
        return Proposal(
            "redis", (server, name, "--port", "{port}"), f"{name} is here", notes, recreate=True, health=_PING
        )
    return None


def _postgres(directory: Path, which: Which) -> Proposal | None:
    for name in _DATA_DIRECTORIES:
        data = directory / name
        if not (data / "PG_VERSION").is_file():
            continue
        version = "".join(_lines(data / "PG_VERSION")).strip()
        installed = Path(f"/usr/lib/postgresql/{version}/bin/postgres")
        server = which("postgres") or (str(installed) if installed.is_file() else "postgres")
        return Proposal(
            "postgres",
            (server, "-D", str(data.resolve()), "-p", "{port}", "-c", "listen_addresses=127.0.0.1"),
            f"{data} is a data directory of PostgreSQL {version}",
            (
                "a second server on one data directory exits: the old one is stopped first, clients wait meanwhile",
                "INT is the fast shutdown: TERM would wait for every client to leave",
                "it refuses to run as root: start turnout as the user that owns the directory",
            ),
            recreate=True,
            stop_signal="INT",
        )
    return None


def _nginx(directory: Path, which: Which) -> Proposal | None:
    for name in ("nginx.conf.in", "nginx.conf"):
        if not (directory / name).is_file():
            continue
        nginx = which("nginx") or "nginx"
        fill = f'sed "s/@PORT@/$PORT/" {name} > .nginx.$PORT.conf'
        run = f'exec {nginx} -p "$PWD" -c "$PWD/.nginx.$PORT.conf" -g "daemon off; pid .nginx.$PORT.pid;"'
        return Proposal(
            "nginx",
            ("sh", "-c", f"{fill} && {run}"),
            f"{name} is here",
            (f'nginx takes no port on its command line: write "listen 127.0.0.1:@PORT@;" into {name}',),
            stop_signal="QUIT",
            health='{ probe = "tcp" }',
        )
    return None


_LOOKS: Final = (_redis_here, _postgres, _nginx)


def _lines(path: Path) -> Sequence[str]:
    try:
        # a FIFO of that name would never be read to its end
        return Files().read(path)[0].decode("utf-8-sig", errors="replace").splitlines()
    except OSError:
        return ()
