"""A configuration file that changes under a running router."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support import eventually
from turnout.config.file import load_file
from turnout.config.keys import KEYS, Key, Takes
from turnout.config.settings import Settings
from turnout.router.follow.config_file import ConfigReloader
from turnout.system import file_watcher

FILE = """
[service.cache]
listen = "127.0.0.1:{port}"
command = ["server", "{version}"]
observe = "{observe}"
hold = {{ max = {hold} }}
"""


def write(path: Path, *, port: int = 5000, version: str = "1", observe: str = "30s", hold: int = 9) -> Settings:
    text = FILE.format(port=port, version=version, observe=observe, hold=hold)
    path.write_text(text)
    return load_file(path)["cache"].settings


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_watcher, "TWO_TICKS_NS", 0)  # else a file that is this young is reported once more
    return tmp_path / "turnout.toml"


def test_what_can_change_is_taken_over_and_what_cannot_is_named_with_what_it_needs(path: Path) -> None:
    settings = write(path)
    reloading = ConfigReloader(settings, time.time_ns())
    write(path, port=5001, version="2", observe="5s", hold=10)
    done = reloading.reload(settings)
    assert done.changed == ("observe_s", "hold_max")
    assert (done.settings.observe_s, done.settings.listen, done.settings.hold_max) == (5.0, settings.listen, 10)
    assert [what.partition(":")[0] for what in done.later] == ["listen", "command, cwd, env or version"]
    assert done.error == ""


def test_a_change_is_noticed(path: Path) -> None:
    settings = write(path)
    reloading = ConfigReloader(settings, time.time_ns())
    write(path, observe="50s")
    assert reloading.is_due()
    eventually(lambda: not reloading.is_due(), why="it is noticed over and over")


def test_checks_that_came_with_another_build_wait_for_it(path: Path) -> None:
    settings = write(path)
    reloading = ConfigReloader(settings, time.time_ns())
    strict = "[service.cache]\nlisten = '127.0.0.1:5000'\nhold = { max = 9 }\ncommand = ['server', '2']\n"
    path.write_text(strict + "health = { failures = 1 }\n")
    done = reloading.reload(settings)
    assert (done.settings.health, len(done.later)) == (settings.health, 2)
    path.write_text(strict + "health = { failures = 1 } # so it is\n")
    assert reloading.reload(settings).settings.health == settings.health, "it is still not deployed"
    path.write_text(strict.replace("'2'", "'1'") + "health = { failures = 1 }\n")
    assert ConfigReloader(settings, time.time_ns()).reload(settings).settings.health.failures == 1


@pytest.mark.parametrize("text", ["no toml [", "[service.other]\n", "[service.cache]\nobserv = '1s'\n", None])
def test_a_file_that_cannot_be_used_changes_nothing_and_says_why(path: Path, text: str | None) -> None:
    settings = write(path)
    reloading = ConfigReloader(settings, time.time_ns())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    done = reloading.reload(settings)
    assert done.settings == settings
    assert str(path) in done.error


def test_a_router_that_starts_after_the_file_changed_takes_it_over(path: Path) -> None:
    settings = write(path)
    assert ConfigReloader(settings, written_ns=0).is_due()
    assert not ConfigReloader(settings, written_ns=time.time_ns() + 10**12).is_due()


def test_a_flag_counts_until_the_file_changes(path: Path) -> None:
    by_flag = msgspec.structs.replace(write(path), observe_s=1.0)
    reloading = ConfigReloader(by_flag, written_ns=time.time_ns() + 10**12)
    assert not reloading.is_due()
    write(path, hold=9, observe="31s")
    assert reloading.reload(by_flag).settings.observe_s == 31.0


def test_without_a_file_there_is_nothing_to_follow(path: Path) -> None:
    settings = msgspec.structs.replace(write(path), source="")
    reloading = ConfigReloader(settings, 0)
    assert (reloading.is_due(), reloading.reload(settings).changed) == (False, ())


# a value for each key that is not its default
OTHER: Mapping[str, Any] = {
    "listen": "127.0.0.1:5001",
    "strategy": "recreate",
    "stop.signal": "QUIT",
    "health.probe": "tcp",
    "health.path": "/healthz",
    "health.status": 204,
    "drain.deadline": "none",
    "proxy_protocol": "v2",
    "allow": ["10.0.0.0/8"],
    "expose": "clients-look-local",
    "plane": "stream",
    "activation": "on",
    "on_unhealthy": "restart",
}


def with_key(path: Path, key: Key, *, command: str = "server") -> None:
    """Write a file in which this key alone has another value than its default."""
    other = OTHER.get(key.name)
    if other is None:
        by_type = {bool: not key.default, int: 7, list: ["other"], dict: {"A": "b"}, str: "5s"}
        other = by_type[type(key.default)]
    text = f"{{ A = {json.dumps(other['A'])} }}" if isinstance(other, dict) else json.dumps(other)
    rest = "" if key.name == "command" else f"command = [{json.dumps(command)}]\n"
    path.write_text(f"[service.cache]\n{rest}{key.name} = {text}\n")


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_running_router_takes_each_key_over_as_the_table_says(path: Path, key: Key) -> None:
    path.write_text("[service.cache]\ncommand = ['server']\n")
    settings = load_file(path)["cache"].settings
    reloading = ConfigReloader(settings, time.time_ns() + 10**12)
    with_key(path, key)
    done = reloading.reload(settings)
    field = key.field.partition(".")[0]
    assert done.error == ""
    if key.takes is Takes.BUILD:
        assert done.later[-1] == "command, cwd, env or version: turnout up deploys it"
    elif key.takes in {Takes.AT_ONCE, Takes.WITH_BUILD}:
        assert (field in done.changed, done.later) == (True, ())
    else:
        assert (done.changed, done.later) == ((), (f"{field}: {key.takes}",))
    if key.takes is Takes.WITH_BUILD:  # beside another build, the daemon that runs is not judged by its checks
        with_key(path, key, command="server2")
        assert f"{field}: {key.takes}" in reloading.reload(settings).later
