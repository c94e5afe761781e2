from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import msgspec
import pytest

from turnout.config.file import file_schema, load_file, schema_of
from turnout.config.keys import KEYS, Takes, default
from turnout.config.settings import (
    Address,
    ServiceRequest,
    Settings,
    dump_settings,
    duration,
    fit,
    ignored_settings,
    load_settings,
    parse_address,
)
from turnout.core.connection_policy import Policy, networks
from turnout.core.proxy_protocol import LOCAL_HEADER
from turnout.errors import ConfigError, UsageError
from turnout.lifecycle.launch_spec import build_launch_spec
from turnout.state.builds import Build
from turnout.state.service import policy, probe_spec


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "turnout.toml"
    path.write_text(text)
    return path


def test_the_readmes_file_is_read_as_it_stands(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = readme[readme.index("[service.cache]") :]
    wanted = load_file(write(tmp_path, block[: block.index("```")]))["cache"]
    assert wanted.settings.listen == (Address("127.0.0.1", 47777),)
    assert wanted.settings.health.send == "PING\r\n"
    assert wanted.settings.drain_deadline_s == 600
    assert wanted.command[0] == "redis-server"


def test_resolved_settings_survive_being_written_and_read(tmp_path: Path) -> None:
    text = '[service.a]\nlisten = ["127.0.0.1:1", "[::1]:2"]\ndrain = { deadline = "none" }\nplane = "relay"\n'
    settings = load_file(write(tmp_path, text))["a"].settings
    assert settings.drain_deadline_s is None
    assert load_settings(dump_settings(settings)) == settings


def test_the_probes_http_and_exec_are_read(tmp_path: Path) -> None:
    text = (
        '[service.a]\nhealth = { probe = "http", path = "/healthz", host = "example.org", status = 204 }\n'
        '[service.b]\ncwd = "sub"\nhealth = { probe = "exec", command = ["./check", "{port}"] }\n'
    )
    wanted = load_file(write(tmp_path, text))
    http, program = probe_spec(wanted["a"].settings), probe_spec(wanted["b"].settings)
    assert (http.kind, http.path, http.host, http.statuses) == ("http", "/healthz", "example.org", ((204, 204),))
    assert (program.kind, program.command, program.cwd) == ("exec", ("./check", "{port}"), str(tmp_path / "sub"))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[service.a]\nlisten = 5\n", "listen"),
        ('[service.a]\nlisten = "127.0.0.1"\n', "127.0.0.1"),
        ('[service.a]\nlisten = "8.8.8.8:80"\n', "loopback"),
        ('[service.a]\nlisten = "8.8.8.8:80"\nexpose = true\n', "clients-look-local"),
        ('[service.a]\nlisten = ["127.0.0.1:80", "0.0.0.0:80"]\nexpose = "clients-look-local"\n', "are one"),
        ('[service.a]\nexpose = "yes"\n', "clients-look-local"),
        ('[service.a]\nproxy_protocol = "v1"\n', "v2"),
        ('[service.a]\nallow = ["10.0.0.1/8"]\n', "10.0.0.1/8"),
        ("[service.a]\nlimits = { connections = -1 }\n", "limits.connections"),
        ('[service.a]\nlimits = { idle_timeout = "1ms" }\n', "limits.idle_timeout"),
        ("[service.a]\nlimits = { conections = 1 }\n", "'connections'"),
        ("[service.a]\nlisten = []\n", "no address"),
        ('[service.a]\ncommand = "redis-server"\n', "command"),
        ('[service.a]\nobserve = "soon"\n', "observe"),
        ("[service.a]\nobserve = -1\n", "observe"),
        ('[service.a]\nstop = { signal = "PLEASE" }\n', "PLEASE"),
        ('[service.a]\nstop = { sginal = "TERM" }\n', "'signal'"),
        ('[service.a]\nhealth = { probe = "gut" }\n', "gut"),
        ('[service.a]\nhealth = { probe = "expect" }\n', "match"),
        ('[service.a]\nhealth = { probe = "expect", match = "(" }\n', "regular expression"),
        ("[service.a]\nhealth = { failures = 0 }\n", "failures"),
        ('[service.a]\nhealth = { probe = "http", path = "healthz" }\n', "health.path"),
        ('[service.a]\nhealth = { probe = "http", path = "/a b" }\n', "health.path"),
        ('[service.a]\nhealth = { probe = "http", host = "a\\nb" }\n', "health.host"),
        ('[service.a]\nhealth = { probe = "http", status = "fine" }\n', "health.status"),
        ('[service.a]\nhealth = { probe = "exec" }\n', "command"),
        ('[service.a]\nhealth = { probe = "exec", command = "true" }\n', "command"),
        ('[service.a]\nstrategy = "recreate"\nhold = { timeout = "60s" }\n', "must outlast"),
        ('[service.a]\nstrategy = "canary"\n', "no strategy 'canary'"),
        ('[service.a]\nplane = "sk_lookup"\nlimits = { connections = 5 }\n', "limits.connections"),
        ('[service.a]\nplane = "sk_lookup"\nproxy_protocol = "v2"\n', "proxy_protocol"),
        ('[service.a]\nplane = "magic"\n', "magic"),
        ("[service.a]\nenv = { A = 1 }\n", "env"),
        ("[servcie.a]\n", "'service'"),
        ("a = = 1\n", "line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, where: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert str(path) in caught.value.message
    assert where in f"{caught.value.message} {caught.value.hint}"
    assert "\n" not in caught.value.message


def test_policies_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = """[service.a]
listen = ["0.0.0.0:1", "[::]:1"]
plane = "stream"
proxy_protocol = "v2"
expose = true
allow = ["10.0.0.0/8", "::1"]
limits = { connections = 500, idle_timeout = "1h", user_timeout = "30s" }
"""
    settings = load_file(write(tmp_path, text))["a"].settings
    assert load_settings(dump_settings(settings)) == settings
    found = policy(settings)
    assert found == Policy(
        connections=500,
        idle_timeout_s=3600.0,
        user_timeout_s=30.0,
        allow=networks(["10.0.0.0/8", "::1/128"]),
    )
    assert found.admits("10.9.9.9")
    assert found.admits("::1")
    assert not found.admits("11.0.0.1")
    assert (settings.plane, settings.proxy_protocol) == ("stream", "v2")
    assert probe_spec(settings).preamble == LOCAL_HEADER


def test_without_policies_nothing_is_limited() -> None:
    found = policy(Settings(name="a", listen=()))
    assert (found.connections, found.idle_timeout_s, found.user_timeout_ms(), found.allow) == (0, None, 0, ())


POSTGRES = 'command = ["postgres", "-D", "d", "-p", "{port}"]\n'


@pytest.mark.parametrize(
    ("text", "strategy", "stop_signal", "says"),
    [
        (POSTGRES, "recreate", "INT", "strategy recreate and stop signal INT"),
        (POSTGRES + 'stop = { signal = "TERM" }\n', "recreate", "TERM", "strategy recreate"),
        (POSTGRES + 'strategy = "blue-green"\n', "blue-green", "INT", "stop signal INT"),
        (POSTGRES + 'strategy = "recreate"\nstop = { signal = "QUIT" }\n', "recreate", "QUIT", ""),
        ('command = ["redis-server", "--appendonly", "yes"]\n', "recreate", "TERM", "strategy recreate"),
        ('command = ["redis-server", "--save", ""]\n', "blue-green", "TERM", ""),
        ('command = ["./server"]\nstrategy = "recreate"\n', "recreate", "TERM", ""),
    ],
)
def test_a_daemon_that_owns_its_data_gets_what_fits_it_unless_the_operator_named_it(
    tmp_path: Path, text: str, strategy: str, stop_signal: str, says: str
) -> None:
    wanted = load_file(write(tmp_path, "[service.a]\n" + text))["a"]
    assert (wanted.settings.strategy, wanted.settings.stop_signal) == (strategy, stop_signal)
    assert says in wanted.fitted
    assert bool(says) == bool(wanted.fitted)


def test_a_strategy_that_was_found_stays_when_the_same_daemon_hides_in_a_wrapper() -> None:
    settings = Settings(name="a", listen=())
    found, said = fit(settings, ["postgres", "-D", "d"])
    assert said
    assert fit(found, ["./run-database.sh"]) == (found, "")
    assert fit(found, []) == (found, "")


def test_recreate_is_refused_unless_the_hold_outlasts_stop_and_start(tmp_path: Path) -> None:
    text = '[service.a]\nstrategy = "recreate"\nstart_timeout = "40s"\nstop = { grace = "30s" }\n'
    with pytest.raises(ConfigError) as caught:
        load_file(write(tmp_path, text + 'hold = { timeout = "70s" }\n'))
    for number in ("70 s", "30 s", "40 s"):
        assert number in caught.value.message
    assert caught.value.hint
    assert "80s" in caught.value.hint
    settings = load_file(write(tmp_path, text + 'hold = { timeout = "80s" }\n'))["a"].settings
    assert settings.retire_s == 5.0
    assert msgspec.structs.replace(settings, hold_timeout_s=71.0).retire_s == 0.5
    assert msgspec.structs.replace(settings, drain_grace_s=0.0).retire_s == 0.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30.0), ("1.5m", 90.0), ("2h", 7200.0), ("1d", 86400.0), ("7", 7.0)]
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 week", "1e3", "inf", "nan", True])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        duration(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:47777", "127.0.0.1", 47777),
        ("localhost:1", "127.0.0.1", 1),
        (":5", "127.0.0.1", 5),
        ("[::1]:65535", "::1", 65535),
        ("127.9.9.9:80", "127.9.9.9", 80),
    ],
)
def test_loopback_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text", ["", "x", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "host:1", "::1:1x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_settings_of_a_later_version_are_refused_with_a_hint() -> None:
    data = dump_settings(Settings(name="a", listen=())).replace(b'"plane"', b'"plan9"')
    with pytest.raises(ConfigError) as caught:
        load_settings(data)
    assert caught.value.hint


@pytest.mark.parametrize("stored", ["false", "true"])
def test_settings_that_an_earlier_version_stored_are_read_without_those_that_are_gone(stored: str) -> None:
    settings = Settings(name="a", listen=(Address("127.0.0.1", 47000),), plane="reuseport")
    data = dump_settings(settings).replace(b'"plane"', b'"shares_port": %s, "plane"' % stored.encode())
    assert load_settings(data) == settings
    assert ignored_settings(data) == (["shares_port"] if stored == "true" else [])
    assert ignored_settings(dump_settings(settings)) == []


@pytest.mark.parametrize("value", ["true", "false", '"yes"'])
def test_a_key_that_was_removed_is_an_error_that_says_what_replaces_it(tmp_path: Path, value: str) -> None:
    text = '[service.a]\ncommand = ["d", "{port}"]\n'
    load_file(write(tmp_path, text))  # as the hint has it
    with pytest.raises(ConfigError, match=r"\[service\.a\] shares_port was removed .*\{fd\}") as caught:
        load_file(write(tmp_path, f"{text}shares_port = {value}\n"))
    assert "delete the line" in (caught.value.hint or "")


def test_the_port_of_the_service_and_that_of_the_daemon_are_two() -> None:
    settings = Settings(name="a", listen=(Address("127.0.0.1", 47000),))
    build = Build(("d", "{port}", "{listen_port}"), "/", {"X": "{listen_port}"}, "v1")
    spec = build_launch_spec(build, settings, 5001, {})
    assert (spec.address.port, spec.argv, spec.listener) == (5001, ("d", "5001", "47000"), None)
    assert (spec.env["X"], spec.env["PORT"]) == ("47000", "5001")


def test_the_schema_of_the_file_says_of_every_key_what_it_means() -> None:
    schema = file_schema()
    for key in KEYS.values():
        described = schema_of(schema, key)
        assert (described["description"], described["default"]) == (key.meaning, key.default)


def test_the_settings_take_each_default_from_the_key_that_names_the_field() -> None:
    settings = Settings(name="a", listen=default("listen"))
    for key in KEYS.values():
        holder = ServiceRequest(settings=settings) if key.takes is Takes.BUILD else settings
        value = attrgetter(key.field)(holder)
        assert (value, type(value)) == (default(key.name), type(default(key.name))), key.name
        written = key.default if key.default is not None else key.otherwise
        assert key.kind.show(value) in (written, [written]), key.name
    assert msgspec.convert(msgspec.to_builtins(settings), Settings, strict=True) == settings
