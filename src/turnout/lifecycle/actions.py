"""The actions of verbs: what a plan has a verb carry out."""

from __future__ import annotations

import msgspec

from turnout.core.model import Cause, Daemon, Desired, DrainCause
from turnout.lifecycle.launch_context import Launch
from turnout.state.builds import Build


class Leave(msgspec.Struct, frozen=True):
    """Change no daemon. ``text`` is the verb's answer; ``desired`` is recorded where it is given."""

    text: str
    desired: Desired | None = None


class StartBuild(msgspec.Struct, frozen=True):
    """A rollout of a build, up to its switch."""

    build: Build
    cause: Cause
    launch: Launch
    supersede: bool = False  # end the window that is under way
    expected_active: str | None = None  # the boot id of the daemon that must still be active
    hastened: str = ""  # the boot id of the daemon that is drained at once after the switch
    pardon: bool = False  # the build leaves its quarantine after the switch
    rolled_back: Daemon | None = None  # the daemon that an operator goes back from
    ends_window: int | None = None  # the generation whose window this rollback ends


class AttachDaemon(msgspec.Struct, frozen=True):
    """A rollout to a daemon that something else started and owns."""

    daemon: Daemon


class SwitchBack(msgspec.Struct, frozen=True):
    """Inside the window of ``generation``: back to the warm daemon by one write."""

    generation: int
    old: Daemon
    active: Daemon | None


class StopDaemon(msgspec.Struct, frozen=True):
    """``stop``: no daemon is active from here on. A daemon that was attached runs on."""

    active: Daemon


class DetachDaemon(msgspec.Struct, frozen=True):
    """``detach``: no daemon is active from here on, and this one runs on."""

    active: Daemon


class SetDesired(msgspec.Struct, frozen=True):
    """``pause`` and ``resume``."""

    desired: Desired


class Hasten(msgspec.Struct, frozen=True):
    """Wait less for these daemons, which drain."""

    draining: tuple[Daemon, ...]
    cause: DrainCause


class EndService(msgspec.Struct, frozen=True):
    """``down``. ``runs``: there is something to end; ``beside``: the registry file is another service's."""

    runs: bool = True
    beside: bool = False


Action = Leave | StartBuild | AttachDaemon | SwitchBack | StopDaemon | DetachDaemon | SetDesired | Hasten | EndService


class Plan(msgspec.Struct, frozen=True):
    """``steps`` for people, a line each, and ``action`` for the verb."""

    action: Action
    steps: tuple[str, ...] = ()
