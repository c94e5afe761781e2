"""Surroundings that are not as expected: each is named in one line, with a hint that works."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from process_support import Started, entry
from turnout.config.file import find_file, keys_in, load_file
from turnout.config.settings import parse_address
from turnout.control.keeper_client import bind_error
from turnout.errors import ConfigError, UsageError
from turnout.state.home import Home
from turnout.system.net.sockets import PortHolder
from turnout.system.probes import probe
from turnout.system.probes.wait import wait_healthy
from turnout.system.process import identify
from turnout.system.user_directory import expand_user, user_directory

FILE = '[service.default]\ncommand = ["./server", "--port", "{port}"]\n'


def run(*verb: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "turnout", *verb]
    return subprocess.run(argv, env=os.environ | env, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom no database knows, without HOME, as in a container that is started with --user."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


# -- the user and the home ---------------------------------------------------------------------------------------------


def test_a_home_below_an_unknown_user_is_refused_by_that_name() -> None:
    with pytest.raises(UsageError, match="TURNOUT_HOME: '~nosuchuser/x': there is no user 'nosuchuser'") as refused:
        Home.find({"TURNOUT_HOME": "~nosuchuser/x"})
    assert refused.value.hint


def _file(place: Path) -> Path:
    place.touch()
    return place


def _below_a_file(place: Path) -> Path:
    return _file(place) / "home"


def _dangling(place: Path) -> Path:
    place.symlink_to("nowhere")
    return place


def _loop(place: Path) -> Path:
    place.symlink_to(place)
    return place


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_file, "it is no directory"),
        (_below_a_file, "Not a directory"),
        (_dangling, "nowhere, which does not exist"),
        (_loop, "Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("verb", [("status",), ("down",), ("why",), ("up", "--", "true"), ("router", "--replace")])
def test_a_home_that_is_no_directory_is_named_by_every_verb(
    tmp_path: Path, make: Callable[[Path], Path], why: str, verb: tuple[str, ...]
) -> None:
    """What no verb could use is not a place where no service has been yet."""
    home = make(tmp_path / "place")
    done = run(*verb, env={"TURNOUT_HOME": str(home)}, cwd=tmp_path)
    assert done.returncode == 2
    assert f"turnout: {home} cannot be the state directory: " in done.stderr
    assert why in done.stderr.splitlines()[0]
    assert "hint: " in done.stderr.splitlines()[1]
    assert "Traceback" not in done.stderr


def test_doctor_looks_at_a_home_that_is_no_directory(tmp_path: Path) -> None:
    for make in (_file, _below_a_file, _dangling, _loop):
        place = tmp_path / make.__name__
        done = run("doctor", env={"TURNOUT_HOME": str(make(place))}, cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert "bad   home" in done.stdout
    home = tmp_path / "_dangling"
    subprocess.run(shlex.split(f"mkdir -m 700 -p -- {home.parent / 'nowhere'}"), check=True)
    assert "bad   home" not in run("doctor", env={"TURNOUT_HOME": str(home)}, cwd=tmp_path).stdout


def test_doctor_has_no_device_moved_away(tmp_path: Path) -> None:
    assert "mv " not in run("doctor", env={"TURNOUT_HOME": "/dev/null"}, cwd=tmp_path).stdout


@pytest.mark.usefixtures("nobody")
def test_a_user_without_a_home_directory_is_told_so_and_state_may_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for look in (lambda: Home.find({}), user_directory, lambda: expand_user("~/x", setting="watch")):
        with pytest.raises(UsageError, match=f"HOME is not set, and no user has uid {os.geteuid()}"):
            look()
    assert Home.find({"TURNOUT_HOME": str(tmp_path / "home")}).root == tmp_path / "home"
    (tmp_path / "turnout.toml").write_text(FILE)
    assert find_file(None) == Path("turnout.toml")
    assert not (tmp_path / "~").exists()


def test_what_needs_a_deleted_working_directory_names_it(tmp_path: Path) -> None:
    script = "mkdir gone && cd gone && rmdir ../gone && exec "
    env = {**os.environ, "TURNOUT_HOME": str(tmp_path / "home")}
    for verb, home in (
        (["deploy", "--", "sleep", "1"], {}),
        (["init"], {}),
        (["status"], {"TURNOUT_HOME": "relative"}),
    ):
        done = subprocess.run(
            ["sh", "-c", script + shlex.join([sys.executable, "-P", "-m", "turnout", *verb])],
            cwd=tmp_path,
            env=env | home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        line, hint = done.stderr.splitlines()
        assert "the working directory was deleted" in line
        assert hint.startswith("hint: cd to ")


def test_a_verb_whose_standard_output_is_closed_says_that_its_answer_is_lost(tmp_path: Path) -> None:
    env = {**os.environ, "TURNOUT_HOME": str(tmp_path)}
    command = shlex.join([sys.executable, "-P", "-m", "turnout", "schema", "status"])
    done = subprocess.run(["sh", "-c", f"exec {command} >&-"], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (0, [])
    assert done.stderr.startswith("warning: standard output is closed")


# -- the configuration file --------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text(FILE, encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert load_file(path)["default"].command[0] == "./server"
    assert keys_in(path, "default") == {"command"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('listen = "127.0.0.1:1"', "listen below [service.NAME] or listen below [metrics]"),
        ('[service.default]\ninterval = "1s"', "health = { interval = … } below [service.NAME]"),
        (
            '[service.default]\ngrace = "1s"',
            "stop = { grace = … } below [service.NAME] or drain = { grace = … } below [service.NAME]",
        ),
        ('[service.default.health]\nobserve = "1s"', "observe below [service.NAME]"),
        ('[metrics]\nlisten = "127.0.0.1:1"\nversion = 1', "version below [service.NAME]"),
        ("[service.default.metrics]\n", "[metrics] at the top level"),
    ],
)
def test_a_key_in_the_wrong_table_is_named_with_the_right_one(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="unknown key") as refused:
        load_file(path)
    assert refused.value.hint == f"it belongs elsewhere: {hint}"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[default]\n", "a service is a table [service.NAME]"),
        ("[service.default]\nverison = '1'", "did you mean 'version'?"),
        ("[service.default.health]\nfailuers = 1", "did you mean 'failures'?"),
        ("[service.default]\nfailuers = 1", "every key: turnout schema file"),
    ],
)
def test_a_key_of_no_table_is_likened_to_those_of_its_own(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_file(path)
    assert refused.value.hint is not None
    assert refused.value.hint.startswith(hint)


@pytest.mark.parametrize("key", ['cwd = "~nosuchuser"', 'registry = "~nosuchuser/r"', 'watch = ["~nosuchuser/w"]'])
def test_a_path_below_an_unknown_user_is_named_with_its_key(tmp_path: Path, key: str) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text(f"{FILE}{key}\n")
    with pytest.raises(ConfigError, match=rf"{key.partition(' ')[0]}: .* there is no user 'nosuchuser'"):
        load_file(path)


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lo", ["true", "ip link set lo up && ip addr del 127.0.0.1/8 dev lo"], ids=["down", "no IPv4"])
def test_a_machine_without_127_0_0_1_is_not_one_without_a_free_port(lo: str) -> None:
    """In a network namespace, whose loopback interface is down at first."""
    namespace = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    tried = subprocess.run([*namespace, "sh", "-c", lo], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespace can be set up here: {tried.stderr.strip()}")
    code = "from turnout.system.net.ports import choose_port; choose_port()"
    command = f"{lo}; exec {shlex.join([sys.executable, '-c', code])}"
    done = subprocess.run([*namespace, "sh", "-c", command], capture_output=True, text=True, check=False)
    assert "SpawnError: this machine has no usable address 127.0.0.1" in done.stderr
    assert "no free port" not in done.stderr


def test_an_address_that_the_machine_lacks_is_named_with_what_brings_the_loopback_up() -> None:
    error = bind_error(parse_address("127.0.0.1:47777"), 99)
    assert error.message == "cannot listen on 127.0.0.1:47777: this machine has no such address"
    assert error.hint is not None
    assert error.hint.startswith("ip link set lo up")


@pytest.mark.parametrize("readable", [False, True])
def test_a_daemon_whose_descriptors_may_not_be_read_is_given_up_at_once(
    monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """As one with file capabilities: something listens, and whose it is cannot be seen, now or later."""
    with Started() as started, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        daemon = entry(identify(started.run("sleep", "60").pid), port)

        def unseen(_host: str, _port: int) -> PortHolder:
            return PortHolder(0, "a process of user app", listening=True)

        def may_be_looked_at(_pid: int) -> bool:
            return readable

        monkeypatch.setattr(probe, "who_listens", unseen)
        monkeypatch.setattr(probe, "may_be_looked_at", may_be_looked_at)
        now = [0.0]
        result = wait_healthy(
            daemon,
            probe.ProbeSpec(),
            timeout_s=30.0,
            clock=lambda: now[0],
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
        )
        seen = probe.look_at_listener(daemon, probe.ProbeSpec())
    assert not result.ok
    # a daemon in service that hides its descriptors keeps its clients; a stranger at its port gets none
    assert seen.proven is (False if readable else None)
    assert result.owner_hidden is not readable
    assert (now[0] < 2.0) is not readable


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('command = "x"', "service.web.command must be an array, not a string", "for example command = ["),
        ("listen = 7", "service.web.listen must be a string or an array, not a whole number", "turnout schema file"),
        (
            "observe = true",
            "service.web.observe must be a number or a string, not true or false",
            "turnout schema file",
        ),
        ('health = "tcp"', "service.web.health must be a table, not a string", "turnout schema file"),
        ("env = { A = 1 }", "service.web.env.* must be a string, not a whole number", "turnout schema file"),
        ("replicas = 1", "service.web: unknown key 'replicas'", "turnout schema file"),
        ("hold = { max = -1 }", "[service.web] hold.max must lie in 0..1000000", "max = 1024"),
        ('health = { probe = "expect", match = "(" }', "health.match is no regular expression", "re"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_service_and_in_the_words_of_toml(
    tmp_path: Path, text: str, said: str, hint: str
) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text(f'[service.well]\ncommand = ["x"]\n[service.web]\n{text}\n')
    with pytest.raises(ConfigError) as refused:
        load_file(path)
    assert said in refused.value.message
    assert hint in str(refused.value.hint)


def test_a_configuration_file_that_is_no_file_is_not_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "turnout.toml"
    path.mkdir()
    with pytest.raises(ConfigError, match="is no regular file"):
        find_file(None)
    with pytest.raises(ConfigError, match="is no regular file"):
        find_file(str(path))
    path.rmdir()
    path.symlink_to("nowhere")
    with pytest.raises(ConfigError, match="a symbolic link that leads nowhere"):
        find_file(None)


def test_doctor_of_a_service_that_is_not_known_does_not_find_it_well(tmp_path: Path) -> None:
    env = {"TURNOUT_HOME": str(tmp_path / "home")}
    (tmp_path / "turnout.toml").write_text(FILE)
    unknown = run("doctor", "--service", "nosuch", env=env, cwd=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (4, "")
    assert "no service 'nosuch'" in unknown.stderr
    assert "hint: turnout up --service nosuch -- COMMAND" in unknown.stderr
    assert run("doctor", "--service", "a/b", env=env, cwd=tmp_path).returncode == 2
    assert "default" in run("doctor", "--service", "default", env=env, cwd=tmp_path).stdout
