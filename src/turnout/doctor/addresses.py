"""The fixed addresses: free, ours, or whose."""

from __future__ import annotations

from collections.abc import Iterator

from turnout.config import Address
from turnout.doctor.finding import Found, bad, ok
from turnout.doctor.scene import Scene, Subject
from turnout.system.sockets import Holder, who_listens


def check_addresses(scene: Scene) -> Iterator[Found]:
    """Each address that clients come to."""
    for subject in scene.subjects:
        for address in subject.settings.listen if subject.settings else ():
            yield _look(scene, subject, address)


def _look(scene: Scene, subject: Subject, address: Address) -> Found:
    holder = who_listens(address.host, address.port)
    served = scene.keeper is not None and subject.name in scene.keeper.services
    if holder is None:
        if served:
            what = f"the keeper says that it has {address}, and nothing listens there"
            return bad("address", what, f"turnout up{subject.flag}", service=subject.name)
        return ok("address", f"{address} is free", service=subject.name)
    if holder.pid in _ours(scene, subject) or (served and holder.listening):
        return ok("address", f"{address} is ours: pid {holder.pid} ({holder.command})", service=subject.name)
    return _taken(subject, address, holder)


def _ours(scene: Scene, subject: Subject) -> set[int]:
    pids = {record.identity.pid for record in scene.router_processes}
    if scene.keeper:
        pids.add(scene.keeper.pid)
    if subject.snapshot:  # a daemon may listen on the fixed address itself
        pids |= {daemon.pid for daemon in subject.snapshot.daemons.values() if daemon.owned}
    return pids - {0}


def _taken(subject: Subject, address: Address, holder: Holder) -> Found:
    who = f"pid {holder.pid} ({holder.command})" if holder.pid else holder.command
    end = f"kill {holder.pid}" if holder.pid else f"sudo ss -tanp 'sport = :{address.port}'"
    if holder.listening:
        what = f"{address} is in use by {who}, which is not of this home"
        return bad("address", what, end, service=subject.name)
    what = (
        f"{address} is the source port of a connection of {who}: it does not listen, and keeps the address all the same"
    )
    return bad("address", what, end, service=subject.name)
