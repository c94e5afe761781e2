"""A verb's line to the keeper."""

from __future__ import annotations

import errno
import os
import select
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from turnout import errors
from turnout.config.settings import Address, Settings, parse_address
from turnout.config.validation import demands
from turnout.control.router_client import connect
from turnout.core.model import Identity
from turnout.errors import AddressInUseError, ProtocolError, StillRunningError, TurnoutError
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_runs
from turnout.system.control_channel import Channel, Message
from turnout.system.flock import PROC
from turnout.system.home_identity import HomeIdentity
from turnout.system.limits import NO_LIMITS, Limits, spell_limit
from turnout.system.net.ports import missing_address_hint
from turnout.system.net.sockets import who_listens
from turnout.system.sd_notify import notify

ANSWER_TIMEOUT_S: Final = 10.0
REPLACE_TIMEOUT_S: Final = 45.0  # beyond the keeper's own limits, so that it is the keeper who says what is wrong
SOCKET_BACK_S: Final = 3.0
_NOT_ACTIVATED: Final = (
    "an earlier version of turnout started the keeper; turnout down, then turnout up, starts another keeper"
)


class KeeperInfo(msgspec.Struct, frozen=True):
    """What a keeper says of itself; ``attached``: its router is connected and takes listeners.

    ``leaving``: the pids of routers that were replaced and still carry what they had accepted.
    ``trouble``: why it cannot start a router now; empty: it can, or has one.
    """

    pid: int
    version: str
    router_pid: int
    attached: bool
    services: Mapping[str, Sequence[tuple[str, int]]]
    leaving: Sequence[int] = ()
    trouble: str = ""


class BoundPorts(msgspec.Struct, frozen=True):
    """The ports that an activated daemon has bound.

    Args:
        serving: its own port, in whose place it has the given one; 0: it has bound none.
        others: the TCP ports that it has as it said.
        trouble: why a bind of it could not be answered; empty: all were.
        indexes: those of its listeners in the group at the fixed address; empty: it listens at none there.
    """

    serving: int
    others: Sequence[int]
    trouble: str
    indexes: Sequence[int] = ()


class KeeperClient:
    """One conversation with the keeper. Owns its channel; use as a context manager.

    Args:
        home: named in each request: a keeper of another home, whose socket was linked into a copy, refuses them.
    """

    def __init__(self, channel: Channel, home: HomeIdentity | None = None) -> None:
        self._channel = channel
        self._home = {"home": home.dumps()} if home else {}
        self._asked = 0

    @classmethod
    def connect(cls, home: Home) -> KeeperClient:
        """Raises NotRunningError: no keeper runs for this home, or it cannot make its removed socket again."""
        channel = connect(home.keeper_sock, lambda: keeper_runs(home), timeout_s=SOCKET_BACK_S)
        return cls(channel, HomeIdentity.of(home.root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def hello(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> KeeperInfo:
        """Raises TimedOutError: it is silent for ``timeout_s`` seconds."""
        answer = self._ask({"op": "hello"}, timeout_s=timeout_s)
        return KeeperInfo(
            answer["pid"],
            answer["version"],
            answer["router_pid"],
            answer["attached"],
            {name: [(host, port) for host, port in found] for name, found in answer["services"].items()},
            answer.get("leaving", ()),
            str(answer.get("trouble", "")),
        )

    def listen(self, settings: Settings) -> None:
        """Have the service's addresses bound, and a router started. Repeating it changes nothing.

        Routers are started with the interpreter of this process from here on.

        Raises:
            AddressInUseError: one is taken; the message names the process that has it.
        """
        addresses = [[address.host, address.port] for address in settings.listen]
        shared = settings.takes_part and settings.plane in {"auto", "reuseport"} and not demands(settings)
        request = {"op": "listen", "service": settings.name, "addresses": addresses, "interpreter": sys.executable}
        answer = self._ask({**request, "shared": shared}, refusable=True)
        if not answer["ok"]:
            raise bind_error(parse_address(answer["address"], beyond_loopback=True), answer["errno"])

    def unlisten(self, service: str) -> list[str]:
        """Give the service's addresses back; answers the services that are left."""
        return list(self._ask({"op": "unlisten", "service": service})["left"])

    def spawn(
        self,
        service: str,
        boot_id: str,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        listener: Literal["shared"] | tuple[str, int] | None = None,
        program: str = "",
        umask: int | None = None,
        limits: Limits = NO_LIMITS,
        activation: tuple[int, int] | None = None,
        on_warning: Callable[[str], None] = lambda _text: None,
    ) -> Identity:
        """Start a daemon as the keeper's child.

        Args:
            service: its service.
            boot_id: the key of this boot.
            argv: the command, whole.
            cwd: its directory.
            env: its whole environment.
            listener: it gets a listening socket as descriptor 3: one more at the service's own address (where in the
                group its record tells), or at this host and port.
            program: the absolute path of its program; empty, or gone: it is looked up.
            umask: its umask; None: the keeper's.
            limits: its resource limits, by name; those that are not named are the keeper's.
            activation: the port of 127.0.0.1 that it gets when it binds its serving port, and that port; 0: the first
                that it binds. None: it binds as it says.
            on_warning: called with each of these that the keeper cannot grant.

        Raises:
            SpawnError: no such command, not executable, no such directory, no listener.
        """
        request: Message = {"op": "spawn", "service": service, "boot_id": boot_id, "argv": list(argv), "cwd": cwd}
        if program:
            request["program"] = program
        if umask is not None:
            request["umask"] = umask
        if limits:
            request["limits"] = dict(limits)
        if activation:
            request["activation"] = {"given": activation[0], "serving": activation[1]}
        answer = self._ask({**request, "env": dict(env), "listener": listener})
        _warn_of_reduced_limits(answer, umask, limits, on_warning)
        return Identity(answer["pid"], answer["start_ticks"], answer["machine_boot_id"], answer["pid_ns"])

    def binds(self, service: str, boot_id: str) -> BoundPorts:
        """What the keeper knows of the ports that an activated daemon has bound.

        A keeper of a version without activation has started it as any daemon; that is the trouble.
        """
        try:
            answer = self._ask({"op": "binds", "service": service, "boot_id": boot_id})
        except ProtocolError:
            return BoundPorts(0, (), _NOT_ACTIVATED)
        indexes = tuple(answer.get("indexes", ()))
        return BoundPorts(answer["serving"], tuple(answer["others"]), answer["trouble"], indexes)

    def stop(
        self, service: str, boot_id: str, *, stop_signal: str, grace_s: float, wait_s: float | None = None
    ) -> None:
        """Stop a daemon of this keeper and wait until it is gone; a dead one is gone already.

        Args:
            service: its service.
            boot_id: which.
            stop_signal: its name without SIG.
            grace_s: seconds from that signal to KILL. A second request does not restart them.
            wait_s: seconds to wait for its end; None: the grace and a while.

        Raises:
            TimedOutError: it is still there. This conversation is over; another one may ask again.
            StillRunningError: processes of it outlived SIGKILL; this conversation may go on.
        """
        request = {"op": "stop", "service": service, "boot_id": boot_id, "signal": stop_signal, "grace_s": grace_s}
        answer = self._ask(request, timeout_s=grace_s + ANSWER_TIMEOUT_S if wait_s is None else wait_s)
        if left := answer.get("left"):
            pids = " ".join(map(str, left))
            raise StillRunningError(
                f"pids {pids} of {boot_id} outlived SIGKILL, or belong to another user", hint=f"ps -fp {pids}"
            )

    def replace_router(self) -> int:
        """Have another router take over; answers its pid once it leads and the one before only drains.

        Raises:
            TurnoutError: it did not come up, and nothing changed.
        """
        return int(self._ask({"op": "replace_router"}, timeout_s=REPLACE_TIMEOUT_S)["pid"])

    def kill_router(self, pid: int) -> None:
        """Kill the router ``pid`` if it is one; the keeper starts another."""
        self._ask({"op": "kill_router", "pid": pid})

    def shutdown(self, *, timeout_s: float = 30.0) -> None:
        """End the keeper with all its children, and wait until it has closed the door."""
        self._ask({"op": "shutdown"})
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN | select.POLLHUP)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)

    def _ask(self, message: Message, *, timeout_s: float = ANSWER_TIMEOUT_S, refusable: bool = False) -> Message:
        self._asked += 1
        answer = self._channel.request({**message, **self._home, "id": self._asked}, timeout_s=timeout_s)
        if answer.get("ok") or (refusable and answer.get("error") == "bind"):
            return answer
        kind = getattr(errors, str(answer.get("error")), ProtocolError)
        known = isinstance(kind, type) and issubclass(kind, TurnoutError)
        raise (kind if known else ProtocolError)(
            str(answer.get("message", "the keeper refused")), hint=answer.get("hint")
        )


def _warn_of_reduced_limits(
    answer: Message, umask: int | None, limits: Limits, on_warning: Callable[[str], None]
) -> None:
    if "reduced" not in answer and (limits or umask is not None):
        on_warning(
            "the daemon gets the keeper's umask and limits, since an earlier version of turnout started the keeper;"
            " turnout down, then turnout up, starts another keeper"
        )
    for name in answer.get("reduced", ()):
        on_warning(
            f"the daemon gets a hard limit {name} below {spell_limit(limits[name])}: the keeper's own is no higher;"
            " turnout down, then turnout up from here, starts another keeper"
        )


def tell_service_manager(home: Home) -> None:
    """To systemd, where it started this verb: all is up, and the process to watch from here on is the keeper.

    sd_notify(3): MAINPID and READY. Without a manager, or a keeper, nothing is said.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        try:
            with KeeperClient.connect(home) as keeper:
                pid = keeper.hello().pid
        except (TurnoutError, OSError):
            return
        notify("READY=1", f"MAINPID={pid}", f"STATUS=keeper of {home.root}")


def bind_error(address: Address, number: int) -> TurnoutError:
    """Why an address could not be bound, with the process that has it where that is so."""
    if number == errno.EADDRNOTAVAIL:
        what = f"cannot listen on {address}: this machine has no such address"
        return TurnoutError(what, hint=f"{missing_address_hint(address.host)}; or name another with --listen")
    if number != errno.EADDRINUSE:
        return TurnoutError(f"cannot listen on {address}: {os.strerror(number)}", hint="name another with --listen")
    holder = who_listens(address.host, address.port)
    if holder is None:
        return AddressInUseError(
            f"{address} is in use, by no process that can be seen",
            hint="name another with --listen, or try again in a minute: a connection that ended may have had it",
        )
    other = other_home(holder.pid)
    if holder.listening and other:
        return AddressInUseError(
            f"{address} is in use by turnout (pid {holder.pid}) for another home, {other}",
            hint=f"name another with --listen; TURNOUT_HOME={shlex.quote(other)} turnout status names the service",
        )
    if not holder.pid:  # its descriptors cannot be looked at: another user's, or of a container
        what = "in use by" if holder.listening else "the source port of a connection of"
        return AddressInUseError(
            f"{address} is {what} {holder.command}, whose pid cannot be seen from here",
            hint=f"name another with --listen; root sees the process: ss -ltnp sport = :{address.port}",
        )
    if holder.listening:
        return AddressInUseError(
            f"{address} is in use by pid {holder.pid} ({holder.command})", hint="stop it, or name another with --listen"
        )
    return AddressInUseError(
        f"{address} is the source port of a connection of pid {holder.pid} ({holder.command})",
        hint=f"try again, and keep it free: sysctl net.ipv4.ip_local_reserved_ports={address.port}",
    )


def other_home(pid: int, *, proc: Path = PROC) -> str:
    """The home whose keeper or router a process is, by its command line; empty where it is neither, or of this home."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0") if pid > 0 else []
        at = next(number for number, word in enumerate(words) if word in {b"turnout.keeper", b"turnout.router"})
        found = os.fsdecode(words[at + 1])
    except (OSError, StopIteration, IndexError):
        return ""
    here, identity = Home.find().root, HomeIdentity.of(Path(found))
    return "" if found == str(here) or (identity and identity == HomeIdentity.of(here)) else found
