"""The keeper's routers: the leader, a successor, and those that drain. Standard library only.

    start ──► (lock free) leads ────────────────────────────┬─► leave ─► releases the lead ─► drains ─► ends
    replace ─► standby ─► ready ─► its predecessor is sent ─┘   and the successor takes it

Which router leads is settled by a lock (:mod:`turnout.state.leader_lock`): never two lead, whichever process dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from turnout.errors import TurnoutError
from turnout.keeper.children import Child, Children, Reply
from turnout.keeper.requests import Attach, GroupApplied
from turnout.keeper.router_child import PREFIX, RouterChild, RouterStarts
from turnout.keeper.service_listeners import ServiceListeners, attached_listeners
from turnout.state.home import Home
from turnout.system.control_channel import Channel
from turnout.system.files import remove
from turnout.system.interpreters import NoInterpreterError
from turnout.system.spawn_record import foreign_records, read_records

ATTACH_TIMEOUT_S: Final = 10.0  # a router that has not attached by then may hang
SUCCESSOR_TIMEOUT_S: Final = 20.0  # from its start until it leads
ACKNOWLEDGE_TIMEOUT_S: Final = 3.0  # a router that is sent "leave" acknowledges that at once
ADOPT_AGAIN_S: Final = 1.0  # after no descriptor was left to watch a router of an earlier keeper
RELEASE_TIMEOUT_S: Final = 12.0  # until it has released the lead: a write that waits for the registry's lock takes 8 s

Send = Callable[[Channel, Mapping[str, Any], Sequence[int]], None]


@dataclass(slots=True)
class Handover:
    """A replacement under way, and the requests that wait for it."""

    successor: str
    waiters: list[Reply] = field(default_factory=list[Reply])


class Routers:
    """Starts, replaces and restarts the routers of one home.

    Args:
        served: the keeper's listeners by service.
        send: sends a message with descriptors over a channel.
    """

    def __init__(
        self,
        home: Home,
        children: Children,
        starts: RouterStarts,
        after: Callable[[float, Callable[[], None]], None],
        served: dict[str, ServiceListeners],
        send: Send,
    ) -> None:
        self._home = home
        self._children = children
        self.starts = starts
        self._after = after
        self._served = served
        self._send = send
        self._log = starts.log
        self._routers: dict[str, RouterChild] = {}
        self._leader_id = ""
        self._handover: Handover | None = None
        self.wanted = False

    # -- requests of verbs -------------------------------------------------------------------------------------------

    @property
    def leader(self) -> RouterChild | None:
        """The router that leads, or is about to."""
        return self._routers.get(self._leader_id)

    @property
    def draining_pids(self) -> list[int]:
        """The pids of the routers that carry what they have accepted, and accept nothing, or may do so.

        A router of an earlier keeper may, until it attaches and names its phase.
        """
        return [router.pid for router in self._routers.values() if router.draining or self._may_drain(router)]

    def _may_drain(self, router: RouterChild) -> bool:
        return router is not self.leader and not (router.child.mine or router.has_attached)

    def is_router(self, child: Child) -> bool:
        return child.boot_id in self._routers

    def adopt(self) -> None:
        """Find the routers of an earlier keeper; each names its phase when it attaches."""
        for boot_id, record in foreign_records(self._home.root).items():
            self._log(f"router {boot_id} (pid {record.identity.pid}) is a process of another home: left alone")
            remove(self._home.router_record(boot_id))
        complete = True
        for record in sorted(read_records(self._home.root).values(), key=lambda record: record.spawned_ts):
            path, watched = self._home.router_record(record.boot_id), True
            if record.boot_id in self._routers:  # an earlier look found it, or it is this keeper's
                continue
            if record.ended is None and record.boot_id.startswith(PREFIX):
                watched = self._children.adopt(record, "", path)
            child = self._children.get(record.boot_id)
            if child:
                self._add(RouterChild(child, time.monotonic()))
                self._leader_id = record.boot_id
            elif watched:
                remove(path)
            complete = complete and watched
        if not complete:  # it leads, and could not attach to a keeper that does not know it
            self._after(ADOPT_AGAIN_S, self.adopt)
        self.wanted = self.wanted or bool(self._leader_id)

    def start(self) -> None:
        """Start a router where none leads, none is about to, and one is wanted."""
        if self.wanted and not self.leader and not self._handover:
            try:
                self._leader_id = self._spawn()
            except (TurnoutError, OSError):
                self.starts.retry(self.start, failed=True)

    def replace(self, reply: Reply) -> None:
        """Start a successor; answer once it leads, or why it does not."""
        self.wanted = True
        if self._handover:
            self._handover.waiters.append(reply)
            return
        try:
            boot_id = self._spawn()
        except (TurnoutError, OSError) as error:
            gone = isinstance(error, NoInterpreterError)
            hint = "turnout up, then turnout router --replace" if gone else f"see {self._home.keeper_log}"
            message = self._not_replaced(self.starts.trouble)
            reply({"ok": False, "error": "SpawnError", "message": message, "hint": hint})
            return
        if not self.leader:
            self._leader_id = boot_id
        self._handover = Handover(boot_id, [reply])
        self._after(SUCCESSOR_TIMEOUT_S, lambda: self._end_late_successor(boot_id))

    def _not_replaced(self, why: str) -> str:
        goes_on = f"router {self.leader.pid} goes on" if self.leader else "no router runs"
        return f"the new router {why}; {goes_on}"

    def kill_silent(self, pid: int) -> None:
        """Kill the router ``pid`` if it is one; another is started."""
        router = self._of_pid(pid)
        if router:
            self._kill(router, "on request: it is silent")

    def on_exit(self, child: Child) -> None:
        """A router has ended, and is reaped."""
        boot_id = child.boot_id
        router = self._routers.pop(boot_id)
        remove(self._home.router_record(boot_id))
        self.starts.on_exit(router)
        if self._handover and self._handover.successor == boot_id:
            self._finish_handover(None)
            if self.leader and self.leader.leave_sent:
                self._replace_leader(self.leader)
        elif self._leader_id == boot_id:
            # of two that an earlier keeper left, the other one; a successor takes the lead by itself: the lock is free
            self._leader_id = self._other_candidate()
            if self._leader_id or self._handover:
                return
            self.starts.retry(self.start, failed=not self.starts.was_steady(router))
        self._send_draining_pids()

    # -- reports of routers ------------------------------------------------------------------------------------------

    def attach(self, channel: Channel, number: object, request: Attach, fds: list[int]) -> Channel | None:
        """Keep the listeners that a router brings and this keeper lacks, and give the router those that it lacks.

        Answers the router's previous channel, for the keeper to close.

        Args:
            channel: the router's.
            number: the id of its message.
            request: the message.
            fds: the descriptors that came along; closed here, or kept as listeners.
        """
        router = self._of_pid(request.pid)
        if router is None or channel.peer_pid != request.pid:
            for fd in fds:
                os.close(fd)
            self._send(channel, {"re": number, "ok": False, "error": "stranger"}, ())
            return None
        brought = attached_listeners(self._home, request, fds)
        for name, served in brought.items():
            if name in self._served:
                served.close()
            else:
                self._served[name] = served
        if request.more:
            return None
        before, router.channel = router.channel, channel
        router.has_attached, router.is_detached = True, False
        router.draining, router.keeps = request.phase == "leaving", request.keeps
        answer = {"re": number, "ok": True, "services": sorted(self._served)}
        self._send(channel, {**answer, "interpreter": self.starts.interpreters.newest}, ())
        if not router.draining:
            for name, served in self._served.items():
                if name not in brought or brought[name].addresses != served.addresses or served.group:
                    self._offer(router, name)
        self._log(f"router attached, pid {router.pid}, {request.phase}, brought {sorted(brought)}")
        if request.phase == "leads":
            self.on_lead_taken(channel)
        elif request.phase == "standby" and not router.child.mine:  # the keeper that asked for this successor has died
            self._send(channel, {"op": "stand_down"}, ())
        elif router.draining and router is self.leader:
            self._leader_id = self._other_candidate()
            self.start()
        return before if before is not channel else None

    def is_router_pid(self, pid: int) -> bool:
        """Whether this process is a router of this keeper."""
        return self._of_pid(pid) is not None

    def has_channel(self, channel: Channel) -> bool:
        """Whether a router speaks over this channel."""
        return self._of_channel(channel) is not None

    def prefer_interpreter(self, interpreter: str) -> None:
        """Start routers with this one from here on; routers have it, too, for the verbs that they start."""
        if self.starts.interpreters.add(interpreter):
            self._log(f"routers are started with {interpreter} from here on")
            self.send_all({"op": "interpreter", "interpreter": interpreter})

    def on_ready(self, channel: Channel) -> None:
        """A successor could take the lead at this moment: send "leave" to its predecessor."""
        router, leader = self._of_channel(channel), self.leader
        if not leader or not router or router is leader:
            return
        if leader.channel is None:
            self._kill(leader, "it is not attached, and cannot be sent to leave")
            return
        leader.leave_sent = True
        self._after(ACKNOWLEDGE_TIMEOUT_S, lambda: self._end_late_leaver(leader, late=not leader.leave_acknowledged))
        self._after(RELEASE_TIMEOUT_S, lambda: self._end_late_leaver(leader, late=not leader.lead_released))
        self._send(leader.channel, {"op": "leave"}, ())

    def on_leave_acknowledged(self, channel: Channel) -> None:
        router = self._of_channel(channel)
        if router:
            router.leave_acknowledged = True

    def on_lead_released(self, channel: Channel) -> None:
        """A router has released the lead; one that got SIGTERM while no keeper ran has no successor."""
        router = self._of_channel(channel)
        if router:
            router.leave_acknowledged = router.lead_released = True
            if router is self.leader and not self._handover:
                self._replace_leader(router)

    def on_lead_taken(self, channel: Channel) -> None:
        """A router has taken the lead: the router that had it drains."""
        router, before = self._of_channel(channel), self.leader
        if router is None:
            return
        if before and before is not router:
            before.draining, before.leads, before.lead_released = True, False, True
        router.leads = True
        self._leader_id = router.child.boot_id
        self._send_draining_pids()
        if self._handover and self._handover.successor == self._leader_id:
            self._finish_handover(router)

    def on_group_applied(self, channel: Channel, request: GroupApplied) -> None:
        """The leader has the listeners of a group in this version, and directs new connections to these indexes."""
        router, served = self._of_channel(channel), self._served.get(request.service)
        if router and router is self.leader and served and served.group:
            served.group.seen(request.version, request.selected)

    def on_channel_closed(self, channel: Channel) -> None:
        router = self._of_channel(channel)
        if router:
            router.channel = None
            self._await_attach(router)

    # -- messages to routers -----------------------------------------------------------------------------------------

    def offer(self, name: str) -> None:
        """Send the listeners of a service to the leader and its successor."""
        for router in self._routers.values():
            if not router.draining:
                self._offer(router, name)

    def send_all(self, message: Mapping[str, Any]) -> None:
        for router in self._routers.values():
            self._send_to(router, message)

    def send_leader(self, message: Mapping[str, Any]) -> None:
        self._send_to(self.leader, message)

    def send_draining(self, message: Mapping[str, Any]) -> None:
        for router in self._routers.values():
            if router.draining:
                self._send_to(router, message)

    def _send_to(self, router: RouterChild | None, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        if router and router.channel:
            self._send(router.channel, message, fds)

    def _send_draining_pids(self) -> None:
        self.send_leader({"op": "leaving", "pids": self.draining_pids})

    def _offer(self, router: RouterChild, name: str) -> None:
        served = self._served[name]
        message = {"op": "listen", "service": name, "addresses": served.addresses}
        if served.group:
            message |= served.group.description()
        sockets = [*served.offered(), *(served.kept() if router.keeps else ())]
        self._send_to(router, message, [sock.fileno() for sock in sockets])

    # -- parts -------------------------------------------------------------------------------------------------------

    def _spawn(self) -> str:
        """Fork a router; answers its boot id. Raises as :meth:`RouterStarts.spawn`."""
        router = self.starts.spawn()
        self._add(router)
        return router.child.boot_id

    def _add(self, router: RouterChild) -> None:
        self._routers[router.child.boot_id] = router
        self._await_attach(router)

    def _await_attach(self, router: RouterChild) -> None:
        """Check later whether this router has attached; an earlier check of it lapses."""
        router.attach_checks += 1
        check, activity = router.attach_checks, self._children.activity(router.child)
        self._after(ATTACH_TIMEOUT_S, lambda: self._check_attached(router, check, activity))

    def _check_attached(self, router: RouterChild, check: int, activity: int) -> None:
        """Replace a leader that does not attach, unless it runs and may carry clients, which need no keeper.

        A router that has no descriptor left, or whose home's file system hangs, cannot attach, and serves all the same.
        """
        if router is not self.leader or router.channel or check != router.attach_checks:
            return
        may_carry = router.has_attached or not router.child.mine
        if not may_carry or self._children.activity(router.child) == activity:
            self._kill(router, "it does not attach")
            return
        if not router.is_detached:
            self._log(f"the router (pid {router.pid}) does not attach, and runs: it goes on without this keeper")
        router.is_detached = True
        self._await_attach(router)

    def _other_candidate(self) -> str:
        """A router that may lead, beside a successor under way; it names its phase when it attaches."""
        successor = self._handover.successor if self._handover else ""
        may = [boot_id for boot_id, router in self._routers.items() if not router.draining and boot_id != successor]
        if not may:
            return ""
        self._await_attach(self._routers[may[-1]])
        return may[-1]

    def _replace_leader(self, router: RouterChild) -> None:
        """The leader releases the lead, and its successor has died: start another, which waits for the lock."""
        router.draining, router.leads = True, False
        self._leader_id = self._other_candidate()
        self.start()

    def _end_late_leaver(self, router: RouterChild, *, late: bool) -> None:
        """Kill a router that was sent "leave" and still leads: it hangs, and what it carries is lost already."""
        if late and self._routers.get(router.child.boot_id) is router:
            self._kill(router, "it does not release the lead")

    def _end_late_successor(self, boot_id: str) -> None:
        if self._handover and self._handover.successor == boot_id:
            self._kill(self._routers[boot_id], "it was to replace another, and does not come up")

    def _kill(self, router: RouterChild, why: str) -> None:
        self._log(f"killing the router (pid {router.pid}): {why}")
        self._children.kill(router.child)

    def _finish_handover(self, successor: RouterChild | None) -> None:
        """Answer the requests that wait for the replacement, which has succeeded or failed."""
        handover, self._handover = self._handover, None
        for reply in handover.waiters if handover else ():
            if successor:
                reply({"ok": True, "pid": successor.pid})
            else:
                text = self._not_replaced("did not come up")
                reply({"ok": False, "error": "TurnoutError", "message": text, "hint": f"see {self._home.router_log}"})
        if not successor and not self.leader:
            self.starts.retry(self.start, failed=True)

    def _of_pid(self, pid: int) -> RouterChild | None:
        return next((router for router in self._routers.values() if router.pid == pid), None)

    def _of_channel(self, channel: Channel) -> RouterChild | None:
        return next((router for router in self._routers.values() if router.channel is channel), None)
