"""Decides whether a build is deployed without an order of the operator; pure."""

from __future__ import annotations

import msgspec

from turnout.core.versions import VersionOrder, compare


class BuildRequest(msgspec.Struct, frozen=True):
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


class AutoDeployDecision(msgspec.Struct, frozen=True):
    """Deploy it or not, and why, for people."""

    deploy: bool
    reason: str


def decide(request: BuildRequest, *, build: str, version: str, considered: str) -> AutoDeployDecision:
    """Never backwards, never what was rolled back, never the same request twice, and no turns between clients.

    Args:
        request: what is wanted.
        build: the id of what is active.
        version: its version.
        considered: the build that the configuration named when it was last looked at. What was considered once stays
            so: whatever else is active now was chosen later, by a person.
    """
    if request.build == build:
        return AutoDeployDecision(deploy=False, reason="it runs already")
    if request.quarantined is not None:
        return AutoDeployDecision(deploy=False, reason=f"it was rolled back: {request.quarantined}")
    order = compare(request.version, version)
    if order is VersionOrder.OLDER:
        reason = f"{request.version} is older than {version}, and nothing goes back by itself"
        return AutoDeployDecision(deploy=False, reason=reason)
    if request.configured:
        changed = request.build != considered
        reason = "has changed" if changed else "has not changed since it was last considered"
        return AutoDeployDecision(deploy=changed, reason=f"the configuration {reason}")
    reason = {
        VersionOrder.NEWER: f"{request.version} is newer than {version or 'a daemon without a version'}",
        VersionOrder.SAME: f"{version or 'what is active'} is of the same version",
    }.get(order, f"which of {request.version or 'no version'} and {version or 'no version'} is newer cannot be said")
    return AutoDeployDecision(deploy=order is VersionOrder.NEWER, reason=reason)
