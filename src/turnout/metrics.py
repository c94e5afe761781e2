"""What Prometheus is told of a router: one table of metrics, read from plain values.

Names follow Prometheus' conventions (prometheus.io/docs/practices/naming): one prefix, base units, ``_total`` for
counters. Labels come from fixed sets, but for the names that a service, a daemon or a version was given. They are kept
to :data:`LABEL_MOST` characters, and the library escapes them. What cannot be known has no sample, never 0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from turnout.core.histogram import Histogram
from turnout.core.model import Cause, Deployment, Desired, State
from turnout.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

EXTRA: Final = "pip install 'turnout[metrics]'"
LABEL_MOST: Final = 256
DAEMONS_MOST: Final = 64  # series of daemons in each service; a registry may hold thousands of other programs' ones

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Value = float | Histogram
Samples = Iterable[tuple[Labels, Value | None]]


@dataclass(frozen=True, slots=True)
class DaemonReading:
    """One daemon. ``role``: as in ``status``; None: the plane cannot count it, or nobody has asked yet."""

    boot_id: str
    version: str
    role: str
    connections: int | None
    bytes_in: int | None
    bytes_out: int | None
    healthy: bool | None


@dataclass(frozen=True, slots=True)
class ServiceReading:
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


@dataclass(frozen=True, slots=True)
class Reading:
    """A router at one moment. ``leaving``: how many that were replaced still carry what they had accepted."""

    version: str
    uptime_s: float
    leaving: int
    services: Sequence[ServiceReading]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric by the name that a query has, ``_total`` included; ``read`` yields a value for each set of labels."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    read: Callable[[Reading], Samples]


def require() -> None:
    """Find out whether metrics can be served at all, without loading what serves them.

    Raises:
        ConfigError: the extra is not installed.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics need the package prometheus-client, which is not installed here", hint=EXTRA)


# -- the table -------------------------------------------------------------------------------------------------------


def _each(read: Callable[[ServiceReading], Value | None]) -> Callable[[Reading], Samples]:
    """One sample a service."""
    return lambda reading: (((service.name,), read(service)) for service in reading.services)


def _counted(counter: str) -> Callable[[Reading], Samples]:
    return _each(lambda service: service.counters[counter])


def _one_of(names: Iterable[str], read: Callable[[ServiceReading], str]) -> Callable[[Reading], Samples]:
    """For each member of a fixed set whether it is the one: 1 or 0."""
    members = tuple(names)

    def samples(reading: Reading) -> Iterator[tuple[Labels, Value | None]]:
        for service in reading.services:
            is_so = read(service)
            for member in members:
                yield (service.name, member), float(member == is_so)

    return samples


def _daemons(read: Callable[[DaemonReading], Value | None]) -> Callable[[Reading], Samples]:
    """One sample a daemon that takes part."""
    return lambda reading: (
        ((service.name, daemon.boot_id), read(daemon)) for service in reading.services for daemon in service.daemons
    )


def _service_info(reading: Reading) -> Samples:
    return (((one.name, one.plane, one.strategy), 1.0) for one in reading.services)


def _rollout_info(reading: Reading) -> Samples:
    for one in reading.services:
        block = one.deployment
        named = block.active_boot_id, block.candidate_boot_id, block.old_boot_id
        yield (one.name, *named, block.cause.value, block.rollback_reason), 1.0


def _daemon_info(reading: Reading) -> Samples:
    for service in reading.services:
        for one in service.daemons:
            yield (service.name, one.boot_id, one.version, one.role), 1.0


_OF: Final = ("service",)
_BOOT: Final = ("service", "boot_id")
METRICS: Final[Sequence[Metric]] = (
    Metric("turnout_build_info", "gauge", "Version of the router that answers; always 1.", ("version",),
           lambda reading: [((reading.version,), 1.0)]),
    Metric("turnout_router_uptime_seconds", "gauge", "Time since this router began; its counters began with it.", (),
           lambda reading: [((), reading.uptime_s)]),
    Metric("turnout_routers_leaving", "gauge", "Routers that were replaced and still carry what they had accepted.", (),
           lambda reading: [((), float(reading.leaving))]),
    Metric("turnout_service_info", "gauge", "How a service is carried and rolled out; always 1.",
           ("service", "plane", "strategy"), _service_info),
    # connections
    Metric("turnout_connections_open", "gauge", "Connections that are open between a client and a daemon.", _OF,
           _each(lambda one: one.connections)),
    Metric("turnout_connections_accepted_total", "counter",
           "Clients that the router accepted; a direct plane's pass it by.", _OF, _counted("accepted")),
    Metric("turnout_connections_closed_total", "counter", "Connections to a daemon that have ended, however.", _OF,
           _counted("closed")),
    Metric("turnout_connections_cut_total", "counter", "Connections that were ended because their daemon had to go.",
           _OF, _counted("cut")),
    Metric("turnout_connections_idle_closed_total", "counter", "Connections that limits.idle_timeout ended.", _OF,
           _counted("idle_closed")),
    Metric("turnout_connections_denied_total", "counter", "Clients from outside the allow list, which were reset.",
           _OF, _counted("denied")),
    Metric("turnout_connections_unrouted_total", "counter", "Clients that were reset because nothing was to serve.",
           _OF, _counted("reset_unrouted")),
    Metric("turnout_connections_limited_total", "counter", "How often limits.connections was reached.", _OF,
           _counted("limited")),
    Metric("turnout_received_bytes_total", "counter", "Bytes from clients that daemons have taken.", _OF,
           _each(lambda one: one.bytes_in)),
    Metric("turnout_sent_bytes_total", "counter", "Bytes from daemons that clients have taken.", _OF,
           _each(lambda one: one.bytes_out)),
    Metric("turnout_copied_bytes_total", "counter", "Bytes that went through user space, both ways.", _OF,
           _counted("copied_bytes")),
    Metric("turnout_spliced_bytes_total", "counter", "Bytes that stayed in the kernel by splice(2), both ways.", _OF,
           _counted("spliced_bytes")),
    # on the way to a daemon
    Metric("turnout_connect_duration_seconds", "histogram",
           "From a client's accept until its daemon was connected, time in the hold included.", _OF,
           _each(lambda one: one.connect_s)),
    Metric("turnout_connect_failures_total", "counter", "Connects that the daemon refused, reset or did not answer.",
           _OF, _counted("connect_failed")),
    Metric("turnout_hold_connections", "gauge", "Clients that wait for a daemon at the moment.", _OF,
           _counted("held_now")),
    Metric("turnout_hold_entered_total", "counter", "Clients that had to wait for a daemon.", _OF,
           _counted("held_total")),
    Metric("turnout_hold_overflows_total", "counter", "Clients that were reset because the hold was full (hold.max).",
           _OF, _counted("hold_overflow")),
    Metric("turnout_hold_timeouts_total", "counter", "Clients that were reset after waiting too long (hold.timeout).",
           _OF, _counted("hold_timeout")),
    Metric("turnout_descriptors_exhausted_total", "counter", "How often no file descriptor was left for a client.",
           _OF, _counted("fd_exhausted")),
    Metric("turnout_ports_exhausted_total", "counter", "Connects that no source port was left for.", _OF,
           _counted("ports_exhausted")),
    Metric("turnout_connects_other_source_total", "counter",
           "Connects from 127.0.0.2 and on, since 127.0.0.1 had no port left.", _OF, _counted("other_source")),
    Metric("turnout_steering_lost_total", "counter",
           "How often a direct plane came to relay everything, since the kernel could not hand it over.", _OF,
           _counted("unsteered")),
    Metric("turnout_pipes_denied_total", "counter", "Large transfers that got no pipe and were copied.", _OF,
           _counted("pipes_denied")),
    # rollouts
    Metric("turnout_deployment_state", "gauge", "1 for the state of the deployment, 0 for the others.",
           ("service", "state"), _one_of(State, lambda one: one.deployment.state.value)),
    Metric("turnout_deployment_desired", "gauge", "1 for what the operator wants of the service, 0 for the others.",
           ("service", "desired"), _one_of(Desired, lambda one: one.deployment.desired.value)),
    Metric("turnout_deployment_cause", "gauge", "1 for why the last rollout was begun, 0 for the others.",
           ("service", "cause"), _one_of(Cause, lambda one: one.deployment.cause.value)),
    Metric("turnout_deployment_info", "gauge", "The daemons that the deployment names, and why it went back; always 1.",
           ("service", "active_boot_id", "candidate_boot_id", "old_boot_id", "cause", "rollback_reason"),
           _rollout_info),
    Metric("turnout_deployment_generation", "gauge", "The number of the last rollout.", _OF,
           _each(lambda one: one.deployment.generation)),
    Metric("turnout_deployment_revision", "gauge", "The registry's revision that the router has applied.", _OF,
           _each(lambda one: one.applied_revision)),
    Metric("turnout_health_fail_streak", "gauge", "Failed checks in a row of the active daemon in its window.", _OF,
           _each(lambda one: one.deployment.health_fail_streak)),
    Metric("turnout_observe_remaining_seconds", "gauge", "What is left of the observe window; no sample outside one.",
           _OF, _each(lambda one: one.observe_remaining_s)),
    Metric("turnout_last_switch_timestamp_seconds", "gauge", "When the active daemon last changed; 0: never yet.", _OF,
           _each(lambda one: one.deployment.switch_ts)),
    Metric("turnout_switches_total", "counter", "How often another daemon became active, rollbacks included.", _OF,
           _each(lambda one: one.switches)),
    Metric("turnout_rollbacks_total", "counter", "Switches that went back, to a warm daemon or by a new rollout.", _OF,
           _each(lambda one: one.rollbacks)),
    Metric("turnout_rollouts_aborted_total", "counter", "Rollouts that ended before their switch.", _OF,
           _each(lambda one: one.aborted)),
    Metric("turnout_switch_duration_seconds", "histogram",
           "From the write of a switch until new connections went where it says.", _OF,
           _each(lambda one: one.switch_s)),
    Metric("turnout_rollout_duration_seconds", "histogram", "From a rollout's begin until its switch.", _OF,
           _each(lambda one: one.rollout_s)),
    # daemons
    Metric("turnout_daemon_info", "gauge", "Version and role (active, candidate, warm, draining) of a daemon.",
           (*_BOOT, "version", "role"), _daemon_info),
    Metric("turnout_daemon_healthy", "gauge", "Whether the last check of a daemon passed; no sample before the first.",
           _BOOT, _daemons(lambda one: one.healthy)),
    Metric("turnout_daemon_connections_open", "gauge", "Open connections of a daemon.", _BOOT,
           _daemons(lambda one: one.connections)),
    Metric("turnout_daemon_received_bytes_total", "counter", "Bytes from clients that a daemon has taken.", _BOOT,
           _daemons(lambda one: one.bytes_in)),
    Metric("turnout_daemon_sent_bytes_total", "counter", "Bytes from a daemon that clients have taken.", _BOOT,
           _daemons(lambda one: one.bytes_out)),
)  # fmt: skip


# -- the text --------------------------------------------------------------------------------------------------------


def expose(reading: Reading, accept: str = "") -> tuple[bytes, str]:
    """The text that a scrape gets, with what the library knows of this process (``process_…``, on Linux).

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
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    for metric in METRICS:
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _samples(metric, reading):
                assert isinstance(value, Histogram)
                buckets = [(_bound(bound), float(count)) for bound, count in value.cumulative()]
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
    """What is known, under labels as they are told. One that came twice would spoil the scrape, and long ones may."""
    told: set[Labels] = set()
    for given, value in metric.read(reading):
        labels = tuple(label(text) for text in given)
        if value is not None and labels not in told:
            told.add(labels)
            yield labels, value


def label(text: str) -> str:
    """As much of a text as a label is to have; half a surrogate pair, which UTF-8 cannot hold, becomes ``?``."""
    return text[:LABEL_MOST].encode("utf-8", "replace").decode()


def markdown_table() -> str:
    """Every metric of the table, for the documentation."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{name}`" for name in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)
