"""Who may ask the dashboard what."""

from __future__ import annotations

import pytest

from turnout.dashboard.gate import HEADERS, Gate

TOKEN = "right-token"
GATE = Gate(8474, TOKEN)
OWN = {"host": ["127.0.0.1:8474"], "authorization": [f"Bearer {TOKEN}"]}


def refused(method: str = "GET", path: str = "/status.json", **changes: list[str] | None) -> int | None:
    headers = {**OWN, **{name.replace("_", "-"): values for name, values in changes.items()}}
    found = GATE.refusal(method, path, {name: values for name, values in headers.items() if values is not None})
    return found.status if found else None


@pytest.mark.parametrize("host", ["127.0.0.1:8474", "localhost:8474", "LocalHost:8474"])
def test_loopback_by_its_own_names_is_let_in(host: str) -> None:
    assert refused(host=[host]) is None
    assert refused(host=[host], origin=[f"http://{host}"]) is None


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example:8474"],
        ["evil.example"],
        ["127.0.0.1"],
        ["127.0.0.1:8475"],
        ["127.0.0.1:8474.evil.example"],
        ["127.0.0.1.evil.example:8474"],
        ["localhost.:8474"],
        ["127.1:8474"],
        ["0.0.0.0:8474"],
        [""],
        [],
        ["127.0.0.1:8474", "evil.example:8474"],
    ],
)
@pytest.mark.parametrize("path", ["/", "/static/main.js", "/status.json", "/events"])
def test_another_host_is_refused_whatever_it_asks_for_and_has(hosts: list[str], path: str) -> None:
    """DNS rebinding: the stranger's name points here, and the browser sends it along."""
    assert refused(path=path, host=hosts) == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:8474", "http://127.0.0.1:8475", "http://localhost:8474", ""],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_origin_is_refused_even_with_the_token(origin: str, method: str) -> None:
    assert refused(method, "/services/default/deploy", origin=[origin]) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_page_embeds_or_fetches_is_refused(site: str) -> None:
    assert refused(sec_fetch_site=[site]) == 403
    assert refused(path="/static/main.js", sec_fetch_site=[site]) == 403
    assert refused(path="/", sec_fetch_site=[site]) is None, "a link from elsewhere may lead to the page"


@pytest.mark.parametrize(
    "given",
    [None, [], ["Bearer wrong"], [TOKEN], [f"bearer {TOKEN}"], [f"Bearer {TOKEN} "], ["Bearer "],
     [f"Bearer {TOKEN}"] * 2, ["Bearer \N{SNOWMAN}"]],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/status.json", "/events", "/services/default/deploy", "/no/such"])
def test_nothing_of_a_service_is_told_or_changed_without_the_token(given: list[str] | None, path: str) -> None:
    assert refused(path=path, authorization=given) == 401


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
def test_the_empty_page_needs_no_token_but_takes_no_change(path: str) -> None:
    assert refused(path=path, authorization=None) is None
    assert refused("POST", path, authorization=None) == 401


def test_a_refusal_spells_out_what_was_sent() -> None:
    found = GATE.refusal("GET", "/", {"host": ["evil\x1b[2J\n" + "x" * 5000]})
    assert found
    assert found.why.isprintable()
    assert len(found.why) < 400


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert not {"unsafe", "http", "data:", "*"} & set(policy.replace(";", " ").split())
    assert "unsafe" not in policy
