from __future__ import annotations

from pathlib import Path

import pytest

from turnout.config.settings import Address, Health, Settings
from turnout.errors import UsageError
from turnout.lifecycle.port_forwarder import check_forwarded, forwarder
from turnout.system.net.sockets import PortHolder

AT = Address("127.0.0.1", 6380)


def process(proc: Path, pid: int, comm: str, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{comm}\n")
    (proc / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, 7, "redis-server", "redis-server *:6380")
    process(tmp_path, 8, "exe", "/usr/bin/rootlessport-child")
    words = ["/usr/bin/docker-proxy", "-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "6381"]
    process(tmp_path, 9, "docker-proxy", *words)
    return tmp_path


def settings(probe: str) -> Settings:
    return Settings(name="cache", listen=(AT,), health=Health(probe=probe, match="PONG"))  # type: ignore[arg-type]


@pytest.mark.parametrize("probe", ["alive", "tcp"])
def test_a_probe_that_hears_no_answer_is_refused_at_a_forwarder(proc: Path, probe: str) -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:6380 belongs to /usr/bin/rootlessport-child") as refused:
        check_forwarded(AT, PortHolder(8, "whatever", listening=True), settings(probe), proc=proc)
    assert refused.value.hint
    assert "http" in refused.value.hint
    check_forwarded(AT, PortHolder(7, "whatever", listening=True), settings(probe), proc=proc)


@pytest.mark.parametrize("probe", ["http", "expect", "exec"])
def test_a_probe_that_hears_one_is_not(proc: Path, probe: str) -> None:
    check_forwarded(AT, PortHolder(8, "whatever", listening=True), settings(probe), proc=proc)


def test_a_forwarder_of_root_whose_sockets_are_hidden_is_known_by_the_port_in_its_command_line(proc: Path) -> None:
    unseen = PortHolder(0, "a process of root", listening=True)
    assert forwarder(unseen, 6381, proc=proc) == "docker-proxy"
    with pytest.raises(UsageError) as refused:
        check_forwarded(Address("127.0.0.1", 6381), unseen, settings("alive"), proc=proc)
    assert "verify_owner = false" in str(refused.value.hint)
    assert forwarder(unseen, 638, proc=proc) == ""
    assert forwarder(unseen, 6380, proc=proc) == ""


def test_one_that_has_ended_is_none(proc: Path) -> None:
    assert forwarder(PortHolder(99, "gone", listening=True), 6380, proc=proc) == ""
