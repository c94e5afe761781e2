"""The group of a keeper that died, for its successor: from a router that outlived it, or from the daemons alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from socket import socket
from typing import Final

from turnout.errors import ProtocolError
from turnout.reuseport.group import Group, GroupState, Place, inode_of
from turnout.reuseport.program import attach
from turnout.reuseport.recovery import connect_to_index, listener_of, taken_by
from turnout.system.files import undone_on_error
from turnout.system.net.listener import bind
from turnout.system.net.sockets import listening_exactly_at
from turnout.system.spawn_record import SpawnRecord

TAKEN_S: Final = 1.0  # for a daemon to accept
ALL_TAKEN_S: Final = 3.0  # for all of them: the keeper answers no verb meanwhile
TAKEN_LEAST_S: Final = 0.02  # for each when that is over: most accept at once


def from_router(sockets: Sequence[socket], state: GroupState, records: Mapping[str, SpawnRecord]) -> Group:
    """The group as a router knows it.

    Args:
        sockets: the listeners that it brings; owned by the group from now on.
        state: what the router had of the group.
        records: of the service's daemons, by boot.

    Raises:
        ProtocolError: none of the listeners is the router's own, or the kernel has fewer of them than that; they stay
            the caller's.
    """
    brought = {inode_of(sock): sock for sock in sockets}
    version, home = state.version + 1, state.home
    if state.order:
        places = [Place(inode, brought.pop(inode, None), boot_id, version) for inode, boot_id in state.order]
        return Group(places, home, version, brought)
    host, port = sockets[0].getsockname()[:2]
    here = {found.inode for found in listening_exactly_at(host, port)}
    places = [Place(0) for _ in here]
    if home >= len(places):
        raise ProtocolError(f"a group of {len(places)} listeners has no index {home}")
    places[home] = Place(inode_of(sockets[0]), sockets[0], used=version)
    for record in records.values():
        if record.listener_inode in here and record.ended is None and record.slot < len(places):
            listener = listener_of(record, [record.listener_inode])
            places[record.slot] = Place(record.listener_inode, listener, record.boot_id, version)
    placed = {place.inode for place in places}
    return Group(places, home, version, {inode: brought.get(inode) for inode in here - placed})


def from_daemons(address: tuple[str, int], daemons: Mapping[str, SpawnRecord]) -> Group:
    """Have a router's listener again where only daemons are left: their indexes may be others, and are found out.

    Args:
        address: of the group.
        daemons: those that may be in it, by boot.

    Raises:
        OSError: it cannot be had.
        NotBegunError: there are too many listeners.
    """
    listener = bind(*address, shared=True)
    with undone_on_error(listener.close):
        # a new listener is the last; to try it by accepting would take clients that the old program sends here
        here = {found.inode for found in listening_exactly_at(*address)} - {inode_of(listener)}
        attach(listener, [len(here)])
        places = [*(Place(0) for _ in here), Place(inode_of(listener), listener)]
        group = Group(places, len(here), unplaced=dict.fromkeys(here))
        group.look()  # others come behind it, so it stays where it is
        find_daemons(group, daemons)
        group.look()
    return group


def find_daemons(group: Group, daemons: Mapping[str, SpawnRecord]) -> None:
    """The indexes of daemons that run, by who accepts what names one; who accepts nothing is not found."""
    deadline = time.monotonic() + ALL_TAKEN_S
    listener, selected = group.router_listeners[0], group.home
    for index in [index for index, place in enumerate(group.places[:selected]) if not place.inode]:
        with contextlib.suppress(OSError), connect_to_index(listener, selected, index) as probe:
            within_s = max(TAKEN_LEAST_S, min(TAKEN_S, deadline - time.monotonic()))
            boot_id = taken_by(probe, group.address[1], daemons, within_s=within_s)
            if boot_id:
                group.identify(index, boot_id, listener_of(daemons[boot_id], group.unplaced))
    attach(listener, [selected])
