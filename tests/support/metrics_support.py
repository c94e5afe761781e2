"""A scrape as a test reads it: with the parser that Prometheus' own client library ships."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

import msgspec
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from turnout.core.histogram import Histogram
from turnout.core.model import Deployment
from turnout.planes.plane import Counters
from turnout.status.metrics import DaemonReading, Reading, ServiceReading

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Key = tuple[str, frozenset[tuple[str, str]]]

DAEMON = DaemonReading("boot-1", "1.2.3", "active", 2, 10, 20, healthy=True)
SERVICE = ServiceReading(
    name="cache",
    plane="relay",
    strategy="blue-green",
    deployment=Deployment(generation=3, active_boot_id="boot-1", revision=17),
    applied_revision=17,
    observe_remaining_s=None,
    counters=Counters(accepted=5, cut=1).integers(),
    connections=2,
    bytes_in=10,
    bytes_out=20,
    connect_s=Histogram((0.1, 1.0)),
    switches=3,
    rollbacks=1,
    aborted=0,
    switch_s=Histogram((0.1, 1.0)),
    rollout_s=Histogram((0.1, 1.0)),
    daemons=(DAEMON,),
)
READING = Reading("9.9", 12.5, 0, (SERVICE,))


def reading(service: ServiceReading = SERVICE, **changes: object) -> Reading:
    return msgspec.structs.replace(READING, services=(msgspec.structs.replace(service, **changes),))


class Scrape:
    """The samples of one scrape, by name and labels."""

    def __init__(self, text: str, *, strict: bool = False) -> None:
        read = openmetrics.text_string_to_metric_families if strict else parser.text_string_to_metric_families
        self.families = {family.name: family for family in read(text)}
        self.samples: dict[Key, float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"{key} comes twice"
                self.samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample with these labels, and whatever others; None where there is none."""
        found = [value for (named, given), value in self.samples.items() if named == name and labels.items() <= given]
        assert len(found) <= 1, f"{name} {labels}: {found}"
        return found[0] if found else None

    def labels(self, name: str, **labels: str) -> list[Mapping[str, str]]:
        """The labels of each sample of that name that has these, value 0 left out."""
        return [
            dict(given)
            for (named, given), value in self.samples.items()
            if named == name and labels.items() <= given and value
        ]


def get(port: int, *, accept: str = "", method: str = "GET", path: str = "/metrics") -> tuple[int, str, bytes]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read()
    finally:
        connection.close()


def scrape(port: int) -> Scrape:
    status, _, body = get(port)
    assert status == 200, body
    return Scrape(body.decode())
