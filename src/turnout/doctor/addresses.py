"""The fixed addresses, and that of the metrics: free, ours, or whose."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from turnout.config.settings import Address, Scrape
from turnout.control.keeper_client import other_home
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, bad, ok, quoted
from turnout.errors import ConfigError, TurnoutError
from turnout.state.keeper_lock import keeper_pid
from turnout.state.metrics_address import EXTRA, bind_problem, read_scrape, require
from turnout.system.net.sockets import PortHolder, who_listens
from turnout.system.process import of_another_home

METRICS_OFF = "metrics are not served: turnout up --metrics 127.0.0.1:9477, or [metrics] in turnout.toml, turns them on"


def check_addresses(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Each address that clients connect to."""
    for address in service.settings.listen if service.settings else ():
        holder = who_listens(address.host, address.port)
        served = context.keeper is not None and service.name in context.keeper.services
        if holder is None and served:
            evidence = f"the keeper says that it has {address}, and nothing listens there"
            yield bad(evidence, f"turnout up{service.flag}")
        elif holder is None:
            yield ok(f"{address} is free")
        elif holder.pid in _own_pids(context, service) or (served and holder.listening):
            yield ok(f"{address} is ours: pid {holder.pid} ({holder.command})")
        else:
            yield _taken(address, holder)


def _own_pids(context: Context, service: ServiceContext) -> set[int]:
    pids = {record.identity.pid for record in context.router_processes}
    if context.keeper:
        pids.add(context.keeper.pid)
    pids.add(keeper_pid(context.home, proc=context.proc) or 0)  # also of a keeper that does not answer
    if service.snapshot:  # a daemon may listen on the fixed address itself
        daemons = service.snapshot.daemons.values()
        pids |= {daemon.pid for daemon in daemons if daemon.owned and not of_another_home(daemon.identity)}
    return pids - {0}


def _taken(address: Address, holder: PortHolder) -> CheckResult:
    other = other_home(holder.pid)
    if other:  # it may serve that home's clients: never to be killed
        evidence = f"{address} is in use by turnout (pid {holder.pid}) for another home, {other}"
        return bad(evidence, f"TURNOUT_HOME={quoted(other)} turnout status")
    process = f"pid {holder.pid} ({holder.command})" if holder.pid else holder.command
    end = f"kill {holder.pid}" if holder.pid else f"sudo ss -tanp 'sport = :{address.port}'"
    if holder.listening:
        return bad(f"{address} is in use by {process}, which is not of this home", end)
    source = f"{address} is the source port of a connection of {process}"
    return bad(f"{source}: it does not listen, and keeps the address all the same", end)


def check_metrics(context: Context) -> Iterator[CheckResult]:
    """Whether metrics are served where they should be; one router serves them for all services of the home."""
    try:
        scrape = read_scrape(context.home)
    except TurnoutError as error:
        path = context.home.metrics
        hint = "rm --" if isinstance(error, ConfigError) else "ls -l --"
        yield bad(f"{path}: {error.message}", f"{hint} {quoted(path)}")
        return
    if scrape.listen is None:
        yield ok(METRICS_OFF)
        return
    try:
        require()
    except ConfigError as error:
        yield bad(f"to be served on {scrape.listen}: {error.message}", EXTRA)
        return
    yield _scrape_address(context, scrape, scrape.listen)


def _scrape_address(context: Context, scrape: Scrape, address: Address) -> CheckResult:
    metrics = (context.router or {}).get("metrics", {})
    if metrics.get("listen") == str(address):
        return ok(f"served on http://{address}/metrics")
    if metrics.get("error"):
        return bad(str(metrics["error"]), _elsewhere(scrape, address))
    holder = who_listens(address.host, address.port)
    if holder and holder.pid not in {record.identity.pid for record in context.router_processes}:
        return bad(bind_problem(address, errno.EADDRINUSE).message, _elsewhere(scrape, address))
    if context.router:
        return ok(f"about to be served on http://{address}/metrics")
    return ok(f"to be served on http://{address}/metrics while a router runs")


def _elsewhere(scrape: Scrape, address: Address) -> str:
    """What to type for a port that is free at the moment."""
    if scrape.source:
        return f"name another port under [metrics] in {scrape.source}, then turnout up"
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address.host, 0))
        return f"turnout up --metrics {Address(address.host, sock.getsockname()[1])}"
