"""What status says of a service where something of it cannot be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry_support import write_both
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Daemon, Deployment, Identity, Snapshot
from turnout.doctor.context import Context
from turnout.doctor.processes import check_daemons
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.status.collect import service_status

NO_PROCESS = Identity()
ENDED = Identity(pid=1, machine_boot_id="another boot of the machine")


def router(healthy: dict[str, bool]) -> dict[str, Any]:
    said = {"healthy": healthy, "applied_revision": 0, "plane": "relay", "plane_trouble": ""}
    return {"pid": 1, "uptime_s": 1.0, "version": "", "leaving": [], "services": {"cache": said}}


@pytest.mark.parametrize(
    ("identity", "healthy", "says"),
    [
        (NO_PROCESS, {"a": True}, []),
        (NO_PROCESS, {}, []),
        (NO_PROCESS, {"a": False}, ["has ended"]),
        (ENDED, {}, ["has ended"]),
    ],
)
def test_an_attached_daemon_whose_process_cannot_be_seen_is_not_said_to_have_ended(
    tmp_path: Path, identity: Identity, healthy: dict[str, bool], says: list[str]
) -> None:
    home = Home(tmp_path).service("cache")
    home.create()
    daemon = Daemon("a", port=1, identity=identity)
    write_both(home.registry, Snapshot({"a": daemon}, deployment=Deployment(generation=1, active_boot_id="a")))
    service = Service.open(home, Settings(name="cache", listen=(parse_address("127.0.0.1:1"),)))
    status = service_status(service, router(healthy))
    assert len(status.problems) == len(says)
    for problem, part in zip(status.problems, says, strict=True):
        assert part in problem.what
        assert problem.hint == "turnout attach 127.0.0.1:1 --service cache"


def test_doctor_probes_an_attached_daemon_whose_process_cannot_be_seen(tmp_path: Path) -> None:
    home = Home(tmp_path).service("cache")
    home.create()
    daemon = Daemon("a", port=1, identity=NO_PROCESS)
    write_both(home.registry, Snapshot({"a": daemon}, deployment=Deployment(generation=1, active_boot_id="a")))
    settings = Settings(name="cache", listen=(parse_address("127.0.0.1:2"),))
    home.settings.write_bytes(dump_settings(settings))
    context = Context(Home(tmp_path))
    (result,) = check_daemons(context, context.services[0])
    assert "nothing listens on port 1" in result.evidence
    assert result.hint == "turnout attach 127.0.0.1:1 --service cache"
