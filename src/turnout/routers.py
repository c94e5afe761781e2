"""The keeper's routers: the one that leads, one that is to take its place, and those that leave. Standard library only.

    start ──► (lock free) leads ─────────────────────────────┬─► told to leave ─► drains ─► ends
    replace ─► standby ─► ready ─► its predecessor is told ──┘   and lets the lead go, which the new one takes

Which router leads is settled by a lock (:mod:`turnout.system.lead_lock`), so that it is never two, whoever dies when.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from turnout.children import Child, Children, Reply
from turnout.errors import TurnoutError
from turnout.listening import Listening
from turnout.router_process import PREFIX, Router, router_request
from turnout.system.control import Channel, Message
from turnout.system.home import Home, check_name
from turnout.system.spawn_record import read_records

RESTART_DELAYS_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_AFTER_S: Final = 10.0  # a router that lived this long starts the back-off anew
ATTACH_TIMEOUT_S: Final = 10.0  # a router that has not attached by then is silent, and replaced
SUCCESSOR_TIMEOUT_S: Final = 20.0  # from its start until it leads
HEARD_TIMEOUT_S: Final = 3.0  # a router that is told to leave says at once that it heard
LEAVE_TIMEOUT_S: Final = 12.0  # until it has let the lead go: a write that waits for the registry's lock takes 8 s

Send = Callable[[Channel, Mapping[str, Any], Sequence[int]], None]


@dataclass(slots=True)
class Handover:
    """A replacement under way, and who waits for it."""

    successor: str
    waiters: list[Reply] = field(default_factory=list[Reply])


class Routers:
    """Starts, replaces and restarts the routers of one home.

    Args:
        home: the state directory.
        children: forks and reaps them.
        after: runs an action after so many seconds.
        served: the keeper's listeners by service.
        send: sends a message with descriptors over a channel.
        say: takes a line for the log.
    """

    def __init__(
        self,
        home: Home,
        children: Children,
        after: Callable[[float, Callable[[], None]], None],
        served: dict[str, Listening],
        send: Send,
        say: Callable[[str], None],
    ) -> None:
        self._home = home
        self._children = children
        self._after = after
        self._served = served
        self._send = send
        self._say = say
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._routers: dict[str, Router] = {}
        self._current = ""
        self._handover: Handover | None = None
        self._failures = 0
        self.wanted = False

    # -- what the keeper asks ----------------------------------------------------------------------------------------

    @property
    def current(self) -> Router | None:
        """The one that leads, or is about to."""
        return self._routers.get(self._current)

    @property
    def leaving(self) -> list[int]:
        """The pids of those that only carry what they have accepted."""
        return [router.pid for router in self._routers.values() if router.leaving]

    def is_router(self, child: Child) -> bool:
        return child.boot_id in self._routers

    def adopt(self) -> None:
        """Find the routers of an earlier keeper; each says what it is when it attaches."""
        records = sorted(read_records(self._home.root).values(), key=lambda record: record.spawned_ts)
        for record in records:
            path = self._home.router_record(record.boot_id)
            if record.ended is None and record.boot_id.startswith(PREFIX):
                self._children.adopt(record.boot_id, "", record.identity, path, self._home.router_log)
            child = self._children.get(record.boot_id)
            if child:
                self._routers[record.boot_id] = Router(child, time.monotonic())
                self._current = record.boot_id
            else:
                path.unlink(missing_ok=True)
        if self._current:
            self.wanted = True
            self._after(ATTACH_TIMEOUT_S, self._check_silent)

    def start(self) -> None:
        """Have one that leads."""
        if self.wanted and not self.current and not self._handover:
            self._current = self._spawn()
            if not self._current:
                self._failures += 1
                self._again()

    def replace(self, reply: Reply) -> None:
        """Start another; answer once it leads and the present one is on its way out, or why it does not."""
        self.wanted = True
        if self._handover:  # whoever asks meanwhile wants the same
            self._handover.waiters.append(reply)
            return
        if not self.current:
            self.start()
        else:
            boot_id = self._spawn()
            if boot_id:
                self._handover = Handover(boot_id, [reply])
                self._after(SUCCESSOR_TIMEOUT_S, lambda: self._too_late(boot_id))
                return
        router = self.current
        if router:
            reply({"ok": True, "pid": router.pid})
        else:
            reply(
                {"ok": False, "error": "SpawnError", "message": "the router cannot be started", "hint": "see the log"}
            )

    def kill_silent(self, pid: int) -> None:
        """Kill the router ``pid`` if it is one; another is started."""
        for router in self._routers.values():
            if router.pid == pid:
                self._say(f"killing the router (pid {pid}) on request: it is silent")
                self._children.kill(router.child)

    def ended(self, child: Child) -> None:
        """One is gone, and reaped."""
        boot_id = child.boot_id
        router = self._routers.pop(boot_id)
        self._home.router_record(boot_id).unlink(missing_ok=True)
        if self._handover and self._handover.successor == boot_id:
            self._settle(None)
            if self.current and self.current.told:
                self._without_lead(self.current)
        elif self._current == boot_id:
            # of two that an earlier keeper left, the other one; a successor takes the lead by itself: the lock is free
            self._current = self._another()
            if self._current or self._handover:
                return
            lived_s = time.monotonic() - router.started_at
            self._failures = 0 if lived_s > STEADY_AFTER_S else self._failures + 1
            self._again()
        self._tell_leaving()

    # -- what routers say --------------------------------------------------------------------------------------------

    def attach(self, channel: Channel, message: Message, fds: list[int]) -> Channel | None:
        """A router is there: keep the listeners that it brings from before our time, give it those that it lacks.

        Answers the channel that this one takes the place of, for the keeper to close.
        """
        boot_id, router = self._of_pid(message.get("pid"))
        if router is None:
            for fd in fds:
                os.close(fd)
            self._send(channel, {"re": message.get("id"), "ok": False, "error": "stranger"}, ())
            return None
        found: dict[str, list[tuple[tuple[str, int], socket.socket]]] = {}
        for (name, host, port), fd in zip(message.get("listeners", []), fds, strict=True):
            found.setdefault(check_name(name), []).append(((host, port), socket.socket(fileno=fd)))
        homes = message.get("homes", {})
        brought = {
            name: Listening.brought(
                listeners, read_records(self._home.service(name).records).values(), int(homes.get(name, 0))
            )
            for name, listeners in found.items()
        }
        for name, served in brought.items():
            if name in self._served:
                served.close()
            else:
                self._served[name] = served
        before, router.channel = router.channel, channel
        lacks = [
            name
            for name, served in self._served.items()
            if name not in brought or brought[name].addresses != served.addresses or served.group
        ]
        phase = message.get("phase")
        router.leaving = phase == "leaving"
        self._send(channel, {"re": message.get("id"), "ok": True, "services": sorted(self._served)}, ())
        if not router.leaving:
            for name in lacks:
                self._offer(router, name)
        self._say(f"router attached, pid {router.pid}, {phase}, brought {sorted(brought)}")
        if phase == "leads":
            self.leads(channel)
        elif phase == "standby" and not router.child.mine:  # the keeper that asked for a successor has died meanwhile
            self._send(channel, {"op": "stand_down"}, ())
        elif router.leaving and boot_id == self._current:
            self._current = self._another()
            self.start()
        return before if before is not channel else None

    def ready(self, channel: Channel) -> None:
        """A successor could take over this moment: its predecessor is to go."""
        boot_id, _ = self._of_channel(channel)
        current = self.current
        if not current or boot_id == self._current:
            return
        if current.channel is None:
            self._say(f"the router (pid {current.pid}) is not attached, and cannot be told to leave")
            self._children.kill(current.child)
            return
        current.told = True
        self._after(HEARD_TIMEOUT_S, lambda: self._kill_stuck(current, late=not current.heard))
        self._after(LEAVE_TIMEOUT_S, lambda: self._kill_stuck(current, late=not current.left))
        self._send(current.channel, {"op": "leave"}, ())

    def hears(self, channel: Channel) -> None:
        """A router knows that it is to leave."""
        _, router = self._of_channel(channel)
        if router:
            router.heard = True

    def left(self, channel: Channel) -> None:
        """A router has let the lead go; one whose signal came while there was no keeper has no successor."""
        _, router = self._of_channel(channel)
        if router:
            router.heard = router.left = True
            if router is self.current and not self._handover:
                self._without_lead(router)

    def leads(self, channel: Channel) -> None:
        """A router has the lead: whoever had it before leaves."""
        boot_id, router = self._of_channel(channel)
        if router is None:
            return
        before = self.current
        if before and before is not router:
            before.leaving, before.leads, before.left = True, False, True
        router.leads = True
        self._current = boot_id
        self._tell_leaving()
        if self._handover and self._handover.successor == boot_id:
            self._settle(router)

    def seen(self, channel: Channel, message: Message) -> None:
        """The router that leads has the listeners of a group as they were, and directs new connections to a place."""
        boot_id, _ = self._of_channel(channel)
        served = self._served.get(str(message.get("service")))
        if served and served.group and boot_id == self._current:
            served.group.seen(int(message["version"]), int(message["slot"]))

    def lost(self, channel: Channel) -> None:
        """A channel was closed; it may have been a router's."""
        for router in self._routers.values():
            if router.channel is channel:
                router.channel = None
                self._after(ATTACH_TIMEOUT_S, self._check_silent)

    # -- telling them ------------------------------------------------------------------------------------------------

    def offer(self, name: str) -> None:
        """A new listener, for the one that leads and its successor."""
        for router in self._routers.values():
            if not router.leaving:
                self._offer(router, name)

    def tell_all(self, message: Mapping[str, Any]) -> None:
        for router in self._routers.values():
            if router.channel:
                self._send(router.channel, message, ())

    def tell_leading(self, message: Mapping[str, Any]) -> None:
        router = self.current
        if router and router.channel:
            self._send(router.channel, message, ())

    def tell_those_that_leave(self, message: Mapping[str, Any]) -> None:
        for router in self._routers.values():
            if router.leaving and router.channel:
                self._send(router.channel, message, ())

    # -- parts -------------------------------------------------------------------------------------------------------

    def _spawn(self) -> str:
        """Fork one; its boot id, empty where that failed."""
        request = router_request(self._home, self._nofile)
        try:
            child = self._children.spawn(request)
        except TurnoutError as error:
            self._say(f"cannot start the router: {error}")
            return ""
        self._routers[request.boot_id] = Router(child, time.monotonic())
        self._after(ATTACH_TIMEOUT_S, self._check_silent)
        return request.boot_id

    def _again(self) -> None:
        """The first end after a steady life is answered at once, whatever it was: clients are queueing."""
        step = min(max(self._failures - 1, 0), len(RESTART_DELAYS_S) - 1)
        self._after(RESTART_DELAYS_S[step], self.start)

    def _another(self) -> str:
        """A router that may lead, beside a successor under way; it says what it is when it attaches."""
        successor = self._handover.successor if self._handover else ""
        may = [boot_id for boot_id, one in self._routers.items() if not one.leaving and boot_id != successor]
        if may:
            self._after(ATTACH_TIMEOUT_S, self._check_silent)
        return may[-1] if may else ""

    def _offer(self, router: Router, name: str) -> None:
        if router.channel:
            served = self._served[name]
            message = {"op": "listen", "service": name, "addresses": served.addresses}
            if served.group:
                message |= served.group.told()
            self._send(router.channel, message, [sock.fileno() for sock in served.offered()])

    def _check_silent(self) -> None:
        """A router that does not attach although it had the time for it is replaced."""
        router = self.current
        if router and not router.channel and time.monotonic() - router.started_at >= ATTACH_TIMEOUT_S:
            self._say(f"the router (pid {router.pid}) does not attach: replacing it")
            self._children.kill(router.child)

    def _without_lead(self, router: Router) -> None:
        """The one that led leaves, and who was to follow has died: another, which waits for the lead where it must."""
        router.leaving, router.leads = True, False
        self._current = self._another()
        self.start()

    def _kill_stuck(self, router: Router, *, late: bool) -> None:
        """It was told to leave and still has the lead: it hangs, and what it carries is lost already."""
        if late and self._routers.get(router.child.boot_id) is router:
            self._say(f"the router (pid {router.pid}) does not let the lead go: killing it")
            self._children.kill(router.child)

    def _too_late(self, boot_id: str) -> None:
        if self._handover and self._handover.successor == boot_id:
            router = self._routers[boot_id]
            self._say(f"the new router (pid {router.pid}) does not come up: killing it")
            self._children.kill(router.child)

    def _settle(self, successor: Router | None) -> None:
        """The replacement is over: say so to all who wait for it."""
        handover, self._handover = self._handover, None
        for reply in handover.waiters if handover else ():
            if successor:
                reply({"ok": True, "pid": successor.pid})
            else:
                text = "the new router did not come up; the present one goes on"
                reply({"ok": False, "error": "TurnoutError", "message": text, "hint": f"see {self._home.router_log}"})
        if not successor and not self.current:
            self._failures += 1
            self._again()

    def _tell_leaving(self) -> None:
        self.tell_leading({"op": "leaving", "pids": self.leaving})

    def _of_pid(self, pid: object) -> tuple[str, Router | None]:
        return next(((boot_id, one) for boot_id, one in self._routers.items() if one.pid == pid), ("", None))

    def _of_channel(self, channel: Channel) -> tuple[str, Router | None]:
        return next(((boot_id, one) for boot_id, one in self._routers.items() if one.channel is channel), ("", None))
