"""Decides which requests the dashboard serves, from a request's head alone, before anything is done about it.

The listener is on loopback, but a browser on this machine runs pages of strangers. They may send requests here (CSRF),
or have a name of their own resolve to 127.0.0.1 to read the answers as well (DNS rebinding). And every user of the
machine may connect to a loopback port. So: the Host must be a loopback name, an Origin our own, and whoever wants to
know or change anything must have the token, which only the user who started the dashboard has seen.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

READS: Final = frozenset({"GET", "HEAD"})
# What a navigation sends (Fetch Metadata, W3C): a link from elsewhere may lead to the page, and to nothing else.
FRIENDLY_SITES: Final = frozenset({"same-origin", "none"})
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # no inline script or style, nothing from elsewhere, no frame around it; and no text is ever parsed as HTML
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
            " require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
)


class Refusal(msgspec.Struct, frozen=True):
    """The answer to a request that is turned away: an HTTP status (RFC 9110) and one line that says why."""

    status: int
    why: str


class Gate:
    """The rules of one server.

    Args:
        port: the TCP port that it listens on.
        token: what a request must carry as ``Authorization: Bearer TOKEN`` (RFC 6750).
    """

    def __init__(self, port: int, token: str) -> None:
        names = ("127.0.0.1", "localhost")
        self._hosts = frozenset({f"{name}:{port}" for name in names} | (set(names) if port == 80 else set()))
        self._token = f"Bearer {token}".encode()

    def refusal(self, method: str, path: str, headers: Mapping[str, Sequence[str]]) -> Refusal | None:
        """Why a request is turned away; None: it may pass.

        Args:
            method: of HTTP, in capitals.
            path: without a query.
            headers: every value of each, by name in small letters.
        """
        hosts = [value.lower() for value in headers.get("host", ())]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return Refusal(421, f"Host {_shown(hosts)} is not this machine's own: a name may have been bent to it")
        if any(origin.lower() != f"http://{hosts[0]}" for origin in headers.get("origin", ())):
            return Refusal(403, f"Origin {_shown(headers['origin'])} is another page's")
        page = path == "/" and method in READS
        sites = headers.get("sec-fetch-site", ())
        if not page and any(site not in FRIENDLY_SITES for site in sites):
            return Refusal(403, f"Sec-Fetch-Site {_shown(sites)}: another page asks")
        if page or (path.startswith("/static/") and method in READS):
            return None  # nothing of any service is in these
        given = headers.get("authorization", ())
        if not self.knows([value.encode() for value in given]):
            return Refusal(401, "no token, or not that of this start" if given else "no token")
        return None

    def knows(self, authorization: Sequence[bytes]) -> bool:
        """Whether a request with these values of the header Authorization has the token."""
        return len(authorization) == 1 and secrets.compare_digest(authorization[0], self._token)


def _shown(values: Sequence[str]) -> str:
    """What was sent, fit for a log: bounded, and with control characters spelled out."""
    return ", ".join(repr(value[:200]) for value in values[:3]) or "(none)"
