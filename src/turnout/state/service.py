"""One service opened: its settings, and everything of it that lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from turnout.config.settings import Settings, load_settings
from turnout.core.connection_policy import Policy, networks
from turnout.core.model import Daemon
from turnout.core.proxy_protocol import LOCAL_HEADER, expects_header
from turnout.errors import StateUnwritableError
from turnout.state.builds import Builds
from turnout.state.copied_home import OwnProcesses
from turnout.state.exec_context import Contexts, ExecContext
from turnout.state.home import ServiceHome
from turnout.state.journal import Journal
from turnout.state.registry.file import Foreign, RegistryFile
from turnout.system.probes.http import parse_statuses
from turnout.system.probes.probe import ProbeSpec


class Service(msgspec.Struct, frozen=True):
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
            path,
            lock_timeout_s=lock_timeout_s,
            tell=lambda foreign: _keep_foreign(journal, foreign),
            view=OwnProcesses(home),
        )
        return cls(home, settings, registry, Builds(home.builds), journal)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def contexts(self) -> Contexts:
        """The execution contexts that its builds were deployed with."""
        return Contexts(self.home.contexts)

    @property
    def probe_spec(self) -> ProbeSpec:
        return probe_spec(self.settings)

    def spec_of(self, daemon: Daemon) -> ProbeSpec:
        """How a daemon is probed that may have been started under earlier settings.

        The program of an ``exec`` probe gets the environment that the daemon's build was deployed with.
        """
        spec = probe_spec(self.settings, daemon)
        if spec.kind == "exec" and daemon.build:
            return msgspec.structs.replace(spec, environ=self.environ_of(daemon.build))
        return spec

    def environ_of(self, build_id: str = "") -> Mapping[str, str] | None:
        """The environment that a build was deployed with, or the newest deploy had; None: there is no record.

        Of a build whose first rollout has no result yet, it is that of this rollout.
        """
        context = self.context_of(build_id) or (self.context_of(build_id, result="") if build_id else None)
        return context.env if context else None

    def context_of(self, build_id: str = "", *, result: str = "active") -> ExecContext | None:
        """The execution context that a build was deployed with, or the newest deploy had; None: there is no record.

        Of several rollouts the newest counts whose record can be read.
        """
        try:
            rollouts = self.builds.contexts_of(build_id, result=result)
        except StateUnwritableError:  # a damaged list of builds: the verb that needs it says so
            return None
        contexts = (
            self.contexts.load(context_id) for context_id in dict.fromkeys(rollout.context for rollout in rollouts)
        )
        return next((context for context in contexts if context), None)


def remembered(home: ServiceHome) -> Settings | None:
    """The settings that an earlier verb left; None where the service has never been."""
    try:
        return load_settings(home.read_settings()[0])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateUnwritableError(f"cannot read {home.settings}: {error.strerror}") from error


def written(home: ServiceHome) -> bytes | None:
    """The content of settings.json, whatever it says; None where it cannot be read."""
    try:
        return home.read_settings()[0]
    except OSError:
        return None


def probe_spec(settings: Settings, daemon: Daemon | None = None) -> ProbeSpec:
    """How the settings want daemons probed: a daemon to be started, or ``daemon`` with the preamble that it expects."""
    health = settings.health
    return ProbeSpec(
        kind=health.probe,
        preamble=LOCAL_HEADER if expects_header(daemon, settings.proxy_protocol) else b"",
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
        hold_timeout_s=settings.hold_timeout_s,
        connections=settings.connections,
        idle_timeout_s=settings.idle_timeout_s,
        user_timeout_s=settings.user_timeout_s,
        allow=networks(settings.allow),
    )


def _keep_foreign(journal: Journal, foreign: Foreign) -> None:
    """Write to the journal what became of a write without the lock."""
    block = foreign.snapshot.deployment
    place = {"generation": block.generation, "revision": block.revision}
    for repair in foreign.repairs:
        journal.write("repair", **place, what=repair)
    if foreign.followed:
        journal.write("followed", **place, active=block.active_boot_id, state=block.state.value)
