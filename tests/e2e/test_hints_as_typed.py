"""What status, doctor and a refused verb say to type works as typed, where that is least obvious."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.system.process import identify, is_alive
from turnout.testing import free_port

LISTENS = """listen = "127.0.0.1:{port}"
command = {command}
registry = "{registry}"
observe = "300ms"
"""


def listens(port: int) -> bool:
    try:
        return ask(("127.0.0.1", port)) == "theirs"
    except OSError:
        return False


def hint(said: str) -> str:
    return said.partition("hint: ")[2].strip()


def typed(turnout: Turnout, command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "turnout", command
    turnout.run(*words[1:])


def their_daemon(port: int) -> subprocess.Popen[str]:
    words = [word.replace("{port}", str(port)) for word in line_daemon("--version", "theirs")]
    return subprocess.Popen(words, text=True)


def test_hints_about_an_attached_daemon_that_ended_work(turnout: Turnout) -> None:
    """`up` has no command for it, and would be no answer: whatever started the daemon starts it again."""
    port = free_port()
    theirs = their_daemon(port)
    try:
        own = ("--service", "cache")
        eventually(lambda: listens(port), why="their daemon does not listen")
        quickly = ("--listen", f"127.0.0.1:{turnout.port}", "--observe", "300ms")
        turnout.run("attach", "-q", *own, *quickly, f"127.0.0.1:{port}")
        theirs.kill()
        theirs.wait()
        problem = eventually(lambda: turnout.status("cache")["problems"], why="its end is not seen")[0]
        assert "the attached daemon" in problem["what"]
        findings = json.loads(turnout.run("doctor", "--json", *own, code=1).stdout)["findings"]
        mends = {one["mend"] for one in findings if one["verdict"] == "bad"}
        assert mends == {problem["mend"]}
        again = f"turnout attach --service cache 127.0.0.1:{port}"
        for verb in ("up", "start", "deploy"):
            said = hint(turnout.run(verb, *own, code=4).stderr)
            assert again in said
            assert "turnout up --service cache -- COMMAND" in said
        assert again in hint(turnout.run("refresh", *own, code=2).stderr)
        assert "COMMAND" in hint(turnout.run("logs", *own, code=3).stderr)
        theirs = their_daemon(port)
        eventually(lambda: listens(port), why="their daemon does not listen")
        typed(turnout, problem["mend"])
        assert ask(turnout.address) == "theirs"
        theirs.kill()
        theirs.wait()
        assert "was attached, and had ended already" in turnout.run("stop", *own).stdout
        for verb, code in (("refresh", 3), ("pause", 3), ("start", 4)):
            said = hint(turnout.run(verb, *own, code=code).stderr)
            assert said == "turnout up --service cache -- COMMAND --port {port}", verb
        assert turnout.status("cache")["start_with"] == "turnout up --service cache -- COMMAND --port {port}"
    finally:
        theirs.kill()
        theirs.wait()
    typed(turnout, f"turnout up -q --service cache -- {shlex.join(line_daemon('--version', 'ours'))}")
    assert ask(turnout.address) == "ours"
    turnout.run("stop", *own)
    typed(turnout, turnout.status("cache")["start_with"])
    assert ask(turnout.address) == "ours"


def test_a_service_whose_registry_file_another_one_has_is_not_shown_with_its_daemons(turnout: Turnout) -> None:
    directory = turnout.home.root.parent
    text = "".join(
        f"[service.{name}]\n"
        + LISTENS.format(
            port=port, command=json.dumps(line_daemon("--version", name)), registry=directory / "shared.json"
        )
        for name, port in (("a", turnout.port), ("b", free_port()))
    )
    (directory / "turnout.toml").write_text(text)
    turnout.run("up", "-q", "--service", "a")
    assert ask(turnout.address) == "a"
    turnout.run("down", "--service", "a")
    turnout.run("up", "-q", "--service", "b")
    seen = turnout.status("a")
    assert (seen["daemons"], seen["desired"]) == ([], "stopped")
    assert [problem["severity"] for problem in seen["problems"]] == ["warn"]
    assert "is the registry of service b, and says nothing of a" in seen["problems"][0]["what"]
    pid = turnout.status("b")["daemons"][0]["pid"]
    turnout.kill(pid, signal.SIGSTOP)
    findings = json.loads(turnout.run("doctor", "--json", "--service", "a", code=None).stdout)["findings"]
    assert [one for one in findings if one["verdict"] == "bad"] == []
    turnout.kill(pid, signal.SIGCONT)
    end = seen["problems"][0]["mend"].partition(", or: ")[2]
    assert end in hint(turnout.run("up", "--service", "a", code=2).stderr)
    typed(turnout, end)
    turnout.run("up", "-q", "--service", "a")
    assert ask(turnout.address) == "a"
    assert turnout.status("a")["problems"] == []


def test_a_daemon_of_a_service_whose_registry_another_one_has_is_no_stray(turnout: Turnout) -> None:
    """The file says nothing of it; that is no reason to have it killed."""
    directory = turnout.home.root.parent
    registry = directory / "shared.json"
    other = free_port()
    text = "".join(
        f"[service.{name}]\n"
        + LISTENS.format(port=port, command=json.dumps(line_daemon("--version", name)), registry=registry)
        for name, port in (("a", turnout.port), ("b", other))
    )
    (directory / "turnout.toml").write_text(text)
    turnout.run("up", "-q", "--service", "b")
    turnout.run("down", "--service", "b")
    turnout.run("up", "-q", "--service", "a")
    daemon = identify(turnout.status("a")["daemons"][0]["pid"])
    claim = registry.with_name("shared.json.claim")
    claim.write_text(claim.read_text().replace('"a"', '"b"'))
    seen = turnout.status("a")
    assert [problem["severity"] for problem in seen["problems"]] == ["bad"], "the router serves it all the same"
    found = json.loads(turnout.run("doctor", "--json", "--fix", code=None).stdout)["findings"]
    assert [one for one in found if one["check"] == "strays" and one["verdict"] != "ok"] == []
    assert is_alive(daemon)
    assert ask(turnout.address) == "a"
