"""Answers the requests on the keeper's socket. Standard library only and single-threaded, as the keeper is."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from turnout import __version__
from turnout.errors import ConflictError, NotRunningError, ProtocolError, SpawnError, TurnoutError
from turnout.keeper.activations import Activations, run_under_filter
from turnout.keeper.children import Child, Children, Reply
from turnout.keeper.control_socket import KeeperSocket
from turnout.keeper.daemon_listeners import DaemonListeners
from turnout.keeper.requests import (
    Attach,
    Binds,
    Command,
    Cut,
    FromRouter,
    GroupApplied,
    KillRouter,
    Listen,
    Request,
    RouterReport,
    Spawn,
    Stop,
    Unlisten,
    request_of,
)
from turnout.keeper.routers import Routers
from turnout.state.home import Home, check_name
from turnout.system.boot_processes import LABEL
from turnout.system.control_channel import Channel, Message, number_of
from turnout.system.home_identity import HomeIdentity
from turnout.system.limits import grantable
from turnout.system.net.listener import spell
from turnout.system.own_log import log_line
from turnout.system.spawn import SpawnRequest
from turnout.system.spawn_record import read_records


@dataclass(slots=True)
class RequestHandler:
    """Carries out what verbs and routers ask of the keeper. Owns nothing."""

    home: Home
    peers: KeeperSocket
    children: Children
    routers: Routers
    listeners: DaemonListeners
    activations: Activations
    shut_down: Callable[[], None]
    going_down: bool = False  # no service and no daemon is added any more
    shutting_down: bool = False
    _home_identity: HomeIdentity | None = field(init=False)

    def __post_init__(self) -> None:
        self._home_identity = HomeIdentity.of(self.home.root)  # of now: the home may be removed and made again

    def on_message(self, channel: Channel, message: Message, fds: list[int]) -> None:
        """Carry out a request and answer it. The descriptors are closed, unless a router brings them as listeners."""
        number = number_of(message)

        def reply(response: Mapping[str, Any]) -> None:
            self.peers.send(channel, {**response, "re": number})

        try:
            home = HomeIdentity.loads(message.get("home"))
            if home and home != self._home_identity:
                raise ConflictError(
                    f"the keeper (pid {os.getpid()}) belongs to another home, {self.home.root}",
                    hint="remove keeper.sock and router.sock from the copy of that home",
                )
            request = request_of(message)
            if isinstance(request, Attach):
                fds, brought = [], fds
                before = self.routers.attach(channel, number, request, brought)
                self.listeners.watch()
                if before:
                    self.peers.drop(before)
            elif isinstance(request, FromRouter):
                if not self.routers.has_channel(channel):
                    raise ProtocolError(f"only a router of this keeper may ask for {message.get('op')}")
                self._on_report(channel, message, request)
            else:
                self._carry_out(request, reply)
        except (TurnoutError, OSError) as error:
            self._reply_error(str(message.get("op")), error, reply)
        finally:
            for fd in fds:
                os.close(fd)

    def _reply_error(self, op: str, error: Exception, reply: Reply) -> None:
        """Answer with the error. An OSError (no descriptor, a disk that fails) ends the request, and no more."""
        if not isinstance(error, TurnoutError):
            why = (error.strerror if isinstance(error, OSError) else None) or error
            error = TurnoutError(f"the keeper cannot {op}: {why}", hint=f"see {self.home.keeper_log}")
        reply({"ok": False, "error": type(error).__name__, "message": error.message, "hint": error.hint})

    def _on_report(self, channel: Channel, message: Message, report: FromRouter) -> None:
        """Act on the report of a router, which waits for no answer."""
        match report:
            case RouterReport.READY:
                self.routers.on_ready(channel)
            case RouterReport.LEAVE_ACKNOWLEDGED:
                self.routers.on_leave_acknowledged(channel)
            case RouterReport.LEAD_RELEASED:
                self.routers.on_lead_released(channel)
            case RouterReport.LEAD_TAKEN:
                self.routers.on_lead_taken(channel)
            case GroupApplied():
                self.routers.on_group_applied(channel, report)
            case Cut():
                self.routers.send_draining(message)

    def _carry_out(self, request: Request, reply: Reply) -> None:
        if self.shutting_down and request is not Command.SHUTDOWN:
            raise NotRunningError("the keeper is shutting down", hint="try again in a moment")
        if self.going_down and (isinstance(request, Listen | Spawn) or request is Command.REPLACE_ROUTER):
            raise NotRunningError("the keeper is going down", hint="try again in a moment")
        match request:
            case Command.HELLO:
                self._on_hello(reply)
            case Listen():
                self._on_listen(request, reply)
            case Unlisten():
                self._on_unlisten(request, reply)
            case Spawn():
                self._on_spawn(request, reply)
            case Binds():
                reply({"ok": True, **self.activations.binds_of(request.boot_id)})
            case Stop():
                self._on_stop(request, reply)
            case Command.REPLACE_ROUTER:
                self.routers.replace(reply)
            case KillRouter():
                self.routers.kill_silent(request.pid)
                reply({"ok": True})
            case Command.SHUTDOWN:
                reply({"ok": True})
                self.shut_down()
            case _:
                raise ProtocolError(f"this keeper ({__version__}) does not answer {type(request).__name__}")

    def _on_hello(self, reply: Reply) -> None:
        leader = self.routers.leader
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "version": __version__,
                "router_pid": leader.pid if leader else 0,
                "attached": bool(leader and leader.channel and leader.leads),
                "leaving": self.routers.draining_pids,
                "services": {name: served.addresses for name, served in self.listeners.served.items()},
                "trouble": self.routers.starts.trouble,
            }
        )

    def _on_listen(self, request: Listen, reply: Reply) -> None:
        name, addresses = request.service, list(request.addresses)
        if request.interpreter:
            self.routers.prefer_interpreter(request.interpreter)
        try:
            if self.listeners.bind(name, addresses):
                log_line(f"service {name} listens on {spell(addresses)}")
            if request.shared:
                with contextlib.suppress(SpawnError):  # the start of the daemon that is to join fails with the reason
                    self.listeners.group_of(name)
        except OSError as error:
            reply({"ok": False, "error": "bind", "errno": error.errno, "address": error.filename})
            return
        self.routers.wanted = True
        self.routers.start()
        reply({"ok": True})

    def _on_unlisten(self, request: Unlisten, reply: Reply) -> None:
        if self.listeners.unbind(request.service):
            self.routers.send_all({"op": "unlisten", "service": request.service})
        reply({"ok": True, "left": sorted(self.listeners.served)})

    def _on_spawn(self, request: Spawn, reply: Reply) -> None:
        service = self.home.service(request.service)
        boot_id = request.boot_id
        if self.children.get(boot_id) or self.children.is_starting(boot_id):
            raise SpawnError(f"{boot_id} already runs")
        limits, reduced = grantable(request.limits)
        held: tuple[int, ...] = ()
        listener, index = None, 0
        if request.activation:
            held = self._activated(request, request.activation)
        else:
            listener, index = self.listeners.take(service.name, boot_id, request.listener)
        self.children.spawn_daemon(
            SpawnRequest(
                boot_id=boot_id,
                service=service.name,
                argv=request.argv,
                cwd=request.cwd,
                env={**request.env, LABEL: boot_id},
                log_path=service.log(boot_id),
                record_path=service.record(boot_id),
                nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
                limits=limits,
                umask=request.umask,
                program=request.program,
                pass_fds=(listener.fileno(),) if listener else (),
                slot=index,
                listener_inode=os.fstat(listener.fileno()).st_ino if listener and request.listener == "shared" else 0,
                held_fds=held,
                before_exec=run_under_filter if held else None,
            ),
            partial(self._started, boot_id, listener, held, reduced, reply),
        )

    def _activated(self, request: Spawn, ports: tuple[int, int]) -> tuple[int, ...]:
        """The descriptors of an activation. Raises SpawnError, OSError."""
        given, serving = ports
        shares = request.listener == "shared"
        if shares:
            self.listeners.group_of(request.service)  # the router has until the first bind to make room
        return self.activations.prepare(request.service, request.boot_id, given=given, serving=serving, shares=shares)

    def _started(
        self,
        boot_id: str,
        listener: socket.socket | None,
        held: Sequence[int],
        reduced: Sequence[str],
        reply: Reply,
        child: Child | Exception,
    ) -> None:
        """The start of a daemon is over: it runs, or it failed."""
        if held:
            self.activations.started(boot_id, held, runs=isinstance(child, Child))
        try:
            if isinstance(child, Child) and self.shutting_down:
                self.children.kill(child)
                child = NotRunningError("the keeper is shutting down", hint="try again in a moment")
            if isinstance(child, Exception):
                self._reply_error("spawn", child, reply)
                return
            reply({"ok": True, **asdict(child.identity), "reduced": reduced})
        finally:
            if listener:  # while a copy is open, the daemon's death would not end it
                listener.close()
            self.listeners.refresh()

    def _on_stop(self, request: Stop, reply: Reply) -> None:
        name, boot_id = request.service, request.boot_id
        if self.children.after_start(boot_id, partial(self._stop_started, request, reply)):
            return
        child = self.children.get(boot_id) or self._unadopted(name, boot_id)
        self._check_service(name, boot_id, child)
        if child:
            self.children.stop(child, request.number, request.grace_s, reply)
        else:
            self.children.end_orphans(check_name(boot_id), request.number, request.grace_s, reply)

    def _stop_started(self, request: Stop, reply: Reply) -> None:
        try:
            self._carry_out(request, reply)
        except (TurnoutError, OSError) as error:
            self._reply_error("stop", error, reply)

    def _check_service(self, name: str, boot_id: str, child: Child | None) -> None:
        """Raises TurnoutError: the boot id is that of a router, or of a daemon of another service."""
        if child and self.routers.is_router(child):
            raise TurnoutError(f"{boot_id} is a router, and no daemon of {name}", hint="turnout router --replace")
        service = child.service if child else self._service_of_record(name, boot_id)
        if service != name:
            raise TurnoutError(
                f"{boot_id} is a daemon of service {service}, not of {name}", hint=f"turnout status --service {service}"
            )

    def _service_of_record(self, name: str, boot_id: str) -> str:
        """The service that has a record of this boot: ``name`` where it has one, or where no service has."""
        names = (name, *self.home.service_names(), *self.home.services_without_settings())
        return next((other for other in names if self.home.service(other).record(boot_id).exists()), name)

    def _unadopted(self, service: str, boot_id: str) -> Child | None:
        """A daemon that was started by another keeper and came to light only now: "gone" would be a lie.

        Raises TurnoutError: it runs, and no descriptor is left to watch it.
        """
        record = read_records(self.home.service(service).records).get(boot_id)
        if record is None or (record.ended and not record.has_remains):
            return None
        if not self.children.adopt(record, service, self.home.service(service).record(boot_id)):
            raise TurnoutError(
                f"the keeper cannot watch {boot_id}, and so not end it", hint=f"see {self.home.keeper_log}"
            )
        return self.children.get(boot_id)
