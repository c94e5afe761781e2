"""Where this home's router serves its metrics: one file, written by verbs and followed by the router.

It belongs to the home and not to a service, since one router carries all services. A file that does not name it leaves
it as it is: a second configuration file in the same home does not turn off what the first one turned on.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
from typing import Final

from turnout.config.settings import Address, Scrape, ServiceRequest, dump_settings, load_scrape
from turnout.core.addresses import overlap
from turnout.errors import AddressInUseError, ConfigError, StateUnwritableError, TurnoutError, UsageError
from turnout.state.home import Home
from turnout.system.files import Files, write_durably
from turnout.system.net.sockets import who_listens

_MAX_BYTES: Final = 65536


def read_scrape(home: Home) -> Scrape:
    """What the home says; nowhere, if it says nothing.

    Raises:
        ConfigError: the file was written by another version, or is damaged.
        StateUnwritableError: it cannot be read.
    """
    try:
        return load_scrape(Files().read(home.metrics, _MAX_BYTES)[0])
    except (FileNotFoundError, NotADirectoryError):
        return Scrape()
    except OSError as error:
        raise StateUnwritableError(f"cannot read {home.metrics}: {error.strerror}") from error


def to_write(home: Home, wanted: ServiceRequest) -> Scrape | None:
    """What the home is to say from now on, where that is something else; None: it stays as it is.

    Args:
        home: the state directory.
        wanted: the request. A file that does not name metrics takes back what the same file named, no more.

    Raises:
        ConfigError, StateUnwritableError: as :func:`read_scrape`, unless an address was named.
    """
    scrape = wanted.scrape
    if scrape is None:
        return None
    if scrape.listen is None and not home.metrics.exists():
        return None
    try:
        before = read_scrape(home)
    except TurnoutError:
        if scrape.listen is None and scrape.source:
            raise
        return scrape
    if scrape == before or (scrape.listen is None and scrape.source and scrape.source != before.source):
        return None
    return scrape


def check_scrape(wanted: ServiceRequest, scrape: Scrape, *, serves: str | None) -> None:
    """Find out whether metrics can be served there, before anything is started or changed.

    Args:
        wanted: what a verb was asked for.
        scrape: what the home is to say.
        serves: where the running router serves its metrics; None: it does not, or there is none.

    Raises:
        ConfigError: the extra is not installed.
        UsageError: it is an address of the service itself.
        AddressInUseError: another process has the address.
        TurnoutError: it cannot be bound.
    """
    address = scrape.listen
    if address is None:
        return
    require()
    listen = [(listen.host, listen.port) for listen in wanted.settings.listen]
    if overlap([*listen, (address.host, address.port)]):
        problem = f"metrics are to be served on {address}, where clients of {wanted.settings.name} come"
        raise UsageError(problem, hint="name another with --metrics")
    if str(address) != serves:
        bound(address, backlog=1).close()  # to find a conflict before anything is started


def write_scrape(home: Home, scrape: Scrape) -> None:
    """Say it; the router follows within a second. Raises StateUnwritableError: permissions, a full disk."""
    write_durably(Files(), home.metrics, dump_settings(scrape), follows_links=False)


def bind_problem(address: Address, number: int) -> TurnoutError:
    """Why the router cannot have an address for its metrics, with the process that has it where that is so."""
    hint = "name another with --metrics, or under [metrics] in turnout.toml"
    if number != errno.EADDRINUSE:
        return TurnoutError(f"cannot serve metrics on {address}: {os.strerror(number)}", hint=hint)
    holder = who_listens(address.host, address.port)
    by = f" by pid {holder.pid} ({holder.command})" if holder and holder.pid else ""
    return AddressInUseError(f"the metrics address {address} is in use{by}", hint=hint)


def bound(address: Address, *, backlog: int) -> socket.socket:
    """A listening socket there. Raises AddressInUseError, TurnoutError: as :func:`bind_problem`."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=backlog)
    except OSError as error:
        raise bind_problem(address, error.errno or 0) from error


EXTRA: Final = "pip install 'turnout[metrics]'"


def require() -> None:
    """Find out whether metrics can be served at all, without loading what serves them.

    Raises ConfigError: the extra is not installed.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics need the package prometheus-client, which is not installed here", hint=EXTRA)
