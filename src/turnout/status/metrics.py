"""The metrics of a router for Prometheus: one table, read from plain values.

Names follow Prometheus' conventions (prometheus.io/docs/practices/naming): one prefix, base units, ``_total`` for
counters. Labels come from fixed sets, but for the names that a service, a daemon or a version was given. They are kept
to :data:`LABEL_MOST` characters, and the library escapes them. What cannot be known has no sample, never 0.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from turnout.core.histogram import Histogram
from turnout.core.model import Cause, Deployment, Desired, State
from turnout.core.printable import valid
from turnout.errors import ConfigError
from turnout.state.metrics_address import require

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

LABEL_MOST: Final = 256
DAEMONS_MOST: Final = 64  # series of daemons in each service; a registry may hold thousands of other programs' ones

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Value = float | Histogram
Samples = Iterable[tuple[Labels, Value | None]]


class DaemonReading(msgspec.Struct, frozen=True):
    """One daemon. ``role``: as in ``status``; None: the plane cannot count it, or it was not asked yet."""

    boot_id: str
    version: str
    role: str
    connections: int | None
    bytes_in: int | None
    bytes_out: int | None
    healthy: bool | None


class ServiceReading(msgspec.Struct, frozen=True):
    """One service at one moment; times in seconds.

    Args:
        counters: the plane's plain counts, by name.
        connections: open now.
        bytes_in: from clients to daemons since the plane began, of all daemons together; None: not counted.
        bytes_out: the same, back.
        connect_s, switch_s, rollout_s: copies, for another thread reads them.
        observe_remaining_s: None outside a window.
    """

    name: str
    plane: str
    strategy: str
    deployment: Deployment
    applied_revision: int
    observe_remaining_s: float | None
    counters: Mapping[str, int]
    connections: int
    bytes_in: int | None
    bytes_out: int | None
    connect_s: Histogram
    switches: int
    rollbacks: int
    aborted: int
    switch_s: Histogram
    rollout_s: Histogram
    daemons: Sequence[DaemonReading]


class Reading(msgspec.Struct, frozen=True):
    """A router at one moment. ``leaving``: how many that were replaced still carry what they had accepted."""

    version: str
    uptime_s: float
    leaving: int
    services: Sequence[ServiceReading]


class Metric(msgspec.Struct, frozen=True):
    """One metric by the name that a query has, ``_total`` included; ``read`` yields a value for each set of labels."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    read: Callable[[Reading], Samples]


def load_library() -> None:
    """Import all that :func:`expose` needs, so that a scrape never imports: the installation may be gone by then.

    Raises ConfigError: the extra is not installed, or cannot be read.
    """
    require()
    try:
        for name in ("core", "exposition", "openmetrics.exposition", "process_collector", "registry"):
            importlib.import_module(f"prometheus_client.{name}")
    except ImportError as error:
        raise ConfigError(f"metrics need prometheus-client, which cannot be imported: {error}") from error


# -- the table -------------------------------------------------------------------------------------------------------


_BOOT: Final = ("service", "boot_id")


def _service(name: str, kind: Kind, path: str, text: str) -> Metric:
    """One sample a service: the field at ``path`` of its reading, or one of its counters."""
    counter = path.removeprefix("counters.")
    field: Callable[[ServiceReading], Value | None] = attrgetter(path)

    def read(reading: Reading) -> Samples:
        for service in reading.services:
            yield (service.name,), field(service) if counter == path else service.counters[counter]

    return Metric(name, kind, text, ("service",), read)


def _one_of(names: Iterable[str], read: Callable[[ServiceReading], str]) -> Callable[[Reading], Samples]:
    """For each member of a fixed set whether it is the one: 1 or 0."""
    members = tuple(names)

    def samples(reading: Reading) -> Iterator[tuple[Labels, Value | None]]:
        for service in reading.services:
            is_so = read(service)
            for member in members:
                yield (service.name, member), float(member == is_so)

    return samples


def _daemon(name: str, kind: Kind, path: str, text: str) -> Metric:
    """One sample a daemon that takes part: the field at ``path`` of its reading."""
    field: Callable[[DaemonReading], Value | None] = attrgetter(path)
    return Metric(name, kind, text, _BOOT, lambda reading: (
        ((service.name, daemon.boot_id), field(daemon)) for service in reading.services for daemon in service.daemons
    ))  # fmt: skip


def _rollout_info(reading: Reading) -> Samples:
    for service in reading.services:
        block = service.deployment
        named = block.active_boot_id, block.candidate_boot_id, block.old_boot_id
        yield (service.name, *named, block.cause.value, block.rollback_reason), 1.0


def _daemon_info(reading: Reading) -> Samples:
    for service in reading.services:
        for daemon in service.daemons:
            yield (service.name, daemon.boot_id, daemon.version, daemon.role), 1.0


METRICS: Final[Sequence[Metric]] = (
    Metric("turnout_build_info", "gauge", "Version of the router that answers; always 1.", ("version",),
           lambda reading: [((reading.version,), 1.0)]),
    Metric("turnout_router_uptime_seconds", "gauge", "Time since this router began; its counters began with it.", (),
           lambda reading: [((), reading.uptime_s)]),
    Metric("turnout_routers_leaving", "gauge", "Routers that were replaced and still carry what they had accepted.", (),
           lambda reading: [((), float(reading.leaving))]),
    Metric("turnout_service_info", "gauge", "How a service is carried and rolled out; always 1.",
           ("service", "plane", "strategy"),
           lambda reading: (((service.name, service.plane, service.strategy), 1.0) for service in reading.services)),
    # connections
    _service("turnout_connections_open", "gauge", "connections",
             "Connections that are open between a client and a daemon."),
    _service("turnout_connections_accepted_total", "counter", "counters.accepted",
             "Clients that the router accepted; a direct plane's pass it by."),
    _service("turnout_connections_closed_total", "counter", "counters.closed",
             "Connections to a daemon that have ended, however."),
    _service("turnout_connections_cut_total", "counter", "counters.cut",
             "Connections that were ended because their daemon had to go."),
    _service("turnout_connections_idle_closed_total", "counter", "counters.idle_closed",
             "Connections that limits.idle_timeout ended."),
    _service("turnout_connections_denied_total", "counter", "counters.denied",
             "Clients from outside the allow list, which were reset."),
    _service("turnout_connections_unrouted_total", "counter", "counters.reset_unrouted",
             "Clients that were reset because nothing was to serve."),
    _service("turnout_connections_limited_total", "counter", "counters.limited",
             "How often limits.connections was reached."),
    _service("turnout_received_bytes_total", "counter", "bytes_in", "Bytes from clients that daemons have taken."),
    _service("turnout_sent_bytes_total", "counter", "bytes_out", "Bytes from daemons that clients have taken."),
    _service("turnout_copied_bytes_total", "counter", "counters.copied_bytes",
             "Bytes that went through user space, both ways."),
    _service("turnout_spliced_bytes_total", "counter", "counters.spliced_bytes",
             "Bytes that stayed in the kernel by splice(2), both ways."),
    # on the way to a daemon
    _service("turnout_connect_duration_seconds", "histogram", "connect_s",
             "From a client's accept until its daemon was connected, time in the hold included."),
    _service("turnout_connect_failures_total", "counter", "counters.connect_failed",
             "Connects that the daemon refused, reset or did not answer."),
    _service("turnout_hold_connections", "gauge", "counters.held_now", "Clients that wait for a daemon at the moment."),
    _service("turnout_hold_entered_total", "counter", "counters.held_total", "Clients that had to wait for a daemon."),
    _service("turnout_hold_overflows_total", "counter", "counters.hold_overflow",
             "Clients that were reset because the hold was full (hold.max)."),
    _service("turnout_hold_timeouts_total", "counter", "counters.hold_timeout",
             "Clients that were reset after waiting too long (hold.timeout)."),
    _service("turnout_hold_left_total", "counter", "counters.hold_left",
             "Clients that went while they waited for a daemon."),
    _service("turnout_descriptors_exhausted_total", "counter", "counters.fd_exhausted",
             "How often no file descriptor was left for a client."),
    _service("turnout_ports_exhausted_total", "counter", "counters.ports_exhausted",
             "Connects that no source port was left for."),
    _service("turnout_connects_other_source_total", "counter", "counters.other_source",
             "Connects from 127.0.0.2 and on, since 127.0.0.1 had no port left."),
    _service("turnout_steering_lost_total", "counter", "counters.unsteered",
             "How often a direct plane came to relay everything, since the kernel could not hand it over."),
    _service("turnout_pipes_denied_total", "counter", "counters.pipes_denied",
             "Large transfers that got no pipe and were copied."),
    # rollouts
    Metric("turnout_deployment_state", "gauge", "1 for the state of the deployment, 0 for the others.",
           ("service", "state"), _one_of(State, lambda service: service.deployment.state.value)),
    Metric("turnout_deployment_desired", "gauge", "1 for what the operator wants of the service, 0 for the others.",
           ("service", "desired"), _one_of(Desired, lambda service: service.deployment.desired.value)),
    Metric("turnout_deployment_cause", "gauge", "1 for why the last rollout was begun, 0 for the others.",
           ("service", "cause"), _one_of(Cause, lambda service: service.deployment.cause.value)),
    Metric("turnout_deployment_info", "gauge", "The daemons that the deployment names, and why it went back; always 1.",
           ("service", "active_boot_id", "candidate_boot_id", "old_boot_id", "cause", "rollback_reason"),
           _rollout_info),
    _service("turnout_deployment_generation", "gauge", "deployment.generation", "The number of the last rollout."),
    _service("turnout_deployment_revision", "gauge", "applied_revision",
             "The registry's revision that the router has applied."),
    _service("turnout_health_fail_streak", "gauge", "deployment.health_fail_streak",
             "Failed checks in a row of the active daemon in its window."),
    _service("turnout_observe_remaining_seconds", "gauge", "observe_remaining_s",
             "What is left of the observe window; no sample outside one."),
    _service("turnout_last_switch_timestamp_seconds", "gauge", "deployment.switch_ts",
             "When the active daemon last changed; 0: never yet."),
    _service("turnout_switches_total", "counter", "switches",
             "How often another daemon became active, rollbacks included."),
    _service("turnout_rollbacks_total", "counter", "rollbacks",
             "Switches that went back, to a warm daemon or by a new rollout."),
    _service("turnout_rollouts_aborted_total", "counter", "aborted", "Rollouts that ended before their switch."),
    _service("turnout_switch_duration_seconds", "histogram", "switch_s",
             "From the write of a switch until new connections went where it says."),
    _service("turnout_rollout_duration_seconds", "histogram", "rollout_s", "From a rollout's begin until its switch."),
    # daemons
    Metric("turnout_daemon_info", "gauge", "Version and role (active, candidate, warm, draining) of a daemon.",
           (*_BOOT, "version", "role"), _daemon_info),
    _daemon("turnout_daemon_healthy", "gauge", "healthy",
             "Whether the last check of a daemon passed; no sample before the first."),
    _daemon("turnout_daemon_connections_open", "gauge", "connections", "Open connections of a daemon."),
    _daemon("turnout_daemon_received_bytes_total", "counter", "bytes_in",
             "Bytes from clients that a daemon has taken."),
    _daemon("turnout_daemon_sent_bytes_total", "counter", "bytes_out", "Bytes from a daemon that clients have taken."),
)  # fmt: skip


# -- the text --------------------------------------------------------------------------------------------------------


def expose(reading: Reading, accept: str = "") -> tuple[bytes, str]:
    """The text that a scrape gets, with what the library knows of this process (``process_…``).

    Args:
        reading: what there is to tell.
        accept: the scraper's Accept header; Prometheus' own text format unless it asks for OpenMetrics.

    Returns:
        The body, and its content type.

    Raises:
        ConfigError: the extra is not installed.
    """
    require()
    from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415  # only where metrics are on
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Once(Collector):
        def collect(self) -> Iterator[Family]:
            return families(reading)

    registry = CollectorRegistry()
    registry.register(Once())
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def families(reading: Reading) -> Iterator[Family]:
    """Each metric of the table with its samples, as the library's own."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily  # noqa: PLC0415

    for metric in METRICS:
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _samples(metric, reading):
                assert isinstance(value, Histogram)
                cumulative = value.cumulative()
                buckets = [("+Inf" if math.isinf(bound) else repr(bound), float(count)) for bound, count in cumulative]
                histogram.add_metric(labels, buckets, value.total)
            yield histogram
        else:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            plain = kind(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
            for labels, value in _samples(metric, reading):
                assert not isinstance(value, Histogram)
                plain.add_metric(labels, float(value))
            yield plain


def _samples(metric: Metric, reading: Reading) -> Iterator[tuple[Labels, Value]]:
    """The known samples, labels cut. A set of labels that came twice would spoil the scrape, and long labels may."""
    seen: set[Labels] = set()
    for given, value in metric.read(reading):
        labels = tuple(label(text) for text in given)
        if value is not None and labels not in seen:
            seen.add(labels)
            yield labels, value


def label(text: str) -> str:
    """As much of a text as a label is to have; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD."""
    return valid(text[:LABEL_MOST])


def markdown_table() -> str:
    """Every metric of the table, for the documentation."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{name}`" for name in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows)
