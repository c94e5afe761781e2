"""Marks the daemons in a copied home's registry as processes of the original (:mod:`turnout.system.home_identity`).

They are read as processes that have ended, as those from before a reboot are. So no verb counts them as running, the
router sends no client to them and signals none of them, and what is started next takes their place in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from turnout.core.model import Daemon, Snapshot
from turnout.state.home import ServiceHome
from turnout.system.process import ANOTHER_HOME, of_another_home
from turnout.system.spawn_record import names_foreign


class OwnProcesses:
    """What a registry says, with the daemons of another home marked as such. Remembers what it found of each boot id.

    Daemons that something else started belong to no home and are left as they are.
    """

    def __init__(self, home: ServiceHome) -> None:
        self._home = home
        self._foreign: dict[tuple[str, int], bool | None] = {}

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The same snapshot where nothing is another home's."""
        marked = {
            boot_id: replace(daemon, identity=replace(daemon.identity, machine_boot_id=ANOTHER_HOME))
            for boot_id, daemon in snapshot.daemons.items()
            if self._is_foreign(daemon)
        }
        if not marked:
            return snapshot
        daemons: Mapping[str, Daemon] = MappingProxyType({**snapshot.daemons, **marked})
        block = snapshot.deployment
        if block.in_flight and block.candidate_boot_id in marked:  # the verb that carries it is another home's, too
            block = replace(block, owner=replace(block.owner, machine_boot_id=ANOTHER_HOME))
        return replace(snapshot, daemons=daemons, deployment=block)

    def _is_foreign(self, daemon: Daemon) -> bool:
        if not daemon.owned or daemon.pid <= 0 or of_another_home(daemon.identity):
            return False
        key = daemon.boot_id, daemon.identity.start_ticks
        if self._foreign.get(key) is None:  # without a record (yet) the registry's word stands
            self._foreign[key] = names_foreign(self._home.record(daemon.boot_id))
        return bool(self._foreign[key])
