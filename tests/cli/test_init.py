"""``init`` writes a file that works, and overwrites none; ``config`` says where each value comes from."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from e2e_support import Turnout, ask
from turnout.cli import cli
from turnout.cli.config_origins import Configuration
from turnout.cli.detection import Proposal, proposals, running
from turnout.cli.init import written
from turnout.config.file import load_file
from turnout.config.keys import KEYS
from turnout.config.values import duration_text
from turnout.system.net.sockets import PortHolder


def none(_program: str) -> str | None:
    return None


def invoke(tmp_path: Path, *args: str, **env: str) -> Result:
    unset: dict[str, str | None] = {"TURNOUT_LISTEN": None, "TURNOUT_CONFIG": None, "TURNOUT_SERVICE": None}
    home = {"TURNOUT_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "no-config")}
    return CliRunner().invoke(cli, args, env=unset | home | env)


def test_a_redis_conf_is_taken_for_one_that_saves(tmp_path: Path) -> None:
    (tmp_path / "redis.conf").write_text("save 900 1\n")
    (one,) = proposals(tmp_path, which=none)
    assert one.recreate
    assert one.command == ("redis-server", "redis.conf", "--port", "{port}")
    table = tomllib.loads(written([one], []))["service"]["redis"]
    assert (table["strategy"], table["stop"]["signal"]) == ("recreate", "TERM")
    assert table["health"]["match"] == "PONG"


def test_a_data_directory_of_postgresql_is_found_and_stopped_fast(tmp_path: Path) -> None:
    data = tmp_path / "pgdata"
    data.mkdir()
    (data / "PG_VERSION").write_text("15\n")
    (one,) = proposals(tmp_path, which=none)
    table = tomllib.loads(written([one], []))["service"]["postgres"]
    assert (table["strategy"], table["stop"]["signal"]) == ("recreate", "INT")
    assert table["command"][1:5] == ["-D", str(data), "-p", "{port}"]


def test_a_procfile_becomes_a_service_for_each_process_on_addresses_of_their_own(tmp_path: Path) -> None:
    lines = 'web: bundle exec puma -p $PORT\nworker: ./work "a b"\nrelease: ./migrate\n# none\nbad line\n'
    (tmp_path / "Procfile").write_text(lines)
    (tmp_path / "turnout.toml").write_text(written(proposals(tmp_path, which=none), []))
    services = load_file(tmp_path / "turnout.toml")
    assert sorted(services) == ["web", "worker"]
    assert services["web"].command == ("sh", "-c", "exec bundle exec puma -p $PORT")
    assert services["worker"].command[2] == 'exec ./work "a b"'
    assert len({str(service.settings.listen[0]) for service in services.values()}) == 2


def test_an_nginx_conf_gets_its_port_by_a_template(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text("events {}\n")
    (tmp_path / "turnout.toml").write_text(written(proposals(tmp_path, which=none), []))
    service = load_file(tmp_path / "turnout.toml")["nginx"]
    assert "@PORT@" in service.command[2]
    assert service.settings.stop_signal == "QUIT"


@pytest.mark.parametrize(
    ("line", "run"),
    [
        ("python3 app.py > log 2>&1", "exec python3 app.py > log 2>&1"),
        ("./serve --motto 'a; b'", "exec ./serve --motto 'a; b'"),
        ("MODE=production python3 app.py", "MODE=production python3 app.py"),
        ("cd backend && python3 app.py", "cd backend && python3 app.py"),
        ("./migrate; exec ./serve", "./migrate; exec ./serve"),
        ("./serve | tee log", "./serve | tee log"),
        ("(ulimit -n 99; ./serve)", "(ulimit -n 99; ./serve)"),
        ("exec ./serve", "exec ./serve"),
        ("if true; then ./serve; fi", "if true; then ./serve; fi"),
        ("./serve 'open", "./serve 'open"),
    ],
)
def test_a_line_of_a_procfile_means_what_it_means_to_a_shell(tmp_path: Path, line: str, run: str) -> None:
    (tmp_path / "Procfile").write_text(f"web: {line}\n")
    (one,) = proposals(tmp_path, which=none)
    assert one.command == ("sh", "-c", run)


def test_a_redis_that_is_only_installed_is_proposed_without_persistence(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(
        written(proposals(tmp_path, which=lambda name: f"/bin/{name}" if name == "redis-server" else None), [])
    )
    service = load_file(tmp_path / "turnout.toml")["redis"]
    assert service.command[-2:] == ("--save", "")
    assert service.settings.strategy == "blue-green"


def test_what_runs_already_is_offered_to_attach(tmp_path: Path) -> None:
    holder = PortHolder(77, "redis-server *:6379\nevil = 1", listening=True)
    found = running(lambda _host, port: holder if port == 6379 else None)
    assert [(one.name, one.port) for one in found] == [("redis", 6379)]
    text = written([], found)
    assert "turnout attach 127.0.0.1:6379" in text
    assert list(tomllib.loads(text)) == ["service"]
    unlistening = PortHolder(77, "curl", listening=False)
    assert running(lambda _host, _port: unlistening) == []


@pytest.mark.parametrize("name", ["plain", "with space", 'quo"te', "dot.ted"])
def test_any_name_and_command_makes_a_file_that_can_be_read(tmp_path: Path, name: str) -> None:
    words = ("a\tb", "ünï", 'quo"te', "back\\slash", "\x7f", "new\nline", "")
    proposal = Proposal(name, words, "line one\nline = 'two'")
    assert tomllib.loads(written([proposal], []))["service"][name]["command"] == list(words)


def test_every_key_of_the_file_that_is_written_is_known(tmp_path: Path) -> None:
    """The comments, too: without their signs they are settings."""
    text = written([], [])
    start = text.index("[service.default]")
    lines = [line.removeprefix("# ") if "=" in line else line for line in text[start:].splitlines()]
    (tmp_path / "turnout.toml").write_text("\n".join(lines))
    load_file(tmp_path / "turnout.toml")


def test_init_never_overwrites_without_force(tmp_path: Path) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text("# mine\n")
    done = invoke(tmp_path, "init", str(tmp_path))
    assert "it was not touched" in str(done.exception)
    assert path.read_text() == "# mine\n"
    assert "[service." in invoke(tmp_path, "init", "--stdout", str(tmp_path)).stdout
    assert path.read_text() == "# mine\n"
    assert invoke(tmp_path, "init", "--force", str(tmp_path)).exit_code == 0
    assert "[service." in path.read_text()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert invoke(tmp_path, "init", str(tmp_path)).exit_code != 0
    assert not (tmp_path / "elsewhere").exists()
    assert "no directory" in str(invoke(tmp_path, "init", str(tmp_path / "gone")).exception)


def test_what_init_wrote_runs(turnout: Turnout, tmp_path: Path) -> None:
    """From a Procfile to a client that is answered, with nothing edited but the address."""
    (tmp_path / "Procfile").write_text(
        f"default: {json.dumps(sys.executable)} -P -m turnout.demo.daemon --port $PORT --version proc\n"
    )
    turnout.run("init")
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "200ms")
    assert ask(turnout.address) == "proc"


def settings_of(done: Result) -> dict[str, dict[str, Any]]:
    assert done.exit_code == 0, (done.output, done.exception)
    told = msgspec.json.decode(done.stdout, type=Configuration, strict=True)
    return {value.key: msgspec.to_builtins(value) for value in told.settings}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "turnout.toml"
    path.write_text(
        '[service.cache]\ncommand = ["server", "--port", "{port}"]\nobserve = "500ms"\nplane = "relay"\n'
        'drain = { deadline = "none", max_draining = 2 }\nhealth = { interval = "250ms" }\nenv = { TOKEN = "secret" }\n'
    )
    return path


def test_config_says_of_each_value_where_it_comes_from(tmp_path: Path, file: Path) -> None:
    seen = settings_of(
        invoke(tmp_path, "config", "--json", "-c", str(file), "--observe", "5s", TURNOUT_LISTEN="127.0.0.1:4711")
    )
    assert set(seen) == set(KEYS), "every key there is"
    assert (seen["observe"]["value"], seen["observe"]["origin"], seen["observe"]["where"]) == (
        "5s",
        "flag",
        "--observe",
    )
    assert (seen["listen"]["value"], seen["listen"]["origin"]) == (["127.0.0.1:4711"], "environment")
    assert seen["listen"]["where"] == "TURNOUT_LISTEN"
    for key, value in {"plane": "relay", "drain.deadline": "none", "drain.max_draining": 2,
                       "health.interval": "250ms"}.items():  # fmt: skip
        assert (seen[key]["value"], seen[key]["origin"], seen[key]["where"]) == (value, "file", str(file))
    for key, value in {"drain.grace": "30s", "hold.max": 1024, "health.timeout": "500ms", "verify_owner": True,
                       "start_timeout": "30s"}.items():  # fmt: skip
        assert (seen[key]["value"], seen[key]["origin"], seen[key]["where"]) == (value, "default", "")
    assert seen["env"]["value"] == {"TOKEN": "(set)"}


def test_config_for_people_is_toml_that_means_the_same(tmp_path: Path, file: Path) -> None:
    done = invoke(tmp_path, "config", "-c", str(file))
    table = tomllib.loads(done.stdout)["service"]["cache"]
    assert table["observe"] == "500ms"
    assert table["drain"] == {"grace": "30s", "deadline": "none", "max_draining": 2}
    copy = tmp_path / "copy.toml"
    copy.write_text(done.stdout)
    # what was written out is named from then on, in another file
    told = {"source": "", "strategy_named": True, "stop_named": True}
    settings = [msgspec.structs.replace(load_file(one)["cache"].settings, **told) for one in (copy, file)]
    assert settings[0] == settings[1]


def test_config_knows_what_an_earlier_run_left(turnout: Turnout) -> None:
    command = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}"]
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "200ms", "--", *command)
    done = CliRunner().invoke(cli, ["config", "--json"], env=turnout.env)
    seen = settings_of(done)
    assert (seen["observe"]["value"], seen["observe"]["origin"]) == ("200ms", "remembered")
    assert (seen["command"]["value"], seen["command"]["origin"]) == (command, "remembered")
    assert seen["hold.max"]["origin"] == "default"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (90.0, "90s"),
        (120.0, "2m"),
        (7200.0, "2h"),
        (None, "none"),
        (0.0, "0s"),
    ],
)
def test_durations_are_told_as_a_file_would_have_them(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_byte_order_mark_is_no_part_of_a_procfile(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("web: ./server $PORT\n", encoding="utf-8-sig")
    assert [proposal.name for proposal in proposals(tmp_path, which=none)] == ["web"]


def test_a_fifo_of_the_name_of_a_procfile_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Procfile")
    assert "Procfile" not in str(proposals(tmp_path, which=none))
