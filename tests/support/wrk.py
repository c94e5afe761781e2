"""wrk, as long as a test wants it: HTTP connections that stay, and ones that are made for each request."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator

from programs import program
from repeated import POLITE, Repeated, output_of, over_and_over


def fetched(address: tuple[str, int], path: str) -> tuple[bytes, http.client.HTTPMessage]:
    """The whole answer to one request on a connection of its own, and its headers."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    return body, answer.headers


class Wrk:
    """Runs of a second each, at one path. ``requests`` were answered well; an error fails the run that met it.

    Args:
        address: host and port.
        path: with its slash.
    """

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._argv = [*POLITE, program("wrk", package="wrk"), "-t1", "-c4", "-d1s", "--timeout", "30s"]
        self._url = f"http://{address[0]}:{address[1]}{path}"
        self.requests = 0
        self.errors: list[str] = []

    @contextlib.contextmanager
    def run(self) -> Iterator[tuple[Repeated, Repeated]]:
        """Both kinds, until the block ends: those that are kept alive, and those that reconnect."""
        with (
            over_and_over(self._once, clients=1) as kept,
            over_and_over(lambda: self._once("-H", "Connection: close"), clients=1) as fresh,
        ):
            yield kept, fresh
        self.errors = kept.errors + fresh.errors

    def _once(self, *flags: str) -> None:
        self.requests += requests_of(output_of([*self._argv, *flags, self._url]))


def requests_of(said: str) -> int:
    """How many requests wrk made; its socket errors and other answers than 200 are no success."""
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])
