"""The dashboard as a process, spoken to by somebody who is no browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dashboard_support import EVIL, Events, Served
from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.cli import cli
from turnout.core.model import State
from turnout.dashboard.feed import MAX_PAGES
from turnout.dashboard.gate import HEADERS
from turnout.dashboard.opening import has_screen, open_in_browser, opener

DEPLOY = "/services/default/deploy"
ORDER = {"generation": 3, "dry_run": True}


@pytest.fixture
def served(lied_to: Served) -> Served:
    return lied_to


@pytest.fixture
def events(served: Served) -> Iterator[Events]:
    stream = served.events()
    yield stream
    stream.close()


def written(turnout: Turnout) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in turnout.home.root.rglob("*") if path.is_file()}


def test_status_json_is_what_the_command_line_prints(served: Served, lying: Turnout) -> None:
    answer = served.ask("GET", "/status.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    printed = lying.run("status", "--json").stdout
    assert answer.json == json.loads(printed)
    assert answer.body == printed.encode()


def test_the_page_and_its_files_come_with_the_policy_and_need_no_token(served: Served) -> None:
    page = served.ask("GET", "/", token=None)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = {part.split('"')[0] for part in page.body.decode().split('"/static/')[1:]}
    assert {"main.js", "style.css", "icon.svg"} <= named
    for name in named:
        file = served.ask("GET", f"/static/{name}", token=None)
        assert file.status == 200, name
        assert file.headers["content-type"].startswith(("text/", "image/")), name
        assert file.headers["x-content-type-options"] == "nosniff"
    for answer in (page, served.ask("GET", "/no/such"), served.ask("GET", "/", token=None, Host="evil.example")):
        assert {name: answer.headers.get(name) for name in HEADERS} == dict(HEADERS)
    assert "server" not in page.headers


@pytest.mark.parametrize(
    "name", ["..%2f__init__.py", "../__init__.py", "%2e%2e/app.py", "main.js%00", "", "/etc/passwd", "nothing.js"]
)
def test_no_other_file_can_be_had(served: Served, name: str) -> None:
    assert served.ask("GET", f"/static/{name}", token=None).status in {401, 404}


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "another origin, with everything else right": (403, {"Origin": "http://evil.example"}),
    "a sandboxed frame": (403, {"Origin": "null"}),
    "a bent name": (421, {"Host": "evil.example"}),
    "a bent name with the port": (421, {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}),
    "no token": (401, {"token": None}),
    "another token": (401, {"token": "guessed"}),
    "a form": (400, {"Content_Type": "application/x-www-form-urlencoded", "body": b"generation=3"}),
    "what a form can send as text": (400, {"Content_Type": "text/plain", "body": b'{"generation":3}'}),
    "no order": (400, {"body": b"[]"}),
    "half an order": (400, {"body": b'{"generation":'}),
    "an order with more in it": (400, {"body": {"generation": 3, "command": ["sh"]}}),
    "a generation below zero": (400, {"body": {"generation": -1}}),
    "too much": (400, {"body": b'{"generation": 3' + b" " * 5000 + b"}"}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_change_is_refused_and_that_is_in_the_log_and_nothing_changes(
    served: Served, lying: Turnout, why: str
) -> None:
    status, how = REFUSED[why]
    before, said = written(lying), len(served.log())
    how = {"body": {"generation": 3}, **how}
    told = {
        name: value.format(port=served.port) if name in {"Host", "Origin"} else value for name, value in how.items()
    }
    answer = served.ask("POST", DEPLOY, **told)
    assert answer.status == status
    assert written(lying) == before
    if status != 400:
        eventually(lambda: f"refused POST '{DEPLOY}'" in served.log()[said:])


@pytest.mark.parametrize("verb", ["deploy", "rollback", "pause", "resume", "drain"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_a_post_changes_anything(served: Served, lying: Turnout, verb: str, method: str) -> None:
    before = written(lying)
    answer = served.ask(method, f"/services/default/{verb}?generation=3", body=None if method == "GET" else ORDER)
    assert answer.status == 405
    assert "access-control-allow-origin" not in answer.headers
    assert written(lying) == before


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/services/nobody/deploy", 404),
        ("/services/--help/deploy", 404),
        ("/services/default/down", 400),
        ("/services/default/--version", 400),
        ("/services/default", 404),
    ],
)
def test_an_order_for_what_is_not_there_is_refused(served: Served, path: str, status: int) -> None:
    answer = served.ask("POST", path, body=ORDER)
    assert answer.status == status
    if path.count("/") == 3:
        assert answer.json["error"]["message"]


def test_a_preview_is_what_the_verb_says_with_dry_run(served: Served, lying: Turnout) -> None:
    before = written(lying)
    answer = served.ask("POST", DEPLOY, body={"generation": 2, "dry_run": True}, Origin=served.origin)
    assert answer.status == 200
    assert answer.json["fault"]["message"].startswith("the deployment stands at generation 3, not 2")
    assert written(lying) == before


def test_what_daemons_say_comes_as_data_and_without_control_characters(events: Events) -> None:
    look = events.next("look")
    (service,) = look["status"]["services"]
    assert service["daemons"][0]["version"] == EVIL
    assert look["beside"]["default"]["seen_to_begin"] is False
    (rollout,) = events.next("timeline")["default"]
    told = [rollout["text"], *(step["text"] for step in rollout["steps"])]
    told += [line for log in events.next("logs")["default"] for line in log["lines"]]
    assert any("<img src=x" in line for line in told)
    assert all(line.isprintable() for line in told)


def test_the_number_of_open_pages_is_bounded(served: Served) -> None:
    streams: list[Events] = []

    def another() -> bool:
        """The page of an earlier test may not have been counted out yet."""
        stream = served.events()
        if stream.answer.status == 503:
            stream.close()
            return False
        streams.append(stream)
        return True

    try:
        for _ in range(MAX_PAGES):
            eventually(another, why="pages that have gone are still counted")
        for stream in streams:
            stream.next("look")
        refused = served.ask("GET", "/events")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert served.ask("GET", "/status.json").status == 200
    finally:
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_quietly_whoever_watches(lying: Turnout, number: int) -> None:
    with Served(lying.env, lying.home.root.parent) as own:
        stream = own.events()
        stream.next("look")
        assert own.interrupt(number) == 130
        stream.rest()
        stream.close()
        assert own.log() == ""
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", own.port)) != 0
    assert not list(lying.home.root.glob("dashboard-*"))


def test_ctrl_c_right_after_the_link_ends_it_as_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("turnout.dashboard.server.serve", interrupted)
    done = CliRunner().invoke(cli, ["dashboard", "--no-open"], env={"TURNOUT_HOME": str(tmp_path / "home")})
    assert (done.exit_code, done.output) == (130, "")


def test_ctrl_c_before_the_server_has_taken_it_leaves_no_task_behind(tmp_path: Path) -> None:
    """The link is printed in the loop's first task: an interrupt because of it cancels a task that has begun."""
    program = (
        "import asyncio, signal, sys\nfrom pathlib import Path\n"
        "from turnout.dashboard.server import serve\nfrom turnout.state.home import Home\n"
        "home = Home(Path(sys.argv[1]))\nhome.create()\n"
        "class View: look = {}\n"
        "def announce(url): asyncio.get_running_loop(); signal.raise_signal(signal.SIGINT)\n"
        "try: serve(home, View(), port=0, announce=announce)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-P", "-c", program, str(tmp_path / "home")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_ctrl_c_in_the_middle_of_a_deploy_takes_the_candidate_along(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.daemons()
    turnout.configure(line_daemon("--version", "v2", "--never-listen"), version="v2")
    with Served(turnout.env, turnout.home.root.parent) as own:
        assert own.ask("POST", DEPLOY, body={"generation": 1}, Origin=own.origin).status == 202
        eventually(lambda: len(turnout.daemons()) == 2, why="no candidate was started")
        second = own.ask("POST", DEPLOY, body={"generation": 1})
        assert (second.status, second.json["error"]["message"]) == (409, "deploy is under way for default")
        assert own.interrupt() == 130
    eventually(lambda: turnout.daemons() == before, why="the candidate is still there")
    block = turnout.snapshot().deployment
    assert (block.state, block.candidate_boot_id) == (State.IDLE, "")
    assert ask(turnout.address) == "v1"


def test_each_start_has_a_token_of_its_own(lying: Turnout, served: Served) -> None:
    with Served(lying.env, lying.home.root.parent) as second:
        assert len(second.token) >= 43, "256 bits"
        assert second.token != served.token
        assert second.ask("GET", "/status.json", token=served.token).status == 401


def test_a_taken_port_is_a_clear_error(lying: Turnout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = lying.run("dashboard", "--no-open", "--port", str(port), code=1)
    first, second = done.stderr.splitlines()
    assert first.startswith(f"turnout: 127.0.0.1:{port} is in use by pid {os.getpid()} ")
    assert second == "hint: name another with --port, or 0 for any that is free"
    assert done.stdout == ""


def test_without_the_extra_one_line_says_what_to_install(lying: Turnout, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')\n")
    done = subprocess.run(
        [sys.executable, "-m", "turnout", "dashboard"],
        cwd=tmp_path,
        env={**lying.env, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "turnout: the dashboard needs starlette, which is not installed",
        "hint: pip install 'turnout[web]'",
    ]


def test_a_browser_is_led_to_the_page_by_a_file_of_its_owners_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_it(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_it)
    with opener(tmp_path) as path:
        path.symlink_to(tmp_path / "elsewhere")
        assert open_in_browser("http://127.0.0.1:1/#secret", path)
        assert "secret" not in opened[0]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert 'content="0;url=http://127.0.0.1:1/#secret"' in path.read_text()
    assert not path.exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("environ", "has"), [({}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True)])
def test_a_browser_opens_by_itself_only_where_there_is_a_screen(
    environ: dict[str, str], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert has_screen(environ) is has
