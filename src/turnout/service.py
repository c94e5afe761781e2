"""One service opened: its settings, and everything of it that lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from turnout.config import Settings, load_settings
from turnout.core.model import Daemon
from turnout.core.proxy_protocol import LOCAL_HEADER
from turnout.errors import StateUnwritableError
from turnout.planes.policy import Policy, networks
from turnout.system.builds import Builds
from turnout.system.home import ServiceHome
from turnout.system.journal import Journal
from turnout.system.probe import ProbeSpec
from turnout.system.probe_http import parse_statuses
from turnout.system.registry import Foreign, RegistryFile


@dataclass(frozen=True, slots=True)
class Service:
    """One service opened: its settings and everything of it that lies on disk."""

    home: ServiceHome
    settings: Settings
    registry: RegistryFile
    builds: Builds
    journal: Journal

    @classmethod
    def open(cls, home: ServiceHome, settings: Settings, *, lock_timeout_s: float = 8.0) -> Service:
        """Nothing is read yet. ``lock_timeout_s``: seconds that a change of the registry waits for another."""
        path = Path(settings.registry) if settings.registry else home.registry
        journal = Journal(home.journal)
        registry = RegistryFile(
            path, lock_timeout_s=lock_timeout_s, tell=lambda foreign: _keep_foreign(journal, foreign)
        )
        return cls(home, settings, registry, Builds(home.builds), journal)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def probe_spec(self) -> ProbeSpec:
        return probe_spec(self.settings)

    def spec_of(self, daemon: Daemon) -> ProbeSpec:
        """How a daemon is probed that may have been started under earlier settings."""
        return probe_spec(self.settings, daemon)


def remembered(home: ServiceHome) -> Settings | None:
    """The settings that an earlier verb left; None where the service has never been."""
    try:
        return load_settings(home.settings.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateUnwritableError(f"cannot read {home.settings}: {error.strerror}") from error


def probe_spec(settings: Settings, daemon: Daemon | None = None) -> ProbeSpec:
    """How the settings want daemons probed: one that starts now, or ``daemon``, which may expect another preamble."""
    health = settings.health
    expects = (daemon.proxy_protocol if daemon else "") or settings.proxy_protocol
    return ProbeSpec(
        kind=health.probe,
        preamble=LOCAL_HEADER if expects == "v2" else b"",
        send=health.send.encode(),
        match=health.match.encode(),
        verify_owner=health.verify_owner,
        path=health.path,
        host=health.host,
        statuses=parse_statuses(health.status),
        command=health.command,
        cwd=health.cwd,
    )


def policy(settings: Settings) -> Policy:
    """What the plane is to hold its connections to."""
    return Policy(
        hold_max=settings.hold_max,
        connections=settings.connections,
        idle_timeout_s=settings.idle_timeout_s,
        user_timeout_s=settings.user_timeout_s,
        allow=networks(settings.allow),
    )


def _keep_foreign(journal: Journal, foreign: Foreign) -> None:
    """What a writer without the lock did is decided like anything else, and so it is in the journal."""
    block = foreign.snapshot.deployment
    for what in foreign.repairs:
        journal.write("repair", generation=block.generation, revision=block.revision, what=what)
    if foreign.followed:
        journal.write(
            "followed",
            generation=block.generation,
            revision=block.revision,
            active=block.active_boot_id,
            state=block.state.value,
        )
