"""Clients that end their side and read on: nc -N and ssh. Their answers come whole, whichever daemon gives them."""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from bulk_daemon import block
from e2e_support import Turnout
from programs import missing, program
from repeated import POLITE, output_of, over_and_over
from support import eventually, report, scaled

SUPPORT = Path(__file__).parents[1] / "support"
PAYLOAD = b"".join(block(number) for number in range(4))


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload"
    path.write_bytes(PAYLOAD)
    return path


@pytest.mark.timeout(600)
def test_nc_that_ends_its_stream_gets_the_digest_of_all_of_it_over_switches(turnout: Turnout, payload: Path) -> None:
    nc = program("nc", package="netcat-openbsd")
    if "-N" not in subprocess.run([nc, "-h"], capture_output=True, text=True, timeout=20, check=False).stderr:
        missing("nc", "this nc has no -N: apt-get install netcat-openbsd")
    switches = scaled(2, 40)
    expected = hashlib.sha256(PAYLOAD).hexdigest()
    seen: set[str] = set()

    def deploy(version: str, verb: str) -> None:
        command = [sys.executable, "-P", str(SUPPORT / "digest_daemon.py"), "{port}", version]
        turnout.configure(command, version=version, observe="200ms", deadline="none")
        turnout.run(verb)

    def ask() -> None:
        with payload.open("rb") as file:
            name, digest = output_of([*POLITE, nc, "-N", "127.0.0.1", str(turnout.port)], stdin=file).split()
        assert digest == expected
        seen.add(name)

    deploy("v0", "up")
    with over_and_over(ask) as asked:
        asked.again()
        for number in range(1, switches + 1):
            deploy(f"v{number}", "deploy")
            asked.again(times=2)
    report("nc -N", switches=switches, transfers=asked.times, bytes_each=len(PAYLOAD), errors=len(asked.errors))
    assert asked.errors == []
    assert seen == {f"v{number}" for number in range(switches + 1)}


@pytest.fixture
def ssh(turnout: Turnout, tmp_path: Path) -> list[str]:
    """A client's command line, for the sshd that the service is configured to run."""
    client, server = program("ssh", package="openssh-client"), program("sshd", package="openssh-server")
    keygen = program("ssh-keygen", package="openssh-client")
    if os.geteuid() == 0:  # it will not start without this directory, which its package's service makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        output_of([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)])
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    (tmp_path / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1
        HostKey {tmp_path}/host
        AuthorizedKeysFile {tmp_path}/authorized
        PidFile none
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        PermitRootLogin prohibit-password
        MaxStartups 100
        """
    )
    command = [server, "-D", "-e", "-f", str(tmp_path / "sshd_config"), "-p", "{port}"]
    turnout.configure(command, observe="200ms", deadline="none")
    options = {
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "ControlPath": "none",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    user = pwd.getpwuid(os.geteuid()).pw_name
    return [
        client,
        "-F",
        "none",
        "-q",
        "-i",
        str(tmp_path / "user"),
        *words,
        "-p",
        str(turnout.port),
        f"{user}@127.0.0.1",
    ]


@pytest.mark.timeout(600)
def test_an_ssh_session_survives_switches_and_cat_over_ssh_gives_back_every_byte(
    turnout: Turnout, ssh: list[str], payload: Path
) -> None:
    """One session stays with the sshd that it began with; each `ssh host cat < file` half-closes and reads on."""
    switches = scaled(2, 20)
    turnout.run("up")
    first = turnout.active()
    eventually(lambda: output_of([*ssh, "true"]) == "")

    def cat() -> None:
        with payload.open("rb") as file:
            done = subprocess.run([*POLITE, *ssh, "cat"], stdin=file, capture_output=True, timeout=120, check=True)
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(PAYLOAD).digest()

    echo = 'while read -r line; do echo "$line"; done'
    session = subprocess.Popen([*ssh, echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    with session, over_and_over(cat, clients=1) as cats:
        assert session.stdin
        assert session.stdout

        def says(line: str) -> bool:
            assert session.stdin
            assert session.stdout
            session.stdin.write(f"{line}\n")
            return session.stdout.readline() == f"{line}\n"

        try:
            assert says("before")
            for number in range(switches):
                turnout.run("deploy", "--version", f"v{number + 2}")
                assert says(f"after switch {number}")
                cats.again()
            counted = {daemon["boot_id"]: daemon["connections"] for daemon in turnout.status()["daemons"]}
            assert counted[first["boot_id"]] >= 1, "the session is still carried for the first sshd"
            assert says("at the end")
            session.stdin.close()
            assert session.stdout.read() == ""
            assert session.wait(60) == 0
        finally:
            session.kill()
    report("ssh", switches=switches, cats=cats.times, bytes_each=len(PAYLOAD), errors=len(cats.errors))
    assert cats.errors == []
