"""The text that Prometheus gets: valid, complete, named by its conventions, safe from what daemons call themselves."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics_support import DAEMON, OPENMETRICS, READING, SERVICE, Scrape, reading
from turnout.core.model import Cause, Deployment, Desired, State
from turnout.errors import ConfigError
from turnout.planes.plane import Counters
from turnout.state.metrics_address import EXTRA, require
from turnout.status.metrics import LABEL_MOST, METRICS, Kind, expose, label, markdown_table

EVIL = 'v1\x1b[2J"} 1\nturnout_up{x="\\\r\u2028\u202e'
UNITS = ("seconds", "bytes", "total", "info")
COUNTED = {  # gauges that count things have no unit
    "turnout_routers_leaving", "turnout_connections_open", "turnout_hold_connections", "turnout_deployment_state",
    "turnout_deployment_desired", "turnout_deployment_cause", "turnout_deployment_generation",
    "turnout_deployment_revision", "turnout_health_fail_streak", "turnout_daemon_healthy",
    "turnout_daemon_connections_open",
}  # fmt: skip


def scraped(told: object = READING, accept: str = "") -> Scrape:
    body, _ = expose(told, accept)  # type: ignore[arg-type]  # a Reading
    return Scrape(body.decode(), strict=bool(accept))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_follows_the_conventions(metric: object) -> None:
    found = next(one for one in METRICS if one is metric)
    assert re.fullmatch(r"turnout(_[a-z]+)+", found.name)
    assert found.kind in get_args(Kind)
    assert (found.kind == "counter") is found.name.endswith("_total")
    assert found.name in COUNTED or found.name.endswith(UNITS)
    assert found.kind != "histogram" or found.name.endswith("_seconds")
    assert found.help.endswith("."), "a sentence"
    assert "\n" not in found.help
    assert all(re.fullmatch(r"[a-z_]+", name) for name in found.labels)


def test_no_name_comes_twice() -> None:
    names = [metric.name.removesuffix("_total") for metric in METRICS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_the_text_is_valid_and_has_every_metric_with_its_type_and_help(accept: str) -> None:
    found = scraped(reading(observe_remaining_s=4.5), accept)
    for metric in METRICS:
        family = found.families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples, metric.name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)


def test_the_content_type_is_the_one_that_was_asked_for() -> None:
    assert expose(READING)[1].startswith("text/plain; version=0.0.4")
    assert expose(READING, "text/html")[1].startswith("text/plain; version=0.0.4")
    assert expose(READING, OPENMETRICS)[1].startswith("application/openmetrics-text; version=1.0.0")
    assert expose(READING, OPENMETRICS)[0].endswith(b"# EOF\n")


def test_values_are_those_that_were_read() -> None:
    found = scraped()
    assert found.value("turnout_connections_accepted_total", service="cache") == 5
    assert found.value("turnout_connections_cut_total", service="cache") == 1
    assert found.value("turnout_connections_open", service="cache") == 2
    assert found.value("turnout_received_bytes_total", service="cache") == 10
    assert found.value("turnout_build_info", version="9.9") == 1
    assert found.value("turnout_router_uptime_seconds") == 12.5
    assert found.value("turnout_daemon_sent_bytes_total", service="cache", boot_id="boot-1") == 20


def test_every_plain_count_of_a_plane_is_told() -> None:
    counters = {name: 1000 + number for number, name in enumerate(Counters().integers())}
    assert set(counters.values()) <= set(scraped(reading(counters=counters)).samples.values())


def test_a_histogram_is_cumulative() -> None:
    histogram = SERVICE.connect_s.copy()
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.add(value)
    found = scraped(reading(connect_s=histogram))
    name = "turnout_connect_duration_seconds"
    assert [found.value(f"{name}_bucket", le=le) for le in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
    assert found.value(f"{name}_count") == 4
    assert found.value(f"{name}_sum") == pytest.approx(7.65)


@pytest.mark.parametrize(
    ("name", "label_name", "blocks"),
    [
        ("turnout_deployment_state", "state", {one.value: Deployment(state=one) for one in State}),
        ("turnout_deployment_desired", "desired", {one.value: Deployment(desired=one) for one in Desired}),
        ("turnout_deployment_cause", "cause", {one.value: Deployment(cause=one) for one in Cause}),
    ],
)
def test_of_a_fixed_set_exactly_one_is_so_and_all_are_there(
    name: str, label_name: str, blocks: dict[str, Deployment]
) -> None:
    for value, block in blocks.items():
        found = scraped(reading(deployment=block))
        (labels,) = found.labels(name)
        assert labels == {"service": "cache", label_name: value}
        assert sum(named == name for named, _ in found.samples) == len(blocks)


def test_what_is_not_known_has_no_sample() -> None:
    daemon = msgspec.structs.replace(DAEMON, connections=None, bytes_in=None, healthy=None)
    found = scraped(reading(bytes_in=None, observe_remaining_s=None, daemons=(daemon,)))
    for name in (
        "turnout_received_bytes_total",
        "turnout_observe_remaining_seconds",
        "turnout_daemon_connections_open",
        "turnout_daemon_received_bytes_total",
        "turnout_daemon_healthy",
    ):
        assert found.value(name) is None
    assert found.value("turnout_sent_bytes_total") == 20


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_what_a_daemon_calls_itself_stays_inside_its_label(accept: str) -> None:
    daemon = msgspec.structs.replace(DAEMON, boot_id=f"boot{EVIL}", version=EVIL)
    block = replace(SERVICE.deployment, active_boot_id=daemon.boot_id, rollback_reason=EVIL)
    found = scraped(reading(daemons=(daemon,), deployment=block), accept)
    assert found.samples.keys() - scraped(accept=accept).samples.keys() == {
        key for key in found.samples if ("boot_id", daemon.boot_id) in key[1] or key[0] == "turnout_deployment_info"
    }
    (info,) = found.labels("turnout_daemon_info")
    assert (info["boot_id"], info["version"]) == (daemon.boot_id, EVIL)
    (info,) = found.labels("turnout_deployment_info")
    assert (info["active_boot_id"], info["rollback_reason"]) == (daemon.boot_id, EVIL)


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_is_told_in_one_line_and_read_back(version: str, reason: str) -> None:
    """Also half surrogate pairs, which JSON may carry and UTF-8 may not."""
    block = replace(SERVICE.deployment, rollback_reason=reason)
    body, _ = expose(reading(daemons=(msgspec.structs.replace(DAEMON, version=version),), deployment=block))
    plain, _ = expose(READING)
    assert body.count(b"\n") == plain.count(b"\n")
    found = Scrape(body.decode())
    assert found.labels("turnout_daemon_info")[0]["version"] == label(version)
    assert found.labels("turnout_deployment_info")[0]["rollback_reason"] == label(reason)


def test_names_that_are_too_long_are_cut_and_never_told_twice() -> None:
    twins = [msgspec.structs.replace(DAEMON, boot_id="b" * LABEL_MOST + end) for end in ("1", "2")]
    found = scraped(reading(daemons=twins))
    (info,) = found.labels("turnout_daemon_info")
    assert info["boot_id"] == "b" * LABEL_MOST


def test_a_router_without_services_has_a_valid_text_too() -> None:
    found = scraped(msgspec.structs.replace(READING, services=()), OPENMETRICS)
    assert found.value("turnout_build_info") == 1
    assert found.value("turnout_connections_open") is None


def test_the_process_is_told_under_the_names_that_are_standard() -> None:
    found = scraped()
    assert (found.value("process_open_fds") or 0) > 2
    assert (found.value("process_start_time_seconds") or 0) > 1e9


def test_without_the_extra_it_is_one_error_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError) as caught:
        require()
    assert caught.value.hint == EXTRA
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigError):
        expose(READING)


def test_the_documented_table_has_a_row_for_each_metric_that_is_served() -> None:
    served = {name for name in scraped(reading(observe_remaining_s=1.0)).families if name.startswith("turnout_")}
    rows = markdown_table().splitlines()[2:]
    assert {row.split("`")[1].removesuffix("_total") for row in rows} == served
    assert all(len(row.split(" | ")) == 4 for row in rows), "no cell holds a bar"
