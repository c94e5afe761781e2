"""Daemons in containers, which something else must start: refused with the reason, and what the hint says works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from process_support import Started, line_of
from turnout.state.builds import Build, Builds, Rollout

# Listens in a container's place, and passes lines on: as far as turnout sees, an engine's forwarder.
FORWARDER = """#!{python}
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    client.settimeout(1)
    try:
        client.recv(100)
        client.sendall(b"ok from a container\\n")
    except OSError:
        pass
    client.close()
"""


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("command", [("docker", "run", "redis:7"), ("sh", "-c", "exec podman run postgres:17")])
def test_a_command_that_starts_a_container_is_refused_before_anything_is_started(
    turnout: Turnout, command: tuple[str, ...], more: tuple[str, ...]
) -> None:
    said = turnout.run("up", *more, "--listen", f"127.0.0.1:{turnout.port}", "--", *command, code=2).stderr
    assert f"starts a container ({' '.join(command[-1].split()[1:3]) if command[0] == 'sh' else 'docker run'})" in said
    assert "hint: " in said
    assert "turnout attach" in said
    assert turnout.processes() == {}


def test_a_forwarder_is_attached_with_a_probe_that_hears_an_answer_and_with_no_other(
    turnout: Turnout, tmp_path: Path
) -> None:
    program = tmp_path / "docker-proxy"
    program.write_text(FORWARDER.format(python=sys.executable))
    program.chmod(0o755)
    with Started() as started:
        port = int(line_of(started.run(str(program))))
        turnout.configure(line_daemon(), observe="0s", probe="tcp")
        for more in ((), ("--dry-run",)):
            said = turnout.run("attach", f"127.0.0.1:{port}", *more, code=2).stderr
            assert "docker-proxy, which forwards to a container" in said
        assert turnout.processes() == {}
        turnout.configure(line_daemon(), observe="0s", probe="expect", extra=r', send = "HEALTH\n", match = "ok"')
        turnout.run("attach", f"127.0.0.1:{port}")
        assert ask(turnout.address) == "ok"  # the first word


def test_a_service_whose_file_names_a_container_meanwhile_can_be_stopped_and_refreshed(turnout: Turnout) -> None:
    """What they start is the recorded build, or nothing; what the file names is refused where it would be started."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    turnout.configure(["docker", "run", "redis:7"])
    for verb in ("refresh", "stop", "start"):
        turnout.run(verb, "--dry-run")
        turnout.run(verb, "-q")
    assert ask(turnout.address) == "v1"
    for more in ((), ("--dry-run",)):
        assert "starts a container (docker run)" in turnout.run("up", *more, code=2).stderr


def test_a_recorded_build_that_starts_a_container_is_refused_by_every_verb_that_starts_it(turnout: Turnout) -> None:
    """turnout 0.1 took such a command, and `recreate` ran two databases on one volume by it."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "-q")
    builds = Builds(turnout.home.service("default").builds)
    active = turnout.snapshot().active
    assert active
    container = Build(("docker", "run", "redis:7"), str(turnout.home.root))
    builds.record_rollout(Rollout(7, container.id, "deploy", 1.0, "active"), container)
    for more in ((), ("--dry-run",)):
        assert "starts a container (docker run)" in turnout.run("rollback", "7", *more, code=2).stderr
    assert turnout.snapshot().active == active
