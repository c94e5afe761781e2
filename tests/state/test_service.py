"""One service opened: its settings, its probe, its policy and the contexts of its builds."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec
import pytest

from turnout.config.settings import Health, Settings, dump_settings, parse_address
from turnout.core.model import Daemon
from turnout.core.proxy_protocol import LOCAL_HEADER
from turnout.errors import StateUnwritableError
from turnout.state.builds import Build, Rollout
from turnout.state.exec_context import ExecContext
from turnout.state.home import Home
from turnout.state.service import Service, policy, probe_spec, remembered, written

SETTINGS = Settings(
    name="s",
    listen=(parse_address("127.0.0.1:47777"),),
    health=Health(probe="exec", command=("check", "{port}"), status="200,204"),
    proxy_protocol="v2",
    hold_max=7,
    allow=("10.0.0.0/8",),
)
BUILD = Build(("daemon",), "/")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    home = Home(tmp_path / "home").service("s")
    home.create()
    return Service.open(home, SETTINGS)


def test_a_service_that_has_never_been_has_no_settings_and_one_that_was_has_what_was_written(service: Service) -> None:
    assert remembered(service.home) is None
    assert written(service.home) is None
    service.home.settings.write_bytes(dump_settings(SETTINGS))
    assert remembered(service.home) == SETTINGS
    assert written(service.home) == dump_settings(SETTINGS)


def test_settings_that_cannot_be_read_are_an_error_for_a_verb_and_nothing_for_a_comparison(service: Service) -> None:
    service.home.settings.mkdir()
    assert written(service.home) is None
    with pytest.raises(StateUnwritableError, match="cannot read"):
        remembered(service.home)


def test_a_daemon_is_probed_with_the_header_that_it_was_started_to_expect() -> None:
    assert probe_spec(SETTINGS).preamble == LOCAL_HEADER
    assert probe_spec(SETTINGS, Daemon("v1", proxy_protocol="none")).preamble == b""
    plain = msgspec.structs.replace(SETTINGS, proxy_protocol="none")
    assert probe_spec(plain, Daemon("v1", proxy_protocol="v2")).preamble == LOCAL_HEADER
    assert probe_spec(SETTINGS).statuses == ((200, 200), (204, 204))


def test_the_policy_has_the_limits_of_the_settings() -> None:
    found = policy(SETTINGS)
    assert (found.hold_max, found.hold_timeout_s, found.connections) == (7, SETTINGS.hold_timeout_s, 0)
    assert found.allow == (ipaddress.ip_network("10.0.0.0/8"),)


def test_the_program_of_a_probe_gets_the_environment_that_the_build_was_deployed_with(service: Service) -> None:
    context = service.contexts.save(ExecContext("/bin/daemon", {"PATH": "/opt/bin"}))
    service.builds.record_rollout(Rollout(1, BUILD.id, "deploy", 1.0, "active", context), BUILD)
    daemon = Daemon("v1", build=BUILD.id)
    assert service.spec_of(daemon).environ == {"PATH": "/opt/bin"}
    assert service.spec_of(Daemon("v1")).environ is None, "of a daemon without a build nothing is recorded"


def test_of_a_build_whose_first_rollout_goes_on_the_context_is_that_of_this_rollout(service: Service) -> None:
    context = service.contexts.save(ExecContext("/bin/daemon", {"A": "1"}))
    service.builds.record_rollout(Rollout(1, BUILD.id, "deploy", 1.0, "", context), BUILD)
    assert service.environ_of(BUILD.id) == {"A": "1"}
    assert service.environ_of() is None, "none was deployed yet"


def test_of_several_rollouts_the_newest_counts_whose_record_can_be_read(service: Service) -> None:
    old = service.contexts.save(ExecContext("/bin/daemon", {"A": "1"}))
    service.builds.record_rollout(Rollout(1, BUILD.id, "deploy", 1.0, "active", old), BUILD)
    service.builds.record_rollout(Rollout(2, BUILD.id, "deploy", 2.0, "active", "0123456789abcdef"), BUILD)
    assert service.environ_of(BUILD.id) == {"A": "1"}


def test_a_damaged_list_of_builds_is_no_context_and_the_verb_that_needs_it_says_so(service: Service) -> None:
    service.home.builds.write_text("{")
    assert service.context_of(BUILD.id) is None
