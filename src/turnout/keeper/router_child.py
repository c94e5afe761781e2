"""One router process as the keeper sees it, and how the next one is started. Standard library only."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from turnout.errors import TurnoutError
from turnout.keeper.children import Child, Children
from turnout.state.home import Home
from turnout.system.control_channel import Channel
from turnout.system.interpreters import Interpreters, NoInterpreterError
from turnout.system.spawn import SpawnRequest

PREFIX: Final = "router-"  # of a router's boot id
# Pauses before a router is started again: shorter than a daemon's (turnout.core.backoff), for it serves every service.
ROUTER_RESTART_DELAYS_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROUTER_STEADY_AFTER_S: Final = 10.0  # a router that lived this long starts the back-off again


@dataclass(slots=True, eq=False)
class RouterChild:
    """One router process. Its channel belongs to the keeper's loop."""

    child: Child
    started_at: float
    channel: Channel | None = None
    leads: bool = False
    leave_sent: bool = False  # it leaves, whatever becomes of its successor
    leave_acknowledged: bool = False
    lead_released: bool = False
    draining: bool = False  # it carries what it has accepted, and accepts nothing
    keeps: bool = False  # copies of the daemons' listeners, which it does not accept from
    interpreter: str = ""  # that it was started with; empty: by an earlier keeper
    has_attached: bool = False
    attach_checks: int = 0  # how often the keeper began to wait until it attaches
    is_detached: bool = False  # it runs and does not attach, as the log says

    @property
    def pid(self) -> int:
        return self.child.identity.pid


class RouterStarts:
    """Starts routers, with back-off, and with an interpreter that works."""

    def __init__(
        self,
        home: Home,
        children: Children,
        after: Callable[[float, Callable[[], None]], None],
        log: Callable[[str], None],
        interpreters: Interpreters | None = None,
    ) -> None:
        self._home = home
        self._children = children
        self._after = after
        self.log = log
        self.interpreters = interpreters or Interpreters()
        self._failures = 0
        self.trouble = ""  # why no router can be started now

    @property
    def interpreter(self) -> str:
        """The Python with which the next process of turnout is to be started."""
        try:
            return self.interpreters.choose()
        except NoInterpreterError:
            return self.interpreters.newest

    def spawn(self) -> RouterChild:
        """Fork a router with a boot id of its own, and with all the descriptors that the hard limit allows.

        Raises:
            TurnoutError, OSError: it cannot be started; ``trouble`` and the log have the reason.
        """
        boot_id = PREFIX + os.urandom(4).hex()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            interpreter = self.interpreters.choose()
            child = self._children.spawn(
                SpawnRequest(
                    boot_id=boot_id,
                    service="",
                    argv=(interpreter, "-P", "-m", "turnout.router", str(self._home.root)),
                    cwd=str(self._home.root),
                    env=dict(os.environ),
                    log_path=self._home.router_log,
                    record_path=self._home.router_record(boot_id),
                    nofile=(hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20), hard),
                )
            )
        except (TurnoutError, OSError) as error:
            trouble = f"cannot be started: {error}"
            if trouble != self.trouble:  # it is tried again every few seconds
                self.log(f"the router {trouble}")
            self.trouble = trouble
            raise
        self.trouble = ""
        return RouterChild(child, time.monotonic(), interpreter=interpreter)

    def on_exit(self, router: RouterChild) -> None:
        """Prefer another interpreter to one whose router never attached."""
        if not router.has_attached:
            self.interpreters.failed(router.interpreter)

    @staticmethod
    def was_steady(router: RouterChild) -> bool:
        return time.monotonic() - router.started_at > ROUTER_STEADY_AFTER_S

    def retry(self, start: Callable[[], None], *, failed: bool) -> None:
        """Run ``start`` after a pause, none where a steady router ended: clients are queueing."""
        self._failures = self._failures + 1 if failed else 0
        step = min(max(self._failures - 1, 0), len(ROUTER_RESTART_DELAYS_S) - 1)
        self._after(ROUTER_RESTART_DELAYS_S[step], start)
