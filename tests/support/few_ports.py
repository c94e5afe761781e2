"""In a network namespace of its own with 200 ports: more connections to one daemon than one source address has."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from pathlib import Path

from stage import Daemon, Stage
from support import eventually
from turnout.planes.plane import Upstream

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PORTS = 200
WANTED = 500


def bring_up_loopback() -> None:
    with socket.socket() as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


class Clients:
    """Clients have ports of their own: each hundred comes from another loopback address."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.all: list[socket.socket] = []

    def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: else its port is nobody else's
        sock.bind((f"127.0.1.{1 + len(self.all) // 100}", 0))
        sock.connect(self._stage.address)
        self.all.append(sock)
        return sock


def main(kind: str) -> None:
    bring_up_loopback()
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"40000 {40000 + PORTS - 1}\n")
    stage = Stage(kind, hold_max=WANTED)
    try:
        clients = Clients(stage)
        over_ipv4(stage, clients)
        over_ipv6(stage, clients)
    finally:
        stage.close()
    stage = Stage(kind)
    try:
        to_nobody(stage)
    finally:
        stage.close()


def over_ipv4(stage: Stage, clients: Clients) -> None:
    daemon = Daemon("v1", ("127.0.0.1", 30001))
    stage.set_upstream(daemon)
    accepted = []
    for number in range(WANTED):
        client = clients.connect()
        accepted.append(daemon.accept())
        client.sendall(b"%04d" % number)
        assert accepted[-1].recv(4) == b"%04d" % number
    sources = {sock.getpeername()[0] for sock in accepted}
    assert {"127.0.0.1", "127.0.0.2", "127.0.0.3"} <= sources, sources
    assert stage.plane.counters.other_source >= WANTED - PORTS
    assert stage.plane.counters.ports_exhausted == 0
    assert stage.plane.counters.connect_failed == 0
    daemon.listener.close()
    for sock in accepted:
        sock.close()


def over_ipv6(stage: Stage, clients: Clients) -> None:
    """One address has no second one to help out: counted, held, and served as soon as a port is free again."""
    try:
        listener = socket.create_server(("::1", 30002), family=socket.AF_INET6, backlog=1024)
    except OSError as error:
        print(f"no IPv6 here: {error}")
        return
    listener.settimeout(20)
    target = Upstream("v6", "::1", 30002)
    stage.call(lambda: stage.plane.set_upstream(target, patience_s=0.25))
    first = [(clients.connect(), listener.accept()[0]) for _ in range(PORTS - 10)]
    late = [clients.connect() for _ in range(20)]
    for sock in late:
        sock.sendall(b"late")
    eventually(lambda: stage.plane.counters.ports_exhausted > 0)
    assert stage.plane.counters.held_now > 0
    for client, far in first:
        client.close()  # first: its end has the port in TIME-WAIT, which is not the plane's
        far.settimeout(20)
        assert far.recv(1) == b""
        far.close()
    for _ in late:
        far, _ = listener.accept()
        far.settimeout(20)
        assert far.recv(4) == b"late"
        far.close()


def to_nobody(stage: Stage) -> None:
    """The only port there is to come from is the daemon's own: with nobody listening TCP meets itself."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("41050 41050\n")
    stage.call(lambda: stage.plane.set_upstream(Upstream("late", "127.0.0.1", 41050), patience_s=20.0))
    client = socket.socket()
    client.settimeout(20)
    client.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT, as above
    client.bind(("127.0.2.1", 0))
    client.connect(stage.address)
    client.sendall(b"hello")
    eventually(lambda: stage.plane.counters.connect_failed, why="it was served by itself")
    listener = socket.create_server(("127.0.0.1", 41050))
    listener.settimeout(20)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("41050 41059\n")
    far, _ = listener.accept()
    assert far.recv(5) == b"hello"


if __name__ == "__main__":
    main(sys.argv[1])
