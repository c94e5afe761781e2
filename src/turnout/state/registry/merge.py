"""Two registries that grew apart become one again: turnout's own and that of a writer without the lock.

The deployment block, and the identity of the daemons that it names, belong to the writer that raised its revision.
A daemon that drains keeps its entry until turnout itself removes it, since `drain.grace` is promised to its clients.
Everything else belongs to the last writer. With the common ancestor at hand, the side that changed a field wins it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from turnout.core.model import Daemon, Deployment, Snapshot, Workspace

# What other programs keep up to date in a daemon's entry; the rest says which process it is and how it drains.
_SHARED_FIELDS: Final = frozenset({"last_seen_ts", "http_host", "http_port", "http_pid", "extra"})
_ABSENT: Final = Deployment()
Entry = TypeVar("Entry", Daemon, Workspace)


def merge(ours: Snapshot, theirs: Snapshot, *, base: Snapshot | None = None) -> tuple[Snapshot, tuple[str, ...]]:
    """Put ``theirs``, read from the file, together with ``ours``, which turnout wrote or is about to write.

    Args:
        ours: the side that knows the deployment: the last good copy, or the outcome of an event.
        theirs: what stands in the file.
        base: what both started from, where that is known.

    Returns:
        The whole, and a line for each thing of the block that had to be put back; none where nothing was.
    """
    notes: list[str] = []
    is_ours = not _prevails(theirs, ours)
    block = _our_block(ours.deployment, theirs.deployment, notes) if is_ours else theirs.deployment
    named = block.named
    draining = frozenset(boot_id for boot_id, daemon in ours.daemons.items() if daemon.draining) - named
    daemons = _entries(
        ours.daemons,
        theirs.daemons,
        base.daemons if base else None,
        named | draining,
        protected=named | draining if is_ours else draining,
    )
    notes += [
        f"daemon {boot_id}, which {'the deployment names' if boot_id in named else 'drains'}, was put back"
        for boot_id in daemons
        if boot_id in named | draining and boot_id not in theirs.daemons and (base is None or boot_id in base.daemons)
    ]
    notes += [
        f"daemon {boot_id} drains, which was put back"
        for boot_id in draining
        if boot_id in theirs.daemons and not theirs.daemons[boot_id].draining and base is None
    ]
    workspaces = _entries(
        ours.workspaces, theirs.workspaces, base.workspaces if base else None, frozenset(), protected=frozenset()
    )
    extra = _pick(ours.extra, theirs.extra, base, "extra")
    return Snapshot(daemons, workspaces, block, theirs.version, extra), tuple(notes)


def _prevails(theirs: Snapshot, ours: Snapshot) -> bool:
    """Whether the file's block is newer, and can be followed."""
    block = theirs.deployment
    return (
        block.revision > ours.deployment.revision
        and block.generation >= ours.deployment.generation
        and (not block.active_boot_id or block.active_boot_id in theirs.daemons or block.active_boot_id in ours.daemons)
    )


def _our_block(ours: Deployment, theirs: Deployment, notes: list[str]) -> Deployment:
    """The block of ``ours`` with the unknown keys of the file's, if the file has one."""
    if ours == theirs:
        return ours
    if theirs == _ABSENT:
        notes.append(f"the deployment block (revision {ours.revision}) was put back: it was missing")
        return ours
    if replace(theirs, extra=ours.extra) != ours:
        notes.append(
            f"the deployment block (revision {ours.revision}) was put back: revision {theirs.revision} stood there"
        )
    return replace(ours, extra=theirs.extra)


def _entries(
    ours: Mapping[str, Entry],
    theirs: Mapping[str, Entry],
    base: Mapping[str, Entry] | None,
    named: frozenset[str],
    *,
    protected: frozenset[str],
) -> dict[str, Entry]:
    merged: dict[str, Entry] = {}
    for key, their in theirs.items():
        our, was = ours.get(key), base.get(key) if base is not None else None
        if our is not None:
            merged[key] = _entry(our, their, was, protected=key in protected)
        elif was is None or was != their or key in named:
            merged[key] = their  # else we removed it, and they left it as it was
    for key, our in ours.items():
        added = base is not None and key not in base
        if key not in theirs and (added or key in named):
            merged[key] = our  # else they removed it
    return merged


def _entry(our: Entry, their: Entry, was: Entry | None, *, protected: bool) -> Entry:
    if our is their or our == their:  # entries of which nothing changed are the same object (EntryCache)
        return their
    changes: dict[str, Any] = {}
    for spec in fields(our):
        name = spec.name
        if protected and name not in _SHARED_FIELDS:
            changes[name] = getattr(our, name)
        else:
            changes[name] = _pick(getattr(our, name), getattr(their, name), was, name)
    return replace(their, **changes)


def _pick(our: Any, their: Any, was: Snapshot | Daemon | Workspace | None, name: str) -> Any:  # noqa: ANN401  # any field
    """Theirs, unless they left it as it was."""
    return our if was is not None and getattr(was, name) == their else their
