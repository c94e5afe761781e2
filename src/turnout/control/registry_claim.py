"""Claims a shared registry file for one service, and refuses the second service.

A registry file that the configuration names may lie anywhere, and two services, or two state directories, may name the
same one. Each would then route its clients to the daemons of the other. ``FILE.claim`` beside the registry names state
directory and service; it counts as long as that service's own settings name the file.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from turnout.control.keeper_client import KeeperClient
from turnout.errors import NotRunningError, StateUnwritableError, TimedOutError, TurnoutError, UsageError
from turnout.state.home import Home, ServiceHome
from turnout.state.service import remembered
from turnout.system.files import Files, unwritable, write_durably
from turnout.system.flock import hold
from turnout.system.process import is_alive
from turnout.system.spawn_record import read_records

LIMIT_BYTES: Final = 65536
LOCK_TIMEOUT_S: Final = 8.0
READABLE: Final = 0o644  # other users are to see that the file is taken, and by whom


class Claim(msgspec.Struct, frozen=True):
    """The service that has a registry file: the real path of its state directory, and its name."""

    home: str
    service: str

    @property
    def settings(self) -> ServiceHome:
        return Home(Path(self.home)).service(self.service)


class RegistryHolder(NamedTuple):
    """The other service that has a registry file: its name, how messages name it, and the command that ends it."""

    service: str
    whose: str
    end: str


def claim_file(registry: Path) -> Path:
    """Where the claim on a registry file is written; a link is followed."""
    target = Path(os.path.realpath(registry))
    return target.with_name(f"{target.name}.claim")


@contextmanager
def claimed(home: Home, service: ServiceHome, registry: Path) -> Generator[None]:
    """Claim a registry file for a service; inside the with block no other verb claims it.

    The block writes the service's settings: a claim counts only together with them.

    Raises:
        UsageError: another service, of this home or another, has this file.
        LockTimeoutError, StateUnwritableError: the registry's lock, or the claim, cannot be had.
    """
    if _is_own(service, registry):
        yield
        return
    target = Path(os.path.realpath(registry))
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("make the directory of", registry, error) from error
    with hold(target.with_name(f"{target.name}.lock"), timeout_s=LOCK_TIMEOUT_S, guarded=f"the registry {registry}"):
        check_claim(home, service, registry)
        mine = Claim(os.path.realpath(home.root), service.name)
        if _read(registry) != mine:
            data = json.dumps(msgspec.to_builtins(mine)).encode() + b"\n"
            with suppress(StateUnwritableError):  # on a full disk the service comes first; the next `up` claims it
                write_durably(Files(), claim_file(registry), data, mode=READABLE, follows_links=False)
        yield


def check_claim(home: Home, service: ServiceHome, registry: Path) -> None:
    """Refuse a registry file that another service has. Writes nothing.

    Raises:
        UsageError: it has.
    """
    holder = other_holder(home, service, registry)
    if holder is None:
        return
    raise UsageError(
        f"{registry} is the registry of {holder.whose}: {service.name} would route its clients to the daemons of"
        f" {holder.service}; nothing was changed",
        hint=f"give {service.name} another registry file, or end that service first: {holder.end}",
    )


def other_holder(home: Home, service: ServiceHome, registry: Path) -> RegistryHolder | None:
    """The other service that has the registry file; None: this one has it, or may claim it. Writes nothing."""
    if _is_own(service, registry):
        return None
    claim = _claimant(home, service, registry) or _neighbour(home, service, registry) or _default_of(service, registry)
    if claim is None:
        return None
    end = f"turnout down --service {claim.service}"
    whose = f"service {claim.service}"
    if claim.home != os.path.realpath(home.root):
        whose = f"{whose} of the state directory {claim.home}"
        end = f"TURNOUT_HOME={shlex.quote(claim.home)} {end}"
        if claim_file(registry).exists():
            end = f"{end}; or, if that directory is not in use any more: rm -- {shlex.quote(str(claim_file(registry)))}"
    return RegistryHolder(claim.service, whose, end)


def is_others(home: Home, service: ServiceHome, registry: Path) -> bool:
    """Whether another service has the registry file: no verb of this one may write what it says."""
    return other_holder(home, service, registry) is not None


def release_claim(home: Home, service: ServiceHome, registry: Path) -> None:
    """Remove the claim of a service that is down. If that fails, the next `up` of another service names it."""
    if _is_own(service, registry):
        return
    if _read(registry) == Claim(os.path.realpath(home.root), service.name):
        with suppress(OSError):
            claim_file(registry).unlink(missing_ok=True)


def _is_own(service: ServiceHome, registry: Path) -> bool:
    return os.path.realpath(registry) == os.path.realpath(service.registry)


def _read(registry: Path) -> Claim | None:
    with suppress(OSError, ValueError, RecursionError):
        data, _ = Files().read(claim_file(registry), LIMIT_BYTES)
        return msgspec.convert(json.loads(data), Claim)
    return None


def _claimant(home: Home, service: ServiceHome, registry: Path) -> Claim | None:
    """The other service that the claim names, if its settings still name the file."""
    claim = _read(registry)
    if claim is None or claim == Claim(os.path.realpath(home.root), service.name):
        return None
    with suppress(UsageError):  # a name that no service can have
        if _names(claim.settings, registry) is not False:
            return claim
    return None


def _neighbour(home: Home, service: ServiceHome, registry: Path) -> Claim | None:
    """A service of this home that runs with the file and claims nothing: turnout 0.1 brought it up."""
    others = [name for name in home.service_names() if name != service.name]
    for name in others:
        if _names(home.service(name), registry) and _runs(home, name):
            return Claim(os.path.realpath(home.root), name)
    return None


def _default_of(service: ServiceHome, registry: Path) -> Claim | None:
    """The service in whose own directory the file lies: it needs no claim."""
    target = Path(os.path.realpath(registry))
    theirs = ServiceHome(target.parent.name, target.parent)
    if target.name != service.registry.name or target.parent.parent.name != "services":
        return None
    return Claim(str(target.parents[2]), theirs.name) if _names(theirs, registry) else None


def _names(service: ServiceHome, registry: Path) -> bool | None:
    """Whether a service's settings say that this is its registry file; None: they exist and cannot be read."""
    try:
        settings = remembered(service)
    except TurnoutError:  # another user's, or another version's
        return None
    if settings is None:
        return False
    named = Path(settings.registry) if settings.registry else service.registry
    return os.path.realpath(named) == os.path.realpath(registry)


def _runs(home: Home, name: str) -> bool:
    """Whether the keeper has the service's address, or one of its daemons lives."""
    with suppress(NotRunningError, TimedOutError, OSError), KeeperClient.connect(home) as keeper:
        if name in keeper.hello().services:
            return True
    return any(is_alive(record.identity) for record in read_records(home.service(name).records).values())
