"""The keeper: holds the listeners open, and is the parent of the router and of the daemons. It carries no client byte.

Small, single-threaded and standard library only, so that there is little in it that can fail: a fork in it is safe, and
whatever happens to the router, connections to the fixed address wait in the kernel's queue until a new one is there.

    CLI ──► keeper.sock ──► listen, unlisten, spawn, stop, hello, replace_router, kill_router, shutdown
    router ──► keeper.sock ──► attach (brings the listeners it has; gets those that it lacks), stop,
                               replace_router, ready, heard, left, leads, cut
"""

from __future__ import annotations

import math
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from turnout import __version__
from turnout.children import Child, Children, Reply
from turnout.daemon_listeners import DaemonListeners
from turnout.errors import NotRunningError, ProtocolError, SpawnError, TurnoutError
from turnout.going_down import DEFAULT_TERMS, GoingDown, stop_terms
from turnout.keeper_socket import KeeperSocket
from turnout.listener import spell
from turnout.listening import Listening
from turnout.logfile import CHECK_EVERY_S, LogFile, log_line
from turnout.notify import notify
from turnout.remains import LABEL, Ending
from turnout.routers import Routers
from turnout.signals import Signals
from turnout.system.control import Channel, Message
from turnout.system.home import Home, check_name
from turnout.system.keeper_lock import take_keeper_lock
from turnout.system.process import identify
from turnout.system.spawn import SpawnRequest, adopt_subreaper
from turnout.system.spawn_record import read_records
from turnout.timers import Timers

TERM_GRACE_S: Final = 5.0
DOWN_SLACK_S: Final = 20.0  # for the lifecycle lock and a slow machine
LOG_BOUND_BYTES: Final = 4 * 1024 * 1024
LOG_LOOK_S: Final = 1.0
LOG_SOON_S: Final = 0.1  # after a look at which one had grown by a quarter of its bound


class Keeper:
    """One per home. Owns the keeper's socket and lock, the listeners, the control channels and all children."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._lock_fd = take_keeper_lock(home.keeper_lock)
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._served: dict[str, Listening] = {}
        self._children = Children(self._selector, self._timers.after, self._child_ended, log_line)
        self._routers = Routers(home, self._children, self._timers.after, self._served, self._send, log_line)
        self._listeners = DaemonListeners(home, self._served, self._routers.offer, self._timers.after, log_line)
        self._ending = False
        self._shutting_down = False
        self._done = False
        self._log_file = LogFile(home.keeper_log, LOG_BOUND_BYTES)
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._socket = KeeperSocket(home.keeper_sock, self._selector, self._take, self._routers.lost)
        self._signals = Signals()
        self._selector.register(self._signals.fileno(), selectors.EVENT_READ, self._on_signal)

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``shutdown`` or a signal, then leave nothing behind."""
        adopt_subreaper()
        self._signals.catch(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._adopt()
        self._watch_log()
        self._bound_logs()
        log_line(f"keeper {__version__} of {self.home.root}, pid {os.getpid()}")
        if loose := self.home.looseness():
            log_line(f"{loose}; turnout doctor --fix mends it")
        ready()
        try:
            while True:
                self._timers.run()
                if self._done:
                    break
                for key, _ in self._selector.select(self._timers.next_s()):
                    key.data()
        finally:
            self._close()

    def _adopt(self) -> None:
        """Take over what an earlier keeper left: its daemons, and a router that runs and will attach by itself."""
        for name in self.home.service_names():
            service = self.home.service(name)
            for boot_id, daemon in read_records(service.records).items():
                if daemon.ended is None:
                    self._children.adopt(boot_id, name, daemon.identity, service.record(boot_id), service.log(boot_id))
        self._routers.adopt()

    def _child_ended(self, child: Child) -> None:
        if not self._routers.is_router(child):
            self._listeners.look()
            self._routers.tell_leading({"op": "ended", "service": child.service, "boot_id": child.boot_id})
        elif not self._shutting_down:
            self._routers.ended(child)

    def _watch_log(self) -> None:
        self._log_file.check()
        self._timers.after(CHECK_EVERY_S, self._watch_log)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _take(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if message.get("op") == "attach":
            before = self._routers.attach(channel, message, fds)
            self._listeners.watch()
            if before:
                self._socket.drop(before)
            return
        for fd in fds:
            os.close(fd)
        if not self._heard(channel, message):
            self._answer(channel, message)

    def _heard(self, channel: Channel, message: Message) -> bool:
        """Take what a router says without waiting for an answer."""
        match message.get("op"):
            case "ready":
                self._routers.ready(channel)
            case "heard":
                self._routers.hears(channel)
            case "left":
                self._routers.left(channel)
            case "leads":
                self._routers.leads(channel)
            case "seen":
                self._routers.seen(channel, message)
            case "cut":
                self._routers.tell_those_that_leave(message)
            case _:
                return False
        return True

    def _answer(self, channel: Channel, message: Message) -> None:
        def reply(answer: Mapping[str, Any]) -> None:
            self._socket.send(channel, {**answer, "re": message.get("id")})

        operation = {
            "hello": self._on_hello,
            "listen": self._on_listen,
            "unlisten": self._on_unlisten,
            "spawn": self._on_spawn,
            "stop": self._on_stop,
            "replace_router": self._on_replace_router,
            "kill_router": self._on_kill_router,
            "shutdown": self._on_shutdown,
        }.get(str(message.get("op")))
        try:
            if self._shutting_down and message.get("op") != "shutdown":
                raise NotRunningError("the keeper is shutting down", hint="try again in a moment")
            if self._ending and message.get("op") in {"listen", "spawn", "replace_router"}:
                raise NotRunningError("the keeper is going down", hint="try again in a moment")
            if operation is None:
                raise ProtocolError(f"this keeper ({__version__}) does not know {message.get('op')!r}")
            operation(message, reply)
        except TurnoutError as error:
            reply({"ok": False, "error": type(error).__name__, "message": error.message, "hint": error.hint})
        except (KeyError, TypeError, ValueError) as error:
            reply({"ok": False, "error": "ProtocolError", "message": f"bad {message.get('op')!r} request: {error!r}"})

    def _on_hello(self, _: Message, reply: Reply) -> None:
        router = self._routers.current
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "version": __version__,
                "router_pid": router.pid if router else 0,
                "attached": bool(router and router.channel and router.leads),
                "leaving": self._routers.leaving,
                "services": {name: served.addresses for name, served in self._served.items()},
            }
        )

    def _on_listen(self, message: Message, reply: Reply) -> None:
        name = check_name(message["service"])
        addresses = [(str(host), int(port)) for host, port in message["addresses"]]
        served = self._served.get(name)
        if served is None or served.addresses != addresses:
            try:
                self._served[name] = served.moved_to(addresses) if served else self._listeners.first(name, addresses)
            except OSError as error:
                reply({"ok": False, "error": "bind", "errno": error.errno, "address": error.filename})
                return
            log_line(f"service {name} listens on {spell(addresses)}")
            self._routers.offer(name)
        self._routers.wanted = True
        self._routers.start()
        reply({"ok": True})

    def _on_unlisten(self, message: Message, reply: Reply) -> None:
        served = self._served.pop(check_name(message["service"]), None)
        if served:
            served.close()
            self._routers.tell_all({"op": "unlisten", "service": message["service"]})
        reply({"ok": True, "left": sorted(self._served)})

    def _on_spawn(self, message: Message, reply: Reply) -> None:
        service = self.home.service(message["service"])
        boot_id = check_name(message["boot_id"])
        if self._children.get(boot_id):
            raise SpawnError(f"{boot_id} already runs")
        listener, member = self._listeners.take(service.name, boot_id, message.get("listener"))
        try:
            child = self._children.spawn(
                SpawnRequest(
                    boot_id=boot_id,
                    service=service.name,
                    argv=tuple(message["argv"]),
                    cwd=message["cwd"],
                    env={**message["env"], LABEL: boot_id},
                    log_path=service.log(boot_id),
                    record_path=service.record(boot_id),
                    nofile=self._nofile,
                    pass_fds=(listener.fileno(),) if listener else (),
                    slot=member.slot,
                    listener_inode=member.inode,
                    joins=message.get("listener") == "itself",
                )
            )
            if message.get("listener") == "itself":
                self._listeners.started(service.name, boot_id, child.identity)
        finally:
            if listener:  # while a copy is open, the daemon's death would not end it
                listener.close()
            self._listeners.look()
        reply({"ok": True, **asdict(child.identity)})

    def _on_stop(self, message: Message, reply: Reply) -> None:
        name, boot_id = check_name(message["service"]), str(message["boot_id"])
        child = self._children.get(boot_id) or self._unadopted(name, boot_id)
        if child and (self._routers.is_router(child) or child.service != name):
            reply({"ok": True, "gone": True})
            return
        number, grace_s = signal.Signals[f"SIG{message['signal']}"], max(0.0, float(message["grace_s"]))
        if child:
            self._children.stop(child, number, grace_s, reply)
        else:
            self._children.end_remains(check_name(boot_id), number, grace_s, reply)

    def _unadopted(self, service: str, boot_id: str) -> Child | None:
        """A daemon that was started by another keeper and came to light only now: "gone" would be a lie."""
        record = read_records(self.home.service(service).records).get(boot_id)
        if record is None or record.ended is not None:
            return None
        home = self.home.service(service)
        self._children.adopt(boot_id, service, record.identity, home.record(boot_id), home.log(boot_id))
        return self._children.get(boot_id)

    def _on_replace_router(self, _: Message, reply: Reply) -> None:
        self._routers.replace(reply)

    def _on_kill_router(self, message: Message, reply: Reply) -> None:
        self._routers.kill_silent(int(message["pid"]))
        reply({"ok": True})

    def _on_shutdown(self, _: Message, reply: Reply) -> None:
        reply({"ok": True})
        self._shut_down()

    def _go_down(self) -> None:
        """SIGTERM: what ``turnout down`` does, for each service. A second one does not wait for that."""
        if self._ending:
            self._shut_down()
            return
        self._ending = True
        log_line("going down")
        notify("STOPPING=1")
        services = sorted(self._served)
        patience_s = max((stop_terms(self.home.service(name)).patience_s for name in services), default=0.0)
        GoingDown(
            self.home,
            services,
            lambda fd, action: self._selector.register(fd, selectors.EVENT_READ, action),
            self._selector.unregister,
            lambda: self._shut_down(math.inf),
            log_line,
        )
        self._timers.after(patience_s + DOWN_SLACK_S, lambda: self._shut_down(math.inf))

    def _shut_down(self, most_s: float = TERM_GRACE_S) -> None:
        """Stop what is left, each daemon by its own signal and grace, or ``most_s``; then leave."""
        if self._shutting_down:
            return
        self._shutting_down = True
        log_line("shutting down")
        self._routers.tell_all({"op": "end"})
        for served in self._served.values():
            served.close()
        self._served.clear()
        for child in self._children.all():
            terms = stop_terms(self.home.service(child.service)) if child.service else DEFAULT_TERMS
            self._children.stop(child, terms.signal, min(terms.grace_s, most_s))
        self._leave_when_alone()

    def _leave_when_alone(self) -> None:
        if self._children:
            self._timers.after(0.01, self._leave_when_alone)
        else:
            Ending("", signal.SIGKILL, 0.0, self._timers.after, self._leave).look()

    def _leave(self) -> None:
        self._done = True

    def _bound_logs(self) -> None:
        grows = self._children.bound_logs()
        self._timers.after(LOG_SOON_S if grows else LOG_LOOK_S, self._bound_logs)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _send(self, channel: Channel, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        self._socket.send(channel, message, fds)  # made after the routers, who tell it of nothing before that

    def _on_signal(self) -> None:
        signals = self._signals.take()
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._go_down()
        if signal.SIGHUP in signals:
            log_line("SIGHUP: the routers look at their settings again; the keeper has none of its own")
            self._log_file.check()
            self._routers.tell_all({"op": "reload"})
        self._children.reap()

    def _close(self) -> None:
        self._socket.close()
        for served in self._served.values():
            served.close()
        self._children.close()
        self._selector.close()
        self.home.router_sock.unlink(missing_ok=True)
        self._signals.close()
        os.close(self._lock_fd)
        log_line("keeper ended")


def main(argv: list[str]) -> int:
    """``python -m turnout.keeper HOME [READY_FD]``: how the command line starts it."""
    home = Home(Path(argv[0]))
    ready_fd = int(argv[1]) if len(argv) > 1 else -1
    try:
        home.create()
        keeper = Keeper(home)
    except TurnoutError as error:
        log_line(error.message)
        return error.exit_code

    def ready() -> None:
        if ready_fd >= 0:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    identify(os.getpid())  # a machine without /proc is told so here, not at the first deploy
    keeper.run(ready)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
