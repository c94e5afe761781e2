"""A verb as it was typed, or as the router or the keeper asks for it."""

from __future__ import annotations

import msgspec

from turnout.config.settings import Address


class VerbRequest(msgspec.Struct, frozen=True):
    """A verb with its options; the options that a verb does not have stay as they are."""

    verb: str  # its name on the command line; a verb that waits for this one names it so
    force: bool = False  # deploy also a build that is quarantined
    supersede: bool = False  # roll out also while the last rollout is observed
    now: bool = False  # stop draining daemons at once
    generation: int | None = None  # the rollout that `rollback` goes back to
    address: Address | None = None  # where the daemon listens that `attach` names
    if_generation: int | None = None  # the generation that the deployment must stand at
    # no person asks: a stopped service stays stopped, and `up` deploys by the rules of core.auto_deploy
    automatic: bool = False
    from_router: bool = False  # the router asks, or the keeper: besides, no keeper is started
    take_over: bool = False  # the verb's file, or command, defines the service from now on
    recorded: bool = False  # start with the environment, limits and umask of the last deploy, also for a typed verb
    unwell: str = ""  # the active daemon that is to be replaced, should it still fail its probe
