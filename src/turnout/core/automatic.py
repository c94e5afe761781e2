"""Whether a build is deployed without a person's word; pure."""

from __future__ import annotations

from dataclasses import dataclass

from turnout.core.versions import Order, compare


@dataclass(frozen=True, slots=True)
class Wish:
    """A build that is wanted by a changed configuration, or by a client program that asks for it.

    Args:
        build: its id.
        version: its version, may be empty.
        configured: it stands in the configuration that the service runs on. Else some client happens to ask.
        quarantined: why it is in quarantine; None: it is not.
    """

    build: str
    version: str
    configured: bool
    quarantined: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Deploy it or not, and why, for people."""

    deploy: bool
    reason: str


def judge(wish: Wish, *, build: str, version: str, considered: str) -> Verdict:
    """Never backwards, never what was rolled back, never the same wish twice, and no turns between clients.

    Args:
        wish: what is wanted.
        build: the id of what is active.
        version: its version.
        considered: the build that the configuration named when it was last looked at. What was considered once stays
            so: whatever else is active now was chosen later, by a person.
    """
    if wish.build == build:
        return Verdict(deploy=False, reason="it runs already")
    if wish.quarantined is not None:
        return Verdict(deploy=False, reason=f"it was rolled back: {wish.quarantined}")
    order = compare(wish.version, version)
    if order is Order.OLDER:
        return Verdict(deploy=False, reason=f"{wish.version} is older than {version}, and nothing goes back by itself")
    if wish.configured:
        if wish.build == considered:
            return Verdict(deploy=False, reason="the configuration has not changed since it was last considered")
        return Verdict(deploy=True, reason="the configuration has changed")
    if order is Order.NEWER:
        return Verdict(deploy=True, reason=f"{wish.version} is newer than {version or 'a daemon without a version'}")
    if order is Order.SAME:
        return Verdict(deploy=False, reason=f"{version or 'what is active'} is of the same version")
    return Verdict(
        deploy=False,
        reason=f"which of {wish.version or 'no version'} and {version or 'no version'} is newer cannot be said",
    )
